"""The commands of the stages: as they are printed, and what a killed call has left running."""

import os

import psutil
import pytest

from tiekd import console
from tiekd.distributed import visible_devices
from tiekd.distributed.launcher_watch import SUPERVISOR
from tiekd.errors import LaunchError
from tiekd.tools.distill import commands
from tiekd.tools.distill.commands import Commands, ProgramResult

GONE = 2**22 + 1


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Commands whose processes are only noted, and the list of their command lines."""
    lines, told = [], []
    monkeypatch.setattr(commands, "run_once", lambda command, *_: lines.append(command) or 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Commands(tmp_path, 2, 3, ["--master_port=29511"], told.append), lines, told


def test_commands_train_by_launcher(started, monkeypatch):
    """A training is started by DeepSpeed's launcher, and printed as the user would type it."""
    monkeypatch.delenv(console.CONSOLE, raising=False)
    made, lines, told = started
    assert isinstance(made.run("train", ["my recipe.yaml"]), ProgramResult)
    assert lines[0][1:5] == [
        *("-m", "deepspeed.launcher.runner", "--master_port=29511", "--num_gpus=2"),
    ]
    assert lines[0][5].endswith("bin/train.py")
    assert told == [
        "$ OMP_NUM_THREADS=3 deepspeed --master_port=29511 --num_gpus=2 bin/train.py "
        "'my recipe.yaml'"
    ]
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_commands_are_printed_for_console(started, monkeypatch):
    """Within `tiekd distill` commands are those of `tiekd`."""
    monkeypatch.setenv(console.CONSOLE, "1")
    made, _, told = started
    made.run("cache-teacher", ["t.yaml"])
    made.run("check-data", ["t.yaml"])
    assert told == [
        "$ OMP_NUM_THREADS=3 tiekd cache-teacher t.yaml --master_port=29511 --num_gpus=2",
        "$ OMP_NUM_THREADS=3 tiekd check-data t.yaml",
    ]


def test_commands_of_one_rank_need_no_launcher(started):
    """On one rank only the training is started by the launcher."""
    made, lines, _ = started
    made.ranks = 1
    made.run("evaluate", ["r.yaml"])
    assert not any("deepspeed" in word for word in lines[0][1:2])
    made.run("train", ["r.yaml"])
    assert "deepspeed.launcher.runner" in lines[1]


def test_commands_train_on_visible_devices(started, monkeypatch):
    """A training gets the devices of CUDA_VISIBLE_DEVICES, as many as there are ranks."""
    monkeypatch.setattr(visible_devices, "_uuids", lambda: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,3")
    made, lines, _ = started
    made.run("train", ["r.yaml"])
    assert lines[0][3:6] == ["--include", "localhost:1,2", "--master_port=29511"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(LaunchError, match="^--num_gpus is 2, but CUDA_VISIBLE_DEVICES=7 lists 1"):
        made.launcher_options()


class Process:
    """A process that a supervisor has left."""

    pid = GONE

    def __init__(self, owner):
        self.owner = owner

    def status(self):
        return psutil.STATUS_RUNNING

    def environ(self):
        return {SUPERVISOR: str(self.owner)}


def test_commands_wait_for_leftovers(tmp_path, monkeypatch):
    """Processes of a killed call are waited for; those of another supervisor aren't."""
    (tmp_path / ".running.json").write_text('{"owner": 77}')
    left = [[Process(77), Process(78)], [Process(78)]]
    monkeypatch.setattr(psutil, "process_iter", lambda: left.pop(0))
    monkeypatch.setattr(commands.time, "sleep", lambda _s: None)
    told = []
    commands.wait_for_leftovers(tmp_path, told.append)
    assert told == [f"Waiting for process {GONE} of an earlier call to end"]
    assert not (tmp_path / ".running.json").exists()


def test_commands_give_up_leftovers(tmp_path, monkeypatch):
    """A process that doesn't end is named."""
    (tmp_path / ".running.json").write_text('{"owner": 77}')
    monkeypatch.setattr(psutil, "process_iter", lambda: [Process(77)])
    monkeypatch.setattr(commands, "_LEFTOVERS_LEAVE_S", -1.0)
    with pytest.raises(LaunchError, match=f"process {GONE} of an earlier call still runs"):
        commands.wait_for_leftovers(tmp_path, print)


def test_commands_wait_for_nothing(tmp_path):
    """Without a note, or with a damaged one, nothing is waited for."""
    commands.wait_for_leftovers(tmp_path, print)
    (tmp_path / ".running.json").write_text("[")
    commands.wait_for_leftovers(tmp_path, print)
