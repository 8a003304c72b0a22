"""Limits the growth of host memory if the process keeps freed memory (TIEKD_ALLOCATOR=keep).

If tensor sizes differ between iterations, the heap fragments and the process grows. So this hook
measures the memory that the process holds after the first iteration. When the process holds 5 %
more than that, the hook returns all unused memory to the kernel; in the next iteration page faults
bring it in again. Costs one read of /proc per iteration, and nothing with the default allocator
(tiekd/distributed/allocator.py).
"""

import torch

from tiekd.distributed import allocator, memory
from tiekd.training.hook import Hook

_GROWTH = 1.05


class KeptMemory(Hook):
    """Returns unused host memory to the operating system when the process has grown by 5 %.

    In the list of hooks it comes before hooks that need much memory themselves, such as evaluation
    and checkpoint. So it measures the memory that the training iterations need.
    """

    def __init__(self):
        # Bytes that the process held after the first iteration, or after the first one since unused
        # memory was last returned to the kernel; None until then.
        self._needed: int | None = None

    def after_iteration(self, state) -> None:
        """Measures the memory of the process; if it grew by 5 %, frees what is unused.

        The growth is measured from the first call, or from the first call since memory was last
        freed. Does nothing with the default allocator.
        """
        if not allocator.is_kept():
            return
        held = memory.held_bytes(torch.device("cpu"))
        if self._needed is None:
            self._needed = held
        elif held > _GROWTH * self._needed:
            allocator.give_back()
            self._needed = None
