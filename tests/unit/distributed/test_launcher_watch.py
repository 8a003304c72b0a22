"""A rank that nobody would end any more, ends by itself."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tiekd.distributed import launcher_watch


def watched(**said: str) -> subprocess.CompletedProcess:
    """A process that looks for its launchers, of which the environment says that they are there."""
    code = (
        "from tiekd.distributed import launcher_watch; launcher_watch.watch_launchers(); "
        "print('goes on')"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | said, capture_output=True, text=True
    )


@pytest.fixture
def ended() -> str:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        pass
    return str(process.pid)


@pytest.mark.processes
def test_without_its_launcher_it_ends(ended):
    for said in (
        {launcher_watch.SUPERVISOR: ended},
        {"CROSS_RANK": "0"},
    ):  # DeepSpeed's launch.py says the latter
        result = watched(**said)
        assert (result.stdout, result.stderr, result.returncode) == ("", "", 1)


@pytest.mark.processes
def test_with_it_or_with_none_it_goes_on():
    for said in ({launcher_watch.SUPERVISOR: str(os.getpid())}, {}):
        assert watched(**said).stdout == "goes on\n"


@pytest.mark.parametrize(
    ("parent", "name", "group", "adopted"),
    [
        (1, "systemd", 70, True),
        (50, "systemd", 70, True),
        (1, "bash", 1, False),  # a container's first process, of whose job it is
        (1, "systemd", 80, False),  # a service, or started by hand
        (60, "bash", 70, False),
        (70, "deepspeed", 70, False),
    ],
)
def test_a_launch_that_lost_its_deepspeed_is_known(parent, name, group, adopted, monkeypatch):
    above = SimpleNamespace(pid=parent, name=lambda: name)
    launch = SimpleNamespace(
        pid=80,
        parent=lambda: above,
        cmdline=lambda: ["python", "-m", "deepspeed.launcher.launch", "x.py"],
    )
    monkeypatch.setattr(
        launcher_watch.os, "getpgid", {80: group, 50: 50, 60: 60, 70: 70, 1: 1}.__getitem__
    )
    assert launcher_watch._is_adopted(launch) is adopted
