"""A run in which no training pixel counts ends with the reason.

One that has some is left alone.
"""

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
    assert "24 of 24 pixels have a depth, up to 2500 m, but no loss takes one of them" in message


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
    assert hook._any.device.type == "meta", "found on the device, and not read yet"
