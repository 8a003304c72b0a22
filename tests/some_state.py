"""A TrainState of which only some values are known, for tests of hooks."""

from types import SimpleNamespace

from tiekd.training.state import TrainState


class SomeState(SimpleNamespace):
    """Has the values that it is given, and what a TrainState says by them of when something is due."""

    stop_reason = None
    is_due, period = TrainState.is_due, TrainState.period
    is_last, ends, epoch = TrainState.is_last, TrainState.ends, TrainState.epoch
