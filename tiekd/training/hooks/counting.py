"""Ends a run in which no training pixel counts, so that every loss is 0 and nothing is learned.

That is so where all ground truth is 0, in another unit than said (beyond a loss's max_depth), or
cropped away. The first look is at the first line of the log, or at the end of the first epoch where
that comes before; from the first loss above 0 on nothing is done any more. Cost until then: a
comparison a loss on the device, and with a look one host sync and one collective. Left out: runs
that have some pixels, however few.
"""

import torch

from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog

# A look before the epoch's end needs as many samples: a few sparse frames may well have no depth
# in their crop.
MIN_SAMPLES = 100
_NAMED = 3


class PixelsCount(Hook):
    """Looks for a loss above 0 at lines of the text log, behind which it stands.

    It stands before the checkpoint: a run without one saves nothing.
    """

    def __init__(self, text_log: TextLog):
        self.text_log = text_log
        self._any: torch.Tensor | None = None  # (losses,) bool on the device: not 0 so far
        self._names: list[str] = []
        self._seen, self._done = 0, False

    def after_iteration(self, state) -> None:
        """Compares the losses with 0 on the device, and looks at the outcome when it is due.

        Raises:
            DataError: On all ranks, where every loss so far was 0.
        """
        if self._done:
            return
        # The comparison stays on the device: no host sync.
        self._names = list(state.micro_losses[0])
        losses = torch.stack([torch.stack(list(each.values())) for each in state.micro_losses])
        found = (losses != 0).any(0)  # NaN is not 0 either, and is the guard's business
        self._any = found if self._any is None else self._any | found
        self._seen += 1
        # A look, with its host sync, is made once there is enough to judge by.
        ends = state.is_last and state.stop_reason is None
        epoch_is_through = self._seen >= state.iterations_per_epoch
        enough = self._seen * state.batch_size >= MIN_SAMPLES or epoch_is_through or ends
        if enough and (self.text_log.last_iteration == state.iteration or epoch_is_through or ends):
            self._look(state)

    def _look(self, state) -> None:
        """Collective; DataError on all ranks where no loss of any rank was above 0."""
        facts = comm.gather_objects((self._any.tolist(), _target_facts(state)))
        self._done = True
        counted = [any(ranks) for ranks in zip(*(found for found, _ in facts), strict=True)]
        has_teacher = bool((state.recipe or {}).get("teacher"))
        if any(counted):
            empty = [name for name, counts in zip(self._names, counted, strict=True) if not counts]
            for name in empty:
                self.text_log.info(
                    f"Warning: {name} was exactly 0 for {self._seen} iterations, so nothing is "
                    f"learned from it; {_advice(has_teacher)}"
                )
            return
        message = _message(self._seen, [of_rank for _, of_rank in facts], has_teacher)
        self.text_log.info(message)
        raise DataError(message)


def _target_facts(state) -> tuple[int, int, float, list[str]]:
    """Returns facts of this rank's last micro-batch.

    They are the pixels with a target depth, all pixels, the largest depth in metres, and the names.
    """
    target = state.batch.depth if state.teacher_depth is None else state.teacher_depth
    return int((target > 0).sum()), target.numel(), float(target.max()), state.batch.names


def _advice(has_teacher: bool) -> str:
    if has_teacher:
        return (
            "check the teacher's depth, such as teacher.maps, data.depths, data.depth_unit and the "
            "losses' max_depth (bin/show_batch.py and bin/check_data.py show them)"
        )
    return (
        "check data.depths, data.depth_unit and the losses' max_depth (and look with "
        "bin/check_data.py), or train with a teacher"
    )


def _message(
    iterations: int, facts: list[tuple[int, int, float, list[str]]], has_teacher: bool
) -> str:
    measured, pixels = sum(fact[0] for fact in facts), sum(fact[1] for fact in facts)
    names = ", ".join([name for fact in facts for name in fact[3]][:_NAMED])
    if measured:
        largest = max(fact[2] for fact in facts)
        found = (
            f"{measured} of {pixels} pixels have a depth, up to {largest:g} m, but no loss takes "
            "one of them"
        )
    else:
        found = f"not one of {pixels} pixels has a depth"
    return (
        f"no training pixel counts: every loss was exactly 0 for {iterations} iterations, so "
        f"nothing is learned; in the last batch ({names}) {found}; {_advice(has_teacher)}"
    )


build = PixelsCount
