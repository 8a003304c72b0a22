"""A hook that stops a run after a given iteration, as a signal would.

A run that is resumed after this iteration isn't stopped again.
"""

from tiekd.training.hook import Hook


class StopAt(Hook):
    def __init__(self, iteration: int):
        self.iteration = iteration

    def after_iteration(self, state) -> None:
        if state.iteration == self.iteration:
            state.stop_reason = "a test asked for it"


build = StopAt
