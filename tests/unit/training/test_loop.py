"""The training loop: six iterations of the published students through the engine.

And what it hands to the parts.
"""

import os
from types import SimpleNamespace

import pytest
import torch
from support import golden, two_ranks
from support import published_networks as published

from tiekd.data.batch import Batch
from tiekd.models.heads.dpm import Dpm
from tiekd.models.weights.state_dicts import to_published
from tiekd.teachers.maps import CachedMaps
from tiekd.training import criterion, schedules
from tiekd.training.hook import Hook
from tiekd.training.loop import train
from tiekd.training.state import TrainState

STUDENTS = ("resnet18_DPM_kitti", "mobilev2_DPM_nyu")
SHAPE = (2, 3, 64, 96)
# The published recipe but for its learning rate: at 1e-3 six steps are chaotic.
OPTIMIZER = {"name": "adamw", "lr": 2e-5, "betas": [0.95, 0.99], "weight_decay": 0.01}
SCHEDULE = {"name": "one_cycle", "div_factor": 25, "final_div_factor": 100}
LOSSES = {"dpm": {"weight": 1.0}, "ssim": {"weight": 9.0, "released": True}}


class Recorder(Hook):
    def __init__(self):
        self.rows = []

    def after_iteration(self, state):
        row = {
            "iteration": state.iteration,
            "loss": float(state.losses["loss"]),
            "grad_norm": float(state.grad_norm),
        }
        self.rows.append(row | {"lr": state.lr})


class Told(criterion.Criterion):
    """Records the iterations that it is told."""

    def forward(self, prediction, batch, teacher_depth, iteration=None):
        self.iterations = [*getattr(self, "iterations", []), iteration]
        return super().forward(prediction, batch, teacher_depth, iteration)


def batches(name: str):
    for i in range(6):
        image = golden.image(f"traj:{name}:{i}:img", SHAPE)
        teacher_depth = golden.depth(
            f"traj:{name}:{i}:kd_gt", (2, 1, 64, 96), 1e-3, published.max_depth_m(name)
        )
        nothing = torch.zeros_like(teacher_depth)
        yield Batch(
            image, nothing, nothing == 0, teacher_depth, torch.eye(3).expand(2, 3, 3), ["", ""]
        )


def follow(_rank: int) -> dict[str, dict]:
    """Trains each student for six iterations as a run does.

    Returns the rows, the weights and the depth of the first batch afterwards.
    """
    import deepspeed

    from tiekd.engine import full_state
    from tiekd.engine.build import build_engine
    from tiekd.engine.config import resolve
    from tiekd.engine.step import Step
    from tiekd.training.optimizer import build_optimizer

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    results = {}
    for name in STUDENTS:
        config = resolve({}, batch_size=2, clip_norm=35.0, world_size=1)
        network = published.network(name)
        engine = build_engine(network, build_optimizer(OPTIMIZER, network, 2, "none"), config)
        schedule = schedules.build(
            SCHEDULE, base_lr=2e-5, base_momentum=0.95, total_iterations=6, iterations_per_epoch=6
        )
        told, recorder = Told(criterion.build(LOSSES, True).terms), Recorder()
        step = Step(engine, config, 35.0)
        state = TrainState(engine, {}, None, "", 2, 1, 6, 6, True, hooks=[recorder], step=step)
        train(state, batches(name), CachedMaps(), told, schedule)
        assert told.iterations == [0, 1, 2, 3, 4, 5]
        norms = {
            key: float(value.double().norm())
            for key, value in to_published(full_state.weights(engine)).items()
        }
        with torch.no_grad():
            depth = engine.module.eval()(next(batches(name)).image).depth
        results[name] = {"rows": recorder.rows, "norms": norms, "depth": depth}
    return results


class Plain(Dpm):
    """A DPM head of the image's own three channels, with the members that the loop uses.

    They are those of an engine and of a step.
    """

    optimizer = None

    def forward(self, image, target_depth=None, counted=None):
        return super().forward(image, image.shape[2:], target_depth)

    def backward(self, loss):
        loss.backward()
        return 1.0


@pytest.mark.parametrize(
    ("every", "by", "due"),
    [
        (1, "epoch", [4, 8]),
        (2, "epoch", [8]),
        (3, "iteration", [3, 6, 9]),
        (1, "iteration", list(range(1, 11))),
    ],
)
def test_a_state_says_what_is_due_and_where_the_run_ends(every, by, due):
    state = TrainState(
        None, {}, None, "", 2, 1, iterations_per_epoch=4, total_iterations=10, by_epoch=True
    )
    found, last = [], []
    for state.iteration in range(1, 11):
        found += [state.iteration] if state.is_due(every, by) else []
        last += [state.iteration] if state.is_last else []
        assert state.ends == state.is_last
    assert found == due
    assert last == [10]
    state.iteration, state.stop_reason = 3, "asked to"
    assert state.ends
    assert not state.is_last


def test_an_iteration_has_its_own_learning_rate_and_the_mean_of_its_micro_batches_losses():
    head = Plain(3, 1e-3, 10.0, num_bins=8, sigma=1.0)
    loss = criterion.build({"silog": {}}, True)
    state = TrainState(head, {}, None, "", 4, 2, 3, 3, True, hooks=[Recorder()], step=head)
    schedule = SimpleNamespace(apply=lambda optimizer, iteration: ([0.1 * iteration], [0.9]))
    train(state, batches("mobilev2_DPM_nyu"), CachedMaps(), loss, schedule)
    rows = state.hooks[0].rows
    assert [(row["iteration"], row["lr"]) for row in rows] == [(1, [0.0]), (2, [0.1]), (3, [0.2])]
    alone = [
        loss(head(b.image), b, b.teacher_depth)["loss"].item() for b in batches("mobilev2_DPM_nyu")
    ]
    means = [(first + second) / 2 for first, second in zip(alone[::2], alone[1::2], strict=True)]
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-5)


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> dict[str, dict]:
    return two_ranks.run(follow, tmp_path_factory.mktemp("rank"), world_size=1)[0]


@pytest.mark.processes
@pytest.mark.parametrize("name", STUDENTS)
def test_six_iterations_follow_the_published_trajectory(followed, name):
    got, expected = followed[name], published.cases()["trajectories"][name]
    assert [row["iteration"] for row in got["rows"]] == [1, 2, 3, 4, 5, 6]
    for row, want in zip(got["rows"], expected["iterations"], strict=True):
        assert row["lr"] == pytest.approx([want["lr"]], rel=1e-9)
        assert row["loss"] == pytest.approx(want["loss"], rel=2e-4)
        assert row["grad_norm"] == pytest.approx(want["grad_norm"], rel=3e-2)
    living = {
        key: norm
        for key, norm in expected["l2_after"].items()
        if key not in published.dropped_from(name)
    }
    assert len(living) > 100
    for key, norm in living.items():
        assert got["norms"][key] == pytest.approx(norm, rel=1e-3), key
    want = torch.from_numpy(published.arrays()[f"trajectory_{name}:depth"])
    assert (got["depth"] - want).abs().max() <= 2e-3 * want.max()


@pytest.mark.parametrize(
    "terms", [{"dpm": {}}, {"dpm": {}, "silog": {}}, {"silog": {}}, {"mse": {}, "silog": {}}]
)
def test_the_divergence_is_computed_only_where_a_loss_reads_it(terms):
    head = Plain(3, 1e-3, 10.0, num_bins=8, sigma=1.0)
    state = TrainState(head, {}, None, "", 2, 1, 1, 1, True, step=head)
    schedule = SimpleNamespace(apply=lambda optimizer, iteration: ([], []))
    train(state, batches("mobilev2_DPM_nyu"), CachedMaps(), criterion.build(terms, True), schedule)
    assert head.weight.grad.abs().sum() > 0
    assert state.losses["loss"] > 0
    if "dpm" in terms:
        assert state.prediction.divergence.mean() > 0.1
    else:
        assert state.prediction.divergence is None
