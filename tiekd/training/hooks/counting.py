"""Ends a run in which no pixel counts in any loss, so that all losses are 0 from the start.

That happens if all target depths are 0, outside the losses' crop, or, because of a wrong unit,
above a loss's max_depth. The check is made once: after MIN_SAMPLES samples, when the text log
writes its next line, but no later than the end of the first epoch or of the run. If only some
losses were always 0, their names are logged and the run continues. The cost is one comparison per
loss on the device in each iteration before the check, and one host sync and one collective for the
check. Not covered: runs with a few valid pixels.
"""

import torch

from tiekd import console
from tiekd.config import teacher_node
from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog

# Number of samples before the check for losses that are always 0, unless the epoch ends earlier.
# The ground truth of a few images may be so sparse that no pixel of it is inside the losses' crop.
MIN_SAMPLES = 100
_MAX_NAMES = 3  # largest number of samples that the error message names


class PixelsCount(Hook):
    """Checks once, early in a run, that at least one loss wasn't 0 in every iteration.

    In the list of hooks it comes after the text log, and before the checkpoint hook. So a run in
    which all losses were 0, because no pixel counts in any of them, saves no checkpoint.

    Attributes:
        text_log: The text log, whose lines decide when the check is made.
    """

    def __init__(self, text_log: TextLog):
        self.text_log = text_log
        # Mask (number of losses,) on the device: True for each loss that was not 0 at least once;
        # None before the first iteration.
        self._was_nonzero: torch.Tensor | None = None
        self._names: list[str] = []
        self._seen, self._done = 0, False

    def after_iteration(self, state) -> None:
        """Records on the device which losses are not 0, and makes the check when it is due.

        The check is made once: at the first line of the text log after MIN_SAMPLES samples, but no
        later than at the end of the first epoch or of the run.

        Args:
            state: The state of the run, with the losses of this iteration.

        Raises:
            DataError: Every loss so far was 0; raised on all ranks.
        """
        if self._done:
            return
        # Compare the losses with 0 on the device, which costs no host sync.
        self._names = list(state.micro_losses[0])
        losses = torch.stack([torch.stack(list(each.values())) for each in state.micro_losses])
        found = (losses != 0).any(0)  # True for NaN too, which the hook Guard reports
        self._was_nonzero = found if self._was_nonzero is None else self._was_nonzero | found
        self._seen += 1
        # Decide if the check is due, since reading `_was_nonzero` costs a host sync: after enough
        # samples, when the log writes a line, which needs a host sync anyway, or at the end of the
        # epoch or run.
        ends = state.is_last and state.stop_reason is None
        epoch_is_through = self._seen >= state.iterations_per_epoch
        enough = self._seen * state.batch_size >= MIN_SAMPLES or epoch_is_through or ends
        if enough and (self.text_log.last_iteration == state.iteration or epoch_is_through or ends):
            self._check_losses(state)

    def _check_losses(self, state) -> None:
        """Reads which losses were not 0 on any rank, and logs those that always were. Collective.

        Args:
            state: The state of the run.

        Raises:
            DataError: All losses of all ranks were always 0; raised on all ranks.
        """
        facts = comm.gather_objects((self._was_nonzero.tolist(), _target_facts(state)))
        self._done = True
        counted = [any(ranks) for ranks in zip(*(found for found, _ in facts), strict=True)]
        has_teacher = teacher_node.has_teacher(state.recipe or {})
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
    """Returns statistics of the target depth of this rank's last micro-batch, for an error message.

    Args:
        state: The state of the run. The target is the teacher's depth, or the ground truth if
            there is no teacher.

    Returns:
        The number of pixels with a target depth above 0, the number of all pixels, the largest
        target depth in metres, and the names of the micro-batch's samples.
    """
    target = state.batch.depth if state.teacher_depth is None else state.teacher_depth
    return int((target > 0).sum()), target.numel(), float(target.max()), state.batch.names


def _advice(has_teacher: bool) -> str:
    if has_teacher:
        return (
            "check the teacher's depth, such as teacher.maps, data.depths, data.depth_unit and the "
            f"losses' max_depth ({console.command('show_batch')} and "
            f"{console.command('check_data')} show them)"
        )
    return (
        "check data.depths, data.depth_unit and the losses' max_depth (and look with "
        f"{console.command('check_data')}), or train with a teacher"
    )


def _message(
    iterations: int, facts: list[tuple[int, int, float, list[str]]], has_teacher: bool
) -> str:
    measured, pixels = sum(fact[0] for fact in facts), sum(fact[1] for fact in facts)
    names = ", ".join([name for fact in facts for name in fact[3]][:_MAX_NAMES])
    if measured:
        largest = max(fact[2] for fact in facts)
        found = (
            f"{measured} of {pixels} pixels have a depth, up to {largest:g} m, but no loss counts "
            "one of them"
        )
    else:
        found = f"not one of {pixels} pixels has a depth"
    return (
        f"no training pixel counts: every loss was exactly 0 for {iterations} iterations, so "
        f"nothing is learned; in the last batch ({names}) {found}; {_advice(has_teacher)}"
    )


build = PixelsCount
