"""A run in which no training pixel counts ends with the reason.

One that has some is left alone.
"""

from types import SimpleNamespace

import pytest
import torch
from support.counted_run import iterate, start

from tiekd.errors import DataError


def iterate_often(hook, state, count, **values):
    for _ in range(count):
        iterate(hook, state, **values)


def ends_at(hook, state, count=300, **values) -> tuple[int, str]:
    with pytest.raises(DataError) as caught:
        iterate_often(hook, state, count, **values)
    assert "\n" not in str(caught.value)
    return state.iteration, str(caught.value)


@pytest.mark.parametrize(
    ("interval", "values", "expected"),
    [
        (50, {}, 50),  # a window of the log
        (50, {"iterations_per_epoch": 7}, 7),  # an epoch, which is a window, too
        (50, {"iterations_per_epoch": 7, "by_epoch": False}, 7),
        (2, {"batch_size": 16}, 8),  # the first window with 100 samples
        (1, {"batch_size": 4, "iterations_per_epoch": 3}, 3),
        (50, {"total_iterations": 3, "by_epoch": False}, 3),  # the run's end
    ],
)
def test_pixels_count_ends_after_window_or_epoch(tmp_path, interval, values, expected):
    """Losses of exactly 0 end the run after a full window or the first epoch."""
    iteration, message = ends_at(*start(tmp_path, interval, **values))
    assert iteration == expected
    assert message.startswith(
        f"no training pixel counts: every loss was exactly 0 for {expected} iterations"
    )
    assert (
        "(a.jpg, b.jpg) not one of 24 pixels has a depth; check data.depths, data.depth_unit"
        in message
    )
    assert message in (tmp_path / "now.log").read_text()


def test_pixels_count_names_depths_out_of_range(tmp_path):
    """The error states the largest depth if depths exist but no loss uses them."""
    _, message = ends_at(*start(tmp_path, 50), depth=2500.0)
    assert "24 of 24 pixels have a depth, up to 2500 m, but no loss counts one of them" in message


@pytest.mark.parametrize("loss", [0.25, float("nan"), -1.0])
def test_pixels_count_one_loss_disables_check(tmp_path, loss):
    """One nonzero loss in the first window disables the check for the rest of the run."""
    hook, state = start(tmp_path, 4, batch_size=32)
    for number in range(100):
        iterate(hook, state, loss if number == 2 else 0.0)
    assert "no training pixel counts" not in (tmp_path / "now.log").read_text()


def test_pixels_count_ignores_early_stop(tmp_path):
    """A run stopped before a full window raises nothing."""
    hook, state = start(tmp_path, 50, total_iterations=3, stop_reason="SIGTERM came")
    for _ in range(3):
        iterate(hook, state)
    assert "no training pixel counts" not in (tmp_path / "now.log").read_text()


def test_pixels_count_between_lines_reads_no_tensor(tmp_path):
    """Iterations between lines read no tensor's value, which would wait for the device."""
    hook, state = start(tmp_path, 50)
    nothing = torch.zeros((), device="meta")  # reading its value raises
    for _ in range(49):
        state.iteration += 1
        state.micro_losses = [{"loss": nothing}]
        hook.after_iteration(state)
    assert hook._was_nonzero.device.type == "meta", "found on the device, and not read yet"


@pytest.mark.parametrize(
    ("teacher", "advice"),
    [(None, "or train with a teacher"), ({"maps": "maps"}, "check the teacher's depth, such as")],
)
def test_pixels_count_warns_of_one_empty_loss(tmp_path, teacher, advice):
    """A loss that counts no pixel beside one that does is named in the log, and the run goes on."""
    hook, state = start(tmp_path, 4, batch_size=32)
    state.recipe = {"teacher": teacher}
    state.batch = SimpleNamespace(names=["a.jpg"], depth=torch.ones(1, 1, 3, 4))
    state.teacher_depth = torch.zeros(1, 1, 3, 4)
    for _ in range(8):
        state.iteration += 1
        state.micro_losses = [{"loss_dpm": torch.zeros(()), "loss_silog": torch.ones(())}] * 2
        hook.text_log.last_iteration = state.iteration
        hook.after_iteration(state)
    lines = (tmp_path / "now.log").read_text().splitlines()
    warnings = [line for line in lines if "Warning" in line]
    assert len(warnings) == 1
    assert "Warning: loss_dpm was exactly 0 for 4 iterations, so nothing is learned" in warnings[0]
    assert advice in warnings[0]
    assert "loss_silog" not in warnings[0]
