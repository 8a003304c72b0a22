"""Figures of which a stage makes a choice, and stages with a stand-in for the programs."""

import json

import pytest

from tiekd.config import shipped
from tiekd.errors import DataError, LaunchError
from tiekd.tools.distill import plan as plans
from tiekd.tools.distill import work
from tiekd.tools.distill.commands import Ended
from tiekd.tools.distill.work import Stopped, Work

REPORT = """Global batch: 16
Iterations: 12 an epoch, 1000 in all
Time per iteration: 0.500 s (0.4 to 0.6), of which 0.1 s waiting for data
Evaluations: 10 of 6.0 s each
ETA: 0:09:20 for training and evaluations
Peak memory: 1.20 GB of a rank's process
Disk: 89.5 MB a checkpoint, 10 are saved, 2 stay; with the best weights up to 0.29 GB, of 9 GB that
"""


class Programs:
    """Notes the commands, and ends each with a code."""

    def __init__(self, code=0):
        self.code = code
        self.asked = []
        self.ran = []

    def run(self, program, arguments, _folder=None):
        self.ran.append([program, *arguments])
        return Ended(self.code, 0.0, 0)


@pytest.fixture
def made(tmp_path):
    """The stages of a plan, with their commands and what they tell."""
    plan = plans.new({"images": "/x", "teacher": {"teacher": {"maps": "/m"}}, "epochs": 1}, 1)
    plan.image_size = [48, 64]
    (tmp_path / "images.json").write_text(json.dumps({"images": 20, "left_out": {}}))
    told = []
    found = Work(plan, tmp_path, Programs(), told.append)
    found.told = told
    return found


@pytest.mark.parametrize(
    ("images", "ranks", "batch"), [(1000, 1, 16), (12, 1, 9), (12, 2, 8), (12, 10, 10), (40, 3, 15)]
)
def test_work_batch_is_shared_by_ranks(images, ranks, batch):
    """A batch is 16 images, or fewer if there aren't as many, and a multiple of the ranks."""
    assert work.batch_size(images, ranks) == batch


def test_work_hours_leave_time_for_evaluations():
    """Iterations fill what the evaluations leave of the hours; too few are refused."""
    assert work.iterations_in(1.0, 0.5, 600.0) == 6000
    with pytest.raises(LaunchError, match="--hours 0.001: 0 iterations fit.* give 0.169 or more"):
        work.iterations_in(0.001, 0.5, 600.0)


def test_work_reads_dry_run():
    """Seconds of an iteration and of the evaluations, and the disk, are read from the report."""
    assert work.told_iteration(REPORT) == {
        "seconds_per_iteration": 0.5,
        "seconds_of_evaluations": 60.0,
        "seconds_of_training": 560.0,
        "disk_mb": 290.0,
    }
    assert work.told_iteration("LaunchError: no") is None


def test_work_leaves_out_stages_without_program(made, monkeypatch):
    """A stage whose program tiekd hasn't isn't listed."""
    there = dict.fromkeys([*shipped.programs(), "report"], "")
    there.pop("calibrate", None)
    monkeypatch.setattr(shipped, "programs", lambda: there)
    names = [stage.name for stage in made.stages()]
    assert names == ["data", "audit", "cache", "student", "train", "evaluate", "export", "report"]


def test_work_audit_stops(made):
    """A finding of the audit stops the command with code 1, unless it is accepted."""
    made.commands.code = work.FOUND
    with pytest.raises(Stopped, match="go on with --accept-audit") as stopped:
        made.audit()
    assert stopped.value.code == 1
    made.plan.audit = False
    made.audit()
    assert made.commands.ran[-1][-2:] == ["--frames", "20"]


def test_work_fails_with_code_of_program(made):
    """A program that fails ends the command with its code, and says how to continue."""
    made.commands.code = 2
    with pytest.raises(Stopped, match="train.* ended with code 2; when that is mended") as stopped:
        made.train()
    assert stopped.value.code == 2


def test_work_stops_when_asked(made):
    """A signal ends the command although the program ended well."""
    made.commands.asked.append(15)
    with pytest.raises(Stopped, match="the same command continues"):
        made.evaluate()


def test_work_caches_no_cached_maps(made):
    """A teacher of cached maps isn't cached again."""
    made.cache()
    assert made.commands.ran == []


def test_work_exports_for_most_images(made):
    """The exported file takes images of the most frequent size, and replaces an earlier one."""
    made.export()
    assert made.commands.ran[0][0] == "export"
    assert made.commands.ran[0][-4:] == ["--size", "48x64", "--overwrite", "--confidence"]


def test_work_drops_links_to_faulty_images(made):
    """Images that the check dropped lose their link, and are told and counted."""
    findings = [
        {"frame": "a.jpg", "kind": "unreadable", "dropped": True},
        {"frame": "a.jpg", "kind": "size", "dropped": True},
        {"frame": "b.jpg", "kind": "duplicate", "dropped": False},
    ]
    (made.out / "check").mkdir()
    (made.out / "check" / "report.json").write_text(json.dumps({"findings": findings}))
    (made.out / "images").mkdir()
    for name in "abcdefghijklm":
        (made.out / "images" / f"{name}.jpg").symlink_to(__file__)
    made._leave_out_faulty(work.images.Found())
    assert not (made.out / "images" / "a.jpg").is_symlink()
    assert made.images_left == 12
    assert made.told == ["left out: 1 file, faulty: unreadable (such as a.jpg)"]
    # One more, and too few are left.
    (made.out / "images" / "b.jpg").unlink()
    with pytest.raises(DataError, match="11 images are left; a distillation needs 12 or more"):
        made._leave_out_faulty(work.images.Found())
