"""A stand-in for TrainState with some of its attributes, for tests of hooks."""

from pathlib import Path
from types import SimpleNamespace

from tiekd.training.state import TrainState


class SomeState(SimpleNamespace):
    """Has the given attributes, and TrainState's methods about when an action is due."""

    stop_reason = None
    teacher_comparison = None
    set_metrics, metrics_label = {}, ""
    is_due, period = TrainState.is_due, TrainState.period
    is_last, ends, epoch = TrainState.is_last, TrainState.ends, TrainState.epoch


def logged_state(work_dir: Path, **values) -> SomeState:
    """Returns a state with all attributes that TextLog uses; `values` overrides the defaults."""
    state = dict(
        iteration=0, iterations_per_epoch=100, total_iterations=200, by_epoch=True, batch_size=16,
        lr=[4e-5], momentum=[0.95], losses={}, grad_norm=1.0, time_s=0.5, data_time_s=0.1,
        work_dir=work_dir, timestamp="20240101_120000", recipe={"train": {"seed": 0}},
        hooks=[], skipped_steps=0, loss_scale=None,
    )  # fmt: skip
    return SomeState(**state | values)
