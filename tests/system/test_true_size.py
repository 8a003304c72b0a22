"""The published student at its true size makes a full step on two CPU ranks within 20 GB."""

import time
from pathlib import Path

import pytest
import yaml
from support import programs, recipes

LIMIT_GB = 20.0


@pytest.mark.long
def test_published_student_step_fits_20_gb(ground, tmp_path, capsys):
    """A training step of the published student on two CPU ranks stays below 20 GB."""
    network = (
        programs.ROOT / "model_configs" / "_base_" / "networks" / "mobilenet_v2_dpm_kitti.yaml"
    )
    recipe = recipes.recipe(ground, batch_size=2, iterations=1)
    recipe["network"] = yaml.safe_load(network.read_text())["network"]
    recipe["losses"] = {"dpm": {"weight": 1.0}, "depth": {"name": "ssim", "weight": 9.0}}
    recipe["data"] |= {
        "root": str(tmp_path / "scenes"),
        "height": 376,
        "width": 1240,
        "num_train": 2,
        "num_val": 1,
    }
    recipe["data"]["augment"] = {"crop": [352, 704]}
    recipe["tensorboard"] = {"image_interval": 0}
    path = recipes.write_recipe(tmp_path / "recipe.yaml", recipe)
    command = [
        *programs.deepspeed(2),
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        tmp_path / "work",
    ]
    peak_gb = 0.0
    with programs.Program(command) as program:
        while program.process.poll() is None:
            peak_gb = max(peak_gb, group_gb(program.process.pid))
            time.sleep(0.1)
        result = program.result()
    assert result.code == 0, result.stderr[-3000:]
    assert len(programs.recorded(tmp_path / "work")) == 1
    with capsys.disabled():
        print(f"\n{peak_gb:.1f} GB over launcher and two ranks")
    assert 1.0 < peak_gb < LIMIT_GB, f"{peak_gb:.1f} GB over all ranks"


def group_gb(session: int) -> float:
    """Resident memory of all processes of a session."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            pages += int(fields[21])
    return pages * 4096 / 1e9
