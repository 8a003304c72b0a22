"""What a report reads from a work dir, and what it says of damaged files."""

import hashlib

import pytest
import torch
from support import reported_run

from tiekd.models import confidence
from tiekd.models.confidence import Calibration
from tiekd.tools.report import records
from tiekd.workdir import weights_file


@pytest.fixture
def work_dir(tmp_path):
    return reported_run.make(tmp_path)


def test_read_finds_everything(work_dir):
    """Splits, teachers, environment, outcome, log and digest are those of the run."""
    weights = work_dir / "best_abs_rel.pth"
    found = records.read(work_dir, weights)
    train, val = found.splits
    assert (train.name, train.count, val.name, val.count) == ("train", 7, "val", 5)
    assert train.folders + val.folders == dict.fromkeys(reported_run.SEQUENCES, 4)
    assert (train.with_depth, val.with_depth) == (7, 5)
    pictures = work_dir.parent / "data" / "pictures"
    sizes = sum(path.stat().st_size for path in pictures.rglob("*.png"))
    assert train.num_bytes + val.num_bytes == sizes
    assert found.teachers == reported_run.TEACHERS
    assert found.environment == {"CPU": "test <cpu>", "PyTorch": "2"}
    assert (found.outcome.outcome, found.launch.world_size) == ("finished", 2)
    assert found.run.curve("loss", "iteration")[1][0] == 4.0
    assert found.weights_digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (found.iteration, found.temperature) == (8, None)
    assert found.left_out == []
    content = torch.load(weights, weights_only=True)
    record = Calibration(1.5, "ground truth")._asdict()
    weights_file.write_with(weights, content, weights, **{confidence.KEY: record})
    assert records.read(work_dir, weights).temperature == 1.5


def test_read_leaves_out_what_is_damaged(work_dir):
    """A damaged or missing record is named, and the others are read."""
    (work_dir / "inputs.json").write_text("{")
    (work_dir / "launch.json").unlink()
    (work_dir / "environment.txt").unlink()
    for log in work_dir.glob("*.log.json"):
        log.unlink()
    found = records.read(work_dir, work_dir / "best_abs_rel.pth")
    assert (found.splits, found.launch, found.run) == ([], None, None)
    assert found.environment == {}
    assert found.outcome.outcome == "finished"
    told = "\n".join(found.left_out)
    assert len(found.left_out) == 3
    for part in ("The record of the images: ", "Learning curves: ", "launch.json: is missing"):
        assert part in told
