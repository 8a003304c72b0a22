"""A TrainState of which only some values are known, for tests of hooks."""

from types import SimpleNamespace

from tiekd.training.state import TrainState


class SomeState(SimpleNamespace):
    """A state with the given values, and TrainState's rule for when something is due."""

    stop_reason = None
    is_due, period = TrainState.is_due, TrainState.period
    is_last, ends, epoch = TrainState.is_last, TrainState.ends, TrainState.epoch
