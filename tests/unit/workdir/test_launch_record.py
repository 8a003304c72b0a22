"""Starting a run again on the ranks, devices and machines that it had.

Or on those of them that are chosen.
"""

import json
from pathlib import Path

import pytest
from support.launched_run import RECORD

from tiekd.errors import CheckpointError, LaunchError
from tiekd.workdir import launch_record


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
def test_launcher_options_repeat_ranks(change, given, expected):
    """The launcher gets the recorded ranks, devices and port unless options override them."""
    assert (
        launch_record.LaunchRecord(**(RECORD | change)).launcher_options(given, Path("work"))
        == expected
    )


@pytest.mark.parametrize("given", [[], ["--master_port=29501"]])
def test_launcher_options_need_hostfile(given):
    """A run on several unknown machines raises an error that asks for --hostfile."""
    with pytest.raises(LaunchError, match="4 ranks on several machines.*--hostfile"):
        launch_record.LaunchRecord(**(RECORD | {"world_size": 4})).launcher_options(
            given, Path("work")
        )


MACHINES = {
    "world_size": 3,
    "ranks_per_node": 1,
    "nodes": {"a": [0], "b": [0, 2]},
    "master_addr": "10.0.0.1",
}
SAME_MACHINES = ["--include=a:0@b:0,2", "--master_addr=10.0.0.1", "--master_port=29500"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["--hostfile={}", *SAME_MACHINES]),
        (["--launcher=openmpi"], ["--hostfile={}", *SAME_MACHINES, "--launcher=openmpi"]),
        (["--exclude=b"], ["--hostfile={}", "--master_port=29500", "--include=a:0"]),
        (["--exclude=a"], ["--hostfile={}", "--master_port=29500", "--include=b:0,2"]),
        (["--exclude=a@b:0"], ["--hostfile={}", "--master_port=29500", "--include=b:2"]),
        (["--exclude=c"], ["--hostfile={}", "--master_port=29500", "--exclude=c"]),
        (["--exclude=b:00"], ["--hostfile={}", "--master_port=29500", "--include=a:0@b:2"]),
        (["--exclude=b:0-2"], ["--hostfile={}", "--master_port=29500", "--exclude=b:0-2"]),
        (["--exclude=b:9"], ["--hostfile={}", "--master_port=29500", "--exclude=b:9"]),
        (["--exclude=b:"], ["--hostfile={}", "--master_port=29500", "--exclude=b:"]),
        (
            ["--include=a", "--exclude=b:0"],
            ["--hostfile={}", "--master_port=29500", "--include=a", "--exclude=b:0"],
        ),
        (["--exclude=a@b"], ["--hostfile={}", "--master_port=29500", "--exclude=a@b"]),
        (["--include=a"], ["--hostfile={}", "--master_port=29500", "--include=a"]),
        (["--hostfile=h"], ["--master_port=29500", "--hostfile=h"]),
        (["--num_gpus=2"], ["--master_port=29500", "--num_gpus=2"]),
        (["--include=localhost:1"], ["--master_port=29500", "--include=localhost:1"]),
    ],
)
def test_launcher_options_select_machines(given, expected, tmp_path):
    """A run on many machines uses its hostfile and those of them that options select."""
    (tmp_path / "hostfile").touch()
    options = launch_record.LaunchRecord(**(RECORD | MACHINES)).launcher_options(given, tmp_path)
    assert options == [option.format(tmp_path / "hostfile") for option in expected]


def test_launcher_options_reject_missing_hostfile(
    tmp_path,
):
    """A missing hostfile raises, since the launcher would use only the local machine."""
    with pytest.raises(LaunchError, match="hostfile, with the run's machines, is gone"):
        launch_record.LaunchRecord(**(RECORD | MACHINES)).launcher_options(
            ["--exclude=b"], tmp_path
        )


def test_read_rejects_folder_without_run(tmp_path):
    """A folder without a recorded run raises a CheckpointError."""
    with pytest.raises(CheckpointError, match="no run to resume here"):
        launch_record.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is missing"),
        ('{"recip', "can't be read as the record of a run's launch"),
        ("[]", "can't be read as the record of a run's launch"),
        (json.dumps(RECORD | {"world_size": "2"}), "can't be read as the record of a run's launch"),
    ],
)
def test_read_damaged_launch_record_names_it(content, told, tmp_path):
    """A run's missing or damaged launch.json is named, with what can be done."""
    (tmp_path / "config.yaml").touch()
    path = tmp_path / "launch.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError) as error:
        launch_record.read(tmp_path)
    assert str(error.value) == (
        f"{path}: {told}; put the run's own file back, or start a new run in another --work-dir "
        "with bin/train.py --resume-from and the newest checkpoint here"
    )
