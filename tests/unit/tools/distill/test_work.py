"""Figures of which a stage makes a choice, and stages with a stand-in for the programs."""

import json

import pytest

from tiekd.errors import DataError, LaunchError
from tiekd.tools.distill import options, work
from tiekd.tools.distill import plan as plans
from tiekd.tools.distill.commands import ProgramResult
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
        self.received_signals = []
        self.ran = []

    def run(self, program, arguments, _folder=None):
        self.ran.append([program, *arguments])
        return ProgramResult(self.code, 0.0, 0)


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
    assert work.iteration_in_report(REPORT) == {
        "seconds_per_iteration": 0.5,
        "seconds_of_evaluations": 60.0,
        "seconds_of_training": 560.0,
        "disk_mb": 290.0,
    }
    assert work.iteration_in_report("LaunchError: no") is None


def test_work_stages_are_those_of_until(made):
    """The stages are those that --until takes, in their order."""
    assert [stage.name for stage in made.stages()] == list(options.STAGES)


def test_work_exports_calibrated_weights_again(made):
    """A temperature that the weights get changes what export and report read, nothing earlier."""
    weights = made.out / "run" / "best_abs_rel.pth"
    weights.parent.mkdir()
    keys = []
    for content in (b"plain", b"with a temperature"):
        weights.write_bytes(content)
        keys.append({stage.name: stage.fingerprint_inputs() for stage in made.stages()[4:]})
    changed = [name for name in keys[0] if keys[0][name] != keys[1][name]]
    assert changed == ["export", "report"]
    (weights.parent / "confidence.json").write_text("{}")
    assert made.stages()[-1].fingerprint_inputs() != keys[1]["report"]


def test_work_exports_without_calibration(made):
    """What can't be calibrated is told and exported all the same; a failure ends the command."""
    made.commands.code = 2
    made.calibrate()
    assert made.told[-1].startswith("WARNING: the confidence isn't calibrated")
    made.commands.code = 0
    made.calibrate()
    assert len(made.told) == 1
    made.commands.code = 3
    with pytest.raises(Stopped):
        made.calibrate()


def test_work_reads_data_by_unit_of_depth(made, monkeypatch):
    """A unit that is edited in the plan reaches the recipe of the audit, too."""
    monkeypatch.setattr(work.images, "find", lambda *_: work.images.Found())
    before = made._data_key()
    assert made._data_key() == before
    made.plan.depth_unit = 256.0
    assert made._data_key() != before


def test_work_audit_stops(made):
    """A finding of the audit stops the command with code 1, unless it is accepted."""
    made.commands.code = work.FOUND
    with pytest.raises(Stopped, match="go on with --accept-audit") as stopped:
        made.audit()
    assert stopped.value.code == 1
    made.plan.audit = False
    made.audit()
    assert made.commands.ran[-1][-2:] == ["--frames", "20"]


def test_work_keeps_edited_recipe(made):
    """A recipe that was edited isn't lost when another plan writes it anew."""
    made.plan.size, made.plan.batch_size, made.plan.resize_mode = [64, 96], 4, "stretch"
    recipe = made.out / "recipe.yaml"
    made.student()
    made.student()
    assert list(made.out.glob("abandoned*")) == []
    recipe.write_text("edited: true")
    made.student()
    assert (made.out / "abandoned_recipe.yaml").read_text() == "edited: true"
    assert "abandoned_recipe.yaml" in made.told[-1]
    assert "edited: true" not in recipe.read_text()


def test_work_fails_with_code_of_program(made):
    """A program that fails ends the command with its code, and says how to continue."""
    made.commands.code = 2
    with pytest.raises(Stopped, match="train.* ended with code 2; when that is mended") as stopped:
        made.train()
    assert stopped.value.code == 2


def test_work_stops_when_asked(made):
    """A signal ends the command although the program ended well."""
    made.commands.received_signals.append(15)
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


def test_work_removes_partial_exports(made):
    """The partial files of exports that were killed don't stay in the folder."""
    names = {f".4711.{made.exported.name}", made.exported.name, ".4711.other"}
    for name in names:
        (made.out / name).touch()
    made.export()
    left = {path.name for path in made.out.iterdir()}
    assert names & left == {made.exported.name, ".4711.other"}


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
