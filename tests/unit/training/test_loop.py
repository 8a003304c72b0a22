"""The training loop: what is due when, an iteration's losses, learning rate and results."""

from types import SimpleNamespace

import pytest
import torch
from support.trajectory import Recorder, batches

from tiekd.data.target import Target
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.teachers.maps import CachedMaps
from tiekd.training import criterion
from tiekd.training.loop import train
from tiekd.training.state import TrainState


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
def test_train_state_due_last_and_ends(every, by, due):
    """The state is due at each interval and the end, and a stop reason ends it early."""
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


def test_train_averages_micro_batch_losses():
    """Each iteration has its own learning rate and the mean loss of its micro-batches."""
    head = Plain(3, 1e-3, 10.0, options=DpmOptions(num_bins=8, sigma=1.0))
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


@pytest.mark.parametrize(
    "terms", [{"dpm": {}}, {"dpm": {}, "silog": {}}, {"silog": {}}, {"mse": {}, "silog": {}}]
)
def test_train_skips_unused_divergence(terms):
    """The head's divergence is None unless a dpm loss reads it."""
    head = Plain(3, 1e-3, 10.0, options=DpmOptions(num_bins=8, sigma=1.0))
    state = TrainState(head, {}, None, "", 2, 1, 1, 1, True, step=head)
    schedule = SimpleNamespace(apply=lambda optimizer, iteration: ([], []))
    train(state, batches("mobilev2_DPM_nyu"), CachedMaps(), criterion.build(terms, True), schedule)
    assert head.weight.grad.abs().sum() > 0
    assert state.losses["loss"] > 0
    if "dpm" in terms:
        assert state.prediction.divergence.mean() > 0.1
    else:
        assert state.prediction.divergence is None


def test_train_learns_a_target_of_several_teachers():
    """The head learns a Target's mixture, and hooks and other losses get its mean."""
    head = Plain(3, 1e-3, 10.0, options=DpmOptions(num_bins=8, sigma=1.0))
    state = TrainState(head, {}, None, "", 2, 1, 1, 1, True, step=head)
    schedule = SimpleNamespace(apply=lambda optimizer, iteration: ([], []))
    loss = criterion.build({"dpm": {}, "mse": {}}, True)

    def teacher(batch):
        return Target(torch.cat((batch.teacher_depth, batch.teacher_depth / 2), 1))

    train(state, batches("mobilev2_DPM_nyu"), teacher, loss, schedule)
    first = next(batches("mobilev2_DPM_nyu"))
    torch.testing.assert_close(state.teacher_depth, first.teacher_depth * 0.75)
    mixture = state.prediction.divergence
    assert torch.equal(mixture, head(first.image, teacher(first)).divergence)
    assert not torch.allclose(mixture, head(first.image, state.teacher_depth).divergence)
