"""A rank ends by itself once its launcher has ended."""

import os
import subprocess
import sys
import threading

import psutil
import pytest
from support.programs import ROOT

from tiekd.distributed import launcher_watch


def watched(**said: str) -> subprocess.CompletedProcess:
    """A process that looks for its launchers, of which the environment says that they are there."""
    code = "from tiekd.distributed import launcher_watch; launcher_watch.watch_launchers(); "
    code += "print('goes on')"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | said, capture_output=True, text=True
    )


@pytest.fixture
def ended() -> str:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        pass
    return str(process.pid)


def test_watch_launchers_exits_without_launcher(ended):
    """A rank whose launcher is gone exits with 1 and prints nothing."""
    for said in (
        {launcher_watch.SUPERVISOR: ended},
        {"CROSS_RANK": "0"},
    ):  # DeepSpeed's launch.py says the latter
        result = watched(**said)
        assert (result.stdout, result.stderr, result.returncode) == ("", "", 1)


def test_watch_launchers_continues_with_or_without_one():
    """A rank continues while its launcher lives, or where it never had one."""
    for said in ({launcher_watch.SUPERVISOR: str(os.getpid())}, {}):
        assert watched(**said).stdout == "goes on\n"


def test_launchers_finds_deepspeed_only(tmp_path):
    """Only a parent process that is the deepspeed launcher is watched."""
    assert launcher_watch.launchers() == [], "pytest was started by a launcher?"
    script = "import sys; sys.path.insert(0, sys.argv[1]); "
    script += "from tiekd.distributed.launcher_watch import launchers; print(len(launchers()))"
    parent = tmp_path / "bin" / "deepspeed"
    parent.parent.mkdir()
    parent.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {script!r}, sys.argv[1]])\n"
    )
    root = str(ROOT)
    assert (
        subprocess.run(
            [sys.executable, parent, root], capture_output=True, text=True
        ).stdout.strip()
        == "1"
    )


def test_watch_reports_end_once():
    """The end of a watched process is reported exactly once, also as a zombie."""
    child = subprocess.Popen(["sleep", "60"])
    told, seen = [], threading.Event()
    watched = [psutil.Process(child.pid)]
    launcher_watch.watch(
        watched, lambda process: (told.append(process.pid), seen.set()), every_s=0.02
    )
    assert not seen.wait(0.2)
    child.kill()
    assert seen.wait(10), "a zombie counts as ended"
    child.wait()
    assert told == [child.pid]
