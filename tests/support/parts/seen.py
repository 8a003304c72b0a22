"""A hook that saves the batch on which each rank trained, and the teacher's depth.

The files are `<work_dir>/seen_<iteration>_<rank>.pt`.
"""

import torch

from tiekd.distributed.comm import rank
from tiekd.training.hook import Hook


class Seen(Hook):
    """Saves the last micro-batch of each of the iterations in `iterations`."""

    def __init__(self, iterations: list[int]):
        self.iterations = iterations

    def after_iteration(self, state) -> None:
        if state.iteration in self.iterations:
            seen = {**state.batch._asdict(), "teacher": state.teacher_depth}
            torch.save(seen, state.work_dir / f"seen_{state.iteration}_{rank()}.pt")


build = Seen
