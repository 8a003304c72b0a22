"""Going on from a checkpoint: every rank gets back what it had, and the log stands where it stood."""

import json
import os
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from support import two_ranks

from tiekd.config.recipe import dump_recipe
from tiekd.data.loading.loader import Loading
from tiekd.distributed import process_group
from tiekd.engine import checkpoint
from tiekd.errors import CheckpointError, RecipeError, TeacherError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.teaching import with_teachers_file
from tiekd.training import resume
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.state import TrainState
from tiekd.workdir import checkpoints, weights_file

RECIPE = {"network": {"min_depth": 1.0}}


class Counter(Hook):
    def __init__(self, value: int):
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict) -> None:
        self.value = state_dict["value"]


def make_engine():
    from tiekd.engine.build import build_engine
    from tiekd.engine.config import resolve

    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
    return build_engine(network, optimizer, resolve({}, batch_size=2, clip_norm=1.0, world_size=2))


def make_state(work_dir, timestamp: str, values: list[int]) -> tuple[TrainState, TextLog]:
    log = TextLog(1)
    state = TrainState(
        make_engine(), RECIPE, work_dir, timestamp, 2, 1, 9, 9, True, [log, *map(Counter, values)]
    )
    log.open(work_dir, timestamp)
    return state, log


def test_where_nothing_was_saved_auto_means_the_beginning(tmp_path):
    for work_dir in (tmp_path / "none", tmp_path):
        path, notes = resume.checkpoint_path(work_dir, "auto")
        assert path is None
        assert notes == ["There was no checkpoint to go on from; the run begins"]
    (tmp_path / "checkpoints" / "iter_5").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from; passed over iter_5"):
        resume.checkpoint_path(tmp_path, "auto")


def draw() -> list[float]:
    return [*torch.rand(2).tolist(), *np.random.rand(2).tolist(), random.random()]


def stop_and_go_on(rank: int, work_dir) -> dict:
    """Two hooks of one class; a row of the log at iteration 3, where it is saved, and one after it."""
    import deepspeed

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    state, log = make_state(work_dir, "20240101_120000", [10 + rank, 20 + rank])
    process_group.seed_everything(rank, deterministic=False)
    log.write_json({"mode": "train", "iter": 3})
    names = ("TextLog", "Counter", "Counter_2")
    hook_states = {key: hook.state_dict() for key, hook in zip(names, state.hooks, strict=True)}
    path = checkpoint.save(state.engine, work_dir / checkpoints.FOLDER, 3, hook_states, RECIPE)
    drawn = draw()
    log.write_json({"mode": "train", "iter": 4})
    log.after_train(state)

    state, log = make_state(work_dir, "20240101_130000", [0, 0])
    process_group.seed_everything(99, deterministic=False)
    resume.restore(state, path, log)
    log.after_train(state)
    return {
        "iteration": state.iteration,
        "counters": [hook.value for hook in state.hooks[1:]],
        "drawn": drawn,
        "drawn again": draw(),
    }


@pytest.mark.processes
def test_every_rank_goes_on_with_what_it_had(tmp_path):
    ranks = two_ranks.run(stop_and_go_on, tmp_path, tmp_path)
    assert [rank["iteration"] for rank in ranks] == [3, 3]
    assert [rank["counters"] for rank in ranks] == [[10, 20], [11, 21]]
    assert ranks[0]["drawn"] != ranks[1]["drawn"]
    for rank in ranks:
        assert rank["drawn again"] == rank["drawn"]
    rows = [
        json.loads(line)
        for line in (tmp_path / "20240101_120000.log.json").read_text().splitlines()
    ]
    assert [row["iter"] for row in rows] == [3]


def test_the_teachers_file_is_named_in_a_new_recipe_and_stays_that_of_the_start(tmp_path):
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
    """What an evaluation's best of 0.1 is after a resume at an iteration, and the record of the inputs by then."""
    hook = Evaluation(EvaluationSettings(), [], None, torch.device("cpu"), Loading(), print)
    hook.best, now = 0.1, {"best_from": -1}
    state = TrainState(
        None, RECIPE, work_dir, "now", 2, 1, 9, 9, True, [Hook(), hook], iteration=iteration
    )
    resume.forget_other_best(state, started, now, accepted)
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
def test_a_best_from_before_an_accepted_change_is_forgotten(
    tmp_path, iteration, started, accepted, best, best_from
):
    weights_file.write_weights(tmp_path / "best_abs_rel.pth", {}, {}, 3)
    (tmp_path / ".best_abs_rel.pth.before").write_bytes(b"")
    assert best_after(iteration, started, accepted, tmp_path) == (best, {"best_from": best_from})
    left = {path.name for path in tmp_path.iterdir()}
    kept = {"best_abs_rel.pth", ".best_abs_rel.pth.before"}
    assert left == ({"abandoned_best_abs_rel.pth"} if accepted else kept)


def test_an_end_before_the_checkpoint_is_refused(monkeypatch, tmp_path):
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
