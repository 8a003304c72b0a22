"""Resuming from a checkpoint.

Every rank gets back what it had, and the log stands where it stood.
"""

from copy import deepcopy

import pytest
import torch

from tiekd.config.recipe import dump_recipe
from tiekd.data.loading.loader import Loading
from tiekd.engine import checkpoint
from tiekd.errors import CheckpointError, RecipeError, TeacherError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.teaching import with_teachers_file
from tiekd.training import resume
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.hook import Hook
from tiekd.training.hooks.early_stop import EarlyStop
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.state import TrainState
from tiekd.workdir import weights_file

RECIPE = {"network": {"min_depth": 1.0}}


def test_checkpoint_path_auto_without_checkpoint(tmp_path):
    """With auto, a run begins anew if nothing was saved and stops if no checkpoint is whole."""
    for work_dir in (tmp_path / "none", tmp_path):
        path, notes = resume.checkpoint_path(work_dir, "auto")
        assert path is None
        assert notes == ["There was no checkpoint to resume from; the run begins"]
    (tmp_path / "checkpoints" / "iter_5").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from; passed over iter_5"):
        resume.checkpoint_path(tmp_path, "auto")


def test_with_teachers_file_pins_checkpoint(tmp_path):
    """The teacher's resolved file is recorded at the start and reused by a resume."""
    weights, link, newer = tmp_path / "weights.pth", tmp_path / "best.pth", tmp_path / "newer.pth"
    weights.touch()
    newer.touch()
    link.symlink_to(weights)
    teacher = {"network": {"encoder": {"name": "resnet"}}, "checkpoint": str(link)}
    recipe = {"work_dir": str(tmp_path / "work"), "teacher": teacher}
    given = deepcopy(recipe)
    named = with_teachers_file(recipe, resuming=False)
    assert named == recipe | {"teacher": teacher | {"checkpoint": str(weights)}}
    assert recipe == given
    # The recipe says no file, and its own work dir has none: a resumed run takes that of its start.
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "config.yaml").write_text(dump_recipe(named))
    del teacher["checkpoint"]
    assert with_teachers_file(recipe, resuming=True) == named
    with pytest.raises(TeacherError):
        with_teachers_file(recipe, resuming=False)
    for other in (None, {"maps": "m"}, {"name": "mine.teacher", "network": {}}):
        recipe["teacher"] = other
        assert with_teachers_file(recipe, resuming=True) is recipe


def best_after(
    iteration: int, started: dict | None, accepted: bool, work_dir
) -> tuple[float | None, dict]:
    """Returns what an evaluation's best of 0.1 is after a resume at an iteration.

    Also the record of the inputs by then. The hook early_stop must forget its best likewise.
    """
    hook = Evaluation(EvaluationSettings(), [], None, torch.device("cpu"), Loading(), print)
    stop = EarlyStop(3, evaluation=EvaluationSettings())
    hook.best, stop.best, now = 0.1, 0.1, {"best_from": -1}
    state = TrainState(
        None, RECIPE, work_dir, "now", 2, 1, 9, 9, True, [Hook(), hook, stop], iteration=iteration
    )
    resume.forget_other_best(state, started, now, accepted)
    assert stop.best == hook.best
    return hook.best, now


@pytest.mark.parametrize(
    ("iteration", "started", "accepted", "best", "best_from"),
    [
        (6, {"best_from": -1}, False, 0.1, -1),
        (6, None, False, 0.1, -1),
        (6, {"best_from": -1}, True, None, 6),
        (
            6,
            {"best_from": 6},
            False,
            None,
            6,
        ),  # killed after an accepted resume, before its first checkpoint
        (4, {"best_from": 6}, False, None, 6),  # from an older checkpoint than the accepted one
        (8, {"best_from": 6}, False, 0.1, 6),
        (8, {"best_from": 6}, True, None, 8),
    ],
)
def test_forget_other_best_after_accepted_change(
    tmp_path, iteration, started, accepted, best, best_from
):
    """A best score from before an accepted change is forgotten and its weights set aside."""
    weights_file.write_weights(tmp_path / "best_abs_rel.pth", {}, {}, 3)
    (tmp_path / ".best_abs_rel.pth.before").write_bytes(b"")
    assert best_after(iteration, started, accepted, tmp_path) == (best, {"best_from": best_from})
    left = {path.name for path in tmp_path.iterdir()}
    kept = {"best_abs_rel.pth", ".best_abs_rel.pth.before"}
    assert left == ({"abandoned_best_abs_rel.pth"} if accepted else kept)


def test_restore_rejects_end_before_checkpoint(monkeypatch, tmp_path):
    """A run that would end before its checkpoint's iteration is rejected with the key to raise."""
    monkeypatch.setattr(checkpoint, "load", lambda _engine, _path: (10, {}))
    by_epoch = "train.epochs: 2 means 8 iterations in all.*; give train.epochs of 3 or more"
    by_iteration = (
        "train.iterations: 8 means 8 iterations in all.*; give train.iterations of 10 or more"
    )
    for key in (by_epoch, by_iteration):
        state = TrainState(None, RECIPE, tmp_path, "now", 2, 1, 4, 8, key == by_epoch)
        with pytest.raises(RecipeError, match=key):
            resume.restore(state, tmp_path / "iter_10", TextLog())
    state = TrainState(None, RECIPE, tmp_path, "now", 2, 1, 4, 10, False)
    resume.restore(state, tmp_path / "iter_10", TextLog())
    assert state.iteration == 10
