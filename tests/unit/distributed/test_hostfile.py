"""Machines that the launcher is told are checked by name.

It would go on with this machine alone where it doesn't know one.
"""

import json
import os

import pytest
from support.launched_run import RECORD

from tiekd.distributed import comm, entrypoint, hostfile, launcher_watch
from tiekd.errors import LaunchError
from tiekd.training import startup_log
from tiekd.workdir import launch_record


@pytest.fixture(autouse=True)
def no_default(monkeypatch, tmp_path):
    monkeypatch.setattr(hostfile, "DEFAULT", tmp_path / "none")


def test_read_hostfile_machines_and_slots(tmp_path):
    """`read` gives the slots of each machine and ignores comments and blank lines."""
    (tmp_path / "hosts").write_text("# ours\n\nnode1 slots=4\n node-2.lan   slots=2 # half of it\n")
    assert hostfile.read(tmp_path / "hosts") == {"node1": 4, "node-2.lan": 2}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no such file"),
        ("", "no machine is in it"),
        ("# node1 slots=4\n", "no machine is in it"),
        ("node1\n", "line 1 is 'node1'"),
        ("node1 slots=two\n", "line 1 is 'node1 slots=two'"),
        ("node1 slots=4\nnode1 slots=4\n", "line 2 names node1 again"),
        ("node1 slots=4\nnode2 slots=0\n", "line 2 gives node2 no slots"),
        (b"\xff\xfe", "can't be read"),
        ("folder", "a folder"),
        ("pipe", "a pipe"),
    ],
)
def test_read_hostfile_invalid_is_one_line_error(text, told, tmp_path):
    """An invalid hostfile raises a LaunchError of one line with path and reason."""
    path = tmp_path / "hosts"
    if text in ("folder", "pipe"):
        path.mkdir() if text == "folder" else os.mkfifo(path)
    elif text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LaunchError) as error:
        hostfile.read(path)
    assert str(error.value).startswith(f"--hostfile {path}: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], None),
        (["--num_gpus=2", "--master_port=29500"], None),
        (["--include=localhost:4,5"], None),
        (["--hostfile=HOSTS", "--include=node1:0@node2"], None),
        (["--hostfile=HOSTS", "--exclude=node2:1"], None),
        (["--hostfile=HOSTS", "--num_nodes=2"], None),
        (["--hostfile=typo"], "--hostfile typo: no such file"),
        (
            ["--hostfile=HOSTS", "--include=nod1"],
            "--include nod1: no machine is called 'nod1'; there are node1, node2",
        ),
        (
            ["--hostfile=HOSTS", "--exclude=node2:2"],
            "--exclude node2:2: node2 has 2 devices, 0 to 1",
        ),
        (["--hostfile=HOSTS", "--include=node1:0,x"], "'x' is no device"),
        (["--hostfile=HOSTS", "--num_nodes=3"], "--num_nodes 3: HOSTS has 2"),
        (["--include=node1:0"], "no machine is called 'node1'; there are localhost"),
        (["--num_nodes=2"], "--num_nodes 2: without --hostfile there is one"),
        (["--include=localhost:0", "--num_gpus=1"], "--include can't be combined with --num_gpus"),
        (
            ["--include=localhost:0", "--exclude=localhost:1"],
            "--include and --exclude can't be combined",
        ),
        (["--num_gpus=0"], "--num_gpus: got '0'"),
        (["--num_gpus=-1"], "--num_gpus: got '-1'"),
        (["--num_nodes=two"], "--num_nodes: got 'two'"),
        (["--master_port=abc"], "--master_port: got 'abc'"),
    ],
)
def test_check_options_against_machines(options, told, tmp_path, monkeypatch):
    """Launcher options that contradict the hostfile or each other raise a LaunchError."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "HOSTS").write_text("node1 slots=1\nnode2 slots=2\n")
    if told is None:
        assert hostfile.check_options(options) is None
        return
    with pytest.raises(LaunchError) as error:
        hostfile.check_options(options)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("now", "said"), [(2, None), (1, "if that isn't meant, stop it"), (3, "resumes on 3")]
)
def test_startup_log_warns_of_changed_world_size(now, said, tmp_path, monkeypatch):
    """At resume the startup log says when the number of ranks has changed."""
    assert startup_log.rank_warning(tmp_path) == []
    (tmp_path / launch_record.RECORD).write_text(json.dumps(RECORD))
    monkeypatch.setattr(comm, "world_size", lambda: now)
    told = startup_log.rank_warning(tmp_path)
    assert (
        (told == [])
        if said is None
        else (told[0].startswith("The run was started on 2 ranks") and said in told[0])
    )


def test_check_hostfile_refuses_a_file_that_is_not_there(monkeypatch, tmp_path):
    """A hostfile that the launcher was told must be there; without one nothing is checked."""
    assert entrypoint._check_hostfile() is None, "no launcher is above the tests"
    monkeypatch.setattr(launcher_watch, "launcher_hostfile", lambda: tmp_path / "typo")
    with pytest.raises(LaunchError, match="typo: no such file"):
        entrypoint._check_hostfile()
