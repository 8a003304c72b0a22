"""How a run is started again, and how a program ends."""

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
    assert launch.LaunchRecord(**(RECORD | change)).launcher_options(given) == expected


def test_a_run_of_many_machines_asks_on_which_to_go_on():
    with pytest.raises(LaunchError, match="4 ranks on several machines.*--hostfile"):
        launch.LaunchRecord(**(RECORD | {"world_size": 4})).launcher_options([])


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
