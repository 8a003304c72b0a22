"""Limits the growth of host memory if the process keeps freed memory (TIEKD_ALLOCATOR=keep).

If tensor sizes differ between iterations, the heap fragments and the process grows. So this hook
measures the memory that the process holds after the first iteration. When the process holds 5 %
more than that, the hook returns all unused memory to the kernel; the next iteration gets it back by
page faults. The cost is one read of /proc per iteration, and nothing with the default allocator
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
        # Bytes that the process held after the first iteration since the start, or since unused
        # memory was last returned to the kernel; None until then.
        self._needed: int | None = None

    def after_iteration(self, state) -> None:
        """Measures the memory of the process, and frees unused memory if the process grew by 5 %.

        The growth is relative to the first call, or to the first call since memory was last freed.
        With the default allocator the method does nothing.

        Args:
            state: The state of the run; not used.
        """
        if not allocator.is_kept():
            return
        held = memory.held_bytes(torch.device("cpu"))
        if self._needed is None:
            self._needed = held
        elif held > _GROWTH * self._needed:
            allocator.give_back()
            self._needed = None
