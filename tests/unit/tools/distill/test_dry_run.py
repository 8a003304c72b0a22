"""The estimates of --dry-run, from invented measurements."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiekd.tools.distill import dry_run, options
from tiekd.tools.distill import plan as plans
from tiekd.tools.distill.commands import ProgramResult
from tiekd.tools.distill.images import Found
from tiekd.tools.distill.work import Work

SECONDS = {"data": 10.0, "audit": 20.0, "cache": 15.0, "student": 30.0}
RESULTS = {
    name: ProgramResult(0, 1.0, 10**9) for name in ("check-data", "audit-teacher", "cache-teacher")
}


@pytest.fixture
def work(tmp_path):
    """A dry run with 11 images, of which each map took 0.5 s."""
    asked = {"images": "/x", "teacher": {"teacher": {"name": "stereo"}}, "epochs": 4}
    plan = plans.new(asked, threads=1)
    plan.image_size = [20, 30]
    plan.measured = {
        "seconds_per_iteration": 0.5,
        "seconds_of_evaluations": 20.0,
        "seconds_of_training": 60.0,
        "disk_mb": 300.0,
    }
    (tmp_path / "images.json").write_text(json.dumps({"images": 11, "left_out": {}}))
    for folder in ("maps", "images"):
        (tmp_path / folder).mkdir()
    for number in range(11):
        path = tmp_path / "maps" / f"{number}.png"
        path.write_bytes(bytes(1000))
        os.utime(path, (1000 + number / 2, 1000 + number / 2))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "images" / "0.png")
    return Work(plan, tmp_path, None, print)


def test_dry_run_extrapolates_what_grows(work):
    """Maps and epochs grow with the images, the audit and the choice of a student don't."""
    rows = {row.stage: row for row in dry_run.estimates(work, SECONDS, RESULTS, 111, 10)}
    assert rows["cache"].seconds == pytest.approx(15 + 100 * 0.5)
    assert rows["cache"].disk_bytes == pytest.approx(111 * 1000)
    assert rows["cache"].basis.startswith("11 maps made, 0.50 s")
    assert rows["train"].seconds == pytest.approx(60.0 * 111 / 11)
    assert rows["train"].disk_bytes == 3e8
    assert (rows["audit"].seconds, rows["student"].seconds) == (20.0, 30.0)
    assert rows["data"].seconds >= 10.0
    assert rows["data"].disk_bytes == pytest.approx(10 * 600 * 0.5)
    assert rows["export"].seconds is None


def test_dry_run_takes_hours_as_given(work):
    """A training of hours takes these hours."""
    work.plan.epochs, work.plan.hours = None, 2.0
    rows = {row.stage: row for row in dry_run.estimates(work, SECONDS, RESULTS, 111, 0)}
    assert rows["train"].seconds == 7200.0


def test_dry_run_table_says_what_is_unknown(work):
    """Unknown figures are question marks; the table says that all are estimates."""
    lines = dry_run.table(dry_run.estimates(work, SECONDS, RESULTS, 111, 0))
    assert [line.split()[0] for line in lines[1:-1]] == list(options.STAGES)
    assert lines[-3].split()[:4] == ["export", "?", "?", "?"]
    assert "every figure is an estimate" in lines[-1]


def test_dry_run_sample_is_spread():
    """At most 32 images are sampled, spread over all; with few images a video is added."""
    found = Found({f"{i:03}.png": Path(f"/x/{i:03}.png") for i in range(100)})
    sample = dry_run.sample_of(found, {"teacher": {"maps": "/m"}})
    assert len(sample) == 32
    assert (min(sample), max(sample)) == ("000.png", "099.png")


def test_dry_run_sample_keeps_pairs():
    """Of a second camera each sampled image has its right one."""
    names = [f"{side}/{i:03}.png" for side in ("left", "right") for i in range(50)]
    found = Found({name: Path(f"/x/{name}") for name in names})
    stereo = {"teacher": {"name": "stereo", "right": ["left/", "right/"]}}
    sample = dry_run.sample_of(found, stereo)
    lefts = {name for name in sample if name.startswith("left/")}
    assert len(lefts) == 32
    assert {name.replace("left", "right") for name in lefts} == sample.keys() - lefts


def test_dry_run_disk_of_folder_to_come(tmp_path):
    """The free disk is that of the nearest folder that exists."""
    assert dry_run.free_bytes(tmp_path / "a" / "b") > 0
