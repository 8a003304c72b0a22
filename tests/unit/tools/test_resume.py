"""What bin/resume refuses before it looks for a run."""

import argparse
import json
import os

import pytest

from tiekd.distributed import visible_devices
from tiekd.errors import LaunchError
from tiekd.tools import resume
from tiekd.workdir import launch_record


def test_run_negative_restarts_refused(tmp_path):
    """A negative --restarts is refused, also where the run is finished."""
    args = argparse.Namespace(work_dir=tmp_path, restarts=-1)
    with pytest.raises(LaunchError, match="^--restarts -1: give how often, from 0$"):
        resume.run([], [], args, "bin/resume")


def test_run_missing_engine_config_named(tmp_path, monkeypatch):
    """A missing ds_config.json is named as the run's file, not as an option that wasn't given."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(resume, "recipe_from_arguments", lambda path, args: {})
    record = {"recipe": "r.yaml", "launcher": "python", "world_size": 1, "ranks_per_node": 1}
    record |= {"visible_devices": None, "master_port": 25300, "folder": "."}
    (tmp_path / "launch.json").write_text(json.dumps(record))
    args = argparse.Namespace(
        work_dir=tmp_path, restarts=0, overrides=["a=1"], deepspeed_config=None
    )
    with pytest.raises(LaunchError) as error:
        resume.run([], [], args, "bin/resume")
    assert str(error.value) == (
        f"{tmp_path / 'ds_config.json'}: the run's engine config is missing; put it back, or give "
        "one with --deepspeed_config"
    )


def test_run_number_of_gpus_means_visible_devices(tmp_path, monkeypatch):
    """--num_gpus takes the devices of CUDA_VISIBLE_DEVICES; without it the last launch's stay."""
    launched = []
    monkeypatch.setattr(
        launch_record, "replace_by_launcher", lambda options, *_: launched.append(options) or 1 / 0
    )
    monkeypatch.setattr(visible_devices, "_uuids", lambda: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
    monkeypatch.delenv("RANK", raising=False)
    record = {"recipe": "r.yaml", "launcher": "deepspeed", "world_size": 2, "ranks_per_node": 2}
    record |= {"visible_devices": "0,1", "master_port": 25300, "folder": "."}
    (tmp_path / "launch.json").write_text(json.dumps(record))
    args = argparse.Namespace(work_dir=tmp_path, restarts=0, overrides=[])
    for given in (["--num_gpus=2"], []):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
        with pytest.raises(ZeroDivisionError):
            resume.run(given, [], args, "bin/resume")
    assert launched == [
        ["--include", "localhost:2,3", "--master_port=25300"],
        ["--num_gpus=2", "--master_port=25300"],
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(LaunchError, match="^--num_gpus is 2, but CUDA_VISIBLE_DEVICES=2 lists 1"):
        resume.run(["--num_gpus=2"], [], args, "bin/resume")


def test_run_without_launcher_keeps_its_device(tmp_path, monkeypatch):
    """A run that was started without the launcher resumes on its GPU, unless the user says."""
    seen = []
    monkeypatch.setattr(
        resume,
        "recipe_from_arguments",
        lambda *_: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")) or 1 / 0,
    )
    monkeypatch.setattr(visible_devices, "_uuids", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.delenv("RANK", raising=False)
    args = argparse.Namespace(work_dir=tmp_path, restarts=0, overrides=[])
    record = {"recipe": "r.yaml", "launcher": "python", "world_size": 1, "ranks_per_node": 1}
    for started, now in (("1", None), ("1", "0"), (None, None), ("MIG-a", None)):
        known = record | {"visible_devices": started, "master_port": 25300, "folder": "."}
        (tmp_path / "launch.json").write_text(json.dumps(known))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", now or "")
        if now is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        with pytest.raises(ZeroDivisionError):
            resume.run([], [], args, "bin/resume")
    assert seen == ["1", "0", None, "MIG-a"]
    (tmp_path / "launch.json").write_text(json.dumps(known | {"visible_devices": "4"}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(LaunchError, match=r"machine has 2 GPUs, 0 to 1; the run was started with"):
        resume.run([], [], args, "bin/resume")
