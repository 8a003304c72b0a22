"""How a run is started again, and how a program ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiekd import launch
from tiekd.errors import CheckpointError, DataError, LaunchError

RECORD = {
    "recipe": "r.yaml", "launcher": "deepspeed", "world_size": 2, "ranks_per_node": 2, "visible_devices": "0,1",
    "master_port": 29500, "folder": ".",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "given", "expected"),
    [
        ({}, [], ["--num_gpus=2", "--master_port=29500"]),
        ({"visible_devices": "4,5"}, [], ["--include=localhost:4,5", "--master_port=29500"]),
        ({"visible_devices": "4,5"}, ["--num_gpus=1"], ["--master_port=29500", "--num_gpus=1"]),
        ({}, ["--master_port=29501"], ["--num_gpus=2", "--master_port=29501"]),
        ({"world_size": 4}, ["--hostfile=h"], ["--master_port=29500", "--hostfile=h"]),
    ],
)
def test_the_launcher_starts_the_same_ranks_unless_told_otherwise(change, given, expected):
    assert launch.LaunchRecord(**(RECORD | change)).launcher_options(given, Path("work")) == expected


@pytest.mark.parametrize("given", [[], ["--master_port=29501"]])
def test_a_run_of_unknown_machines_asks_on_which_to_go_on(given):
    with pytest.raises(LaunchError, match="4 ranks on several machines.*--hostfile"):
        launch.LaunchRecord(**(RECORD | {"world_size": 4})).launcher_options(given, Path("work"))


MACHINES = {"world_size": 3, "ranks_per_node": 1, "nodes": {"a": [0], "b": [0, 2]}, "master_addr": "10.0.0.1"}
SAME_MACHINES = ["--include=a:0@b:0,2", "--master_addr=10.0.0.1", "--master_port=29500"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["--hostfile={}", *SAME_MACHINES]),
        (["--launcher=openmpi"], ["--hostfile={}", *SAME_MACHINES, "--launcher=openmpi"]),
        (["--exclude=b"], ["--hostfile={}", "--master_port=29500", "--exclude=b"]),
        (["--include=a"], ["--hostfile={}", "--master_port=29500", "--include=a"]),
        (["--hostfile=h"], ["--master_port=29500", "--hostfile=h"]),
        (["--num_gpus=2"], ["--master_port=29500", "--num_gpus=2"]),
        (["--include=localhost:1"], ["--master_port=29500", "--include=localhost:1"]),
    ],
)
def test_a_run_of_many_machines_goes_on_on_those_of_them_that_are_chosen(given, expected, tmp_path):
    (tmp_path / "hostfile").touch()
    options = launch.LaunchRecord(**(RECORD | MACHINES)).launcher_options(given, tmp_path)
    assert options == [option.format(tmp_path / "hostfile") for option in expected]


def test_the_launcher_is_not_started_without_its_hostfile_for_it_would_take_this_machine_alone(tmp_path):
    with pytest.raises(LaunchError, match="hostfile, with the run's machines, is gone"):
        launch.LaunchRecord(**(RECORD | MACHINES)).launcher_options(["--exclude=b"], tmp_path)


def test_a_folder_without_a_run_is_no_work_dir(tmp_path):
    with pytest.raises(CheckpointError, match="no run to resume here"):
        launch.read_record(tmp_path)


def test_a_mistake_is_one_line_and_code_2_and_a_fault_is_not_hidden(capsys, monkeypatch):
    monkeypatch.delenv("TIEKD_DEBUG", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def mistaken():
        raise DataError("x.png: torn\nin the middle")

    assert launch.run(mistaken) == 2
    assert capsys.readouterr().err == "DataError: x.png: torn in the middle\n"

    def faulty():
        raise KeyError("ours")

    with pytest.raises(KeyError):
        launch.run(faulty)
    monkeypatch.setenv("TIEKD_DEBUG", "1")
    assert launch.run(mistaken) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("ranks", "code"), [(1, 0), (2, 0), (2, launch.STOPPED_CODE), (1, 2)])
def test_a_program_ends_with_its_code_and_loses_nothing(ranks, code, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"""
import atexit, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiekd import launch
from tiekd.errors import DataError

def main():
    launch.start_rank()
    atexit.register(print, "the end")
    print("all but")
    if {code} == launch.STOPPED_CODE:
        raise launch.Stopped("asked to")
    if {code} == 2:
        raise DataError("torn")

launch.program(main)
""")
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_PORT": str(launch._free_port())}
    places = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    command = [sys.executable, program]
    processes = [
        subprocess.Popen(command, env=os.environ | {"MASTER_ADDR": "127.0.0.1", **place}, stdout=subprocess.PIPE)
        for place in places
    ]
    told = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [code] * ranks
    assert all(text.endswith("all but\nthe end\n") for text in told)
