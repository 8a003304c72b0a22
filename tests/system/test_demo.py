"""The README's first command, whole: three trainings, a table, an image."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_demo_beats_mean_map(tmp_path):
    """The demo's student and teacher beat the mean map, and a second call only evaluates."""
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    for name in tracked:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PORT": "29571"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    started = time.monotonic()
    demo = subprocess.run(
        ["bin/demo"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert demo.returncode == 0, demo.stderr
    found = json.loads((checkout / "work_dirs/demo/comparison.json").read_text())
    figures = {name: network["metrics"] for name, network in found["networks"].items()}
    limit = 0.8 * figures["mean map"]["abs_rel"]
    assert figures["demo"]["abs_rel"] <= limit
    assert figures["demo_teacher"]["abs_rel"] <= limit
    for name in ("mean map", "demo", "demo_teacher", "demo_baseline"):
        assert f"{figures[name]['abs_rel']:.4f}" in demo.stdout
    panel = np.asarray(Image.open(checkout / "work_dirs/demo/panel.png"))
    assert panel.shape[1] > 1000
    assert panel.std() > 30

    # A second time there is nothing left to train: it only evaluates, with the same figures.
    again = subprocess.run(
        ["bin/demo"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((checkout / "work_dirs/demo/comparison.json").read_text()) == found
    assert time.monotonic() - started < 1500
