"""Bounds the freed memory that a training process keeps (tiekd/distributed/allocator.py).

Tensors whose sizes differ from one iteration to the next leave ever more gaps that nothing fits in.
After the first iteration the process holds what an iteration needs; where it holds a twentieth
more, all that is not in use goes back to the kernel, and the next iteration pages its memory in
again. Costs a look at /proc an iteration, where memory is kept.
"""

import torch

from tiekd.distributed import allocator, memory
from tiekd.training.hook import Hook

_GROWTH = 1.05


class KeptMemory(Hook):
    """Gives memory back where it creeps up.

    Stands before the hooks that need memory of their own between iterations, such as evaluations
    and checkpoints.
    """

    def __init__(self):
        self._needed: int | None = None  # bytes after the iteration that pages in what is needed

    def after_iteration(self, state) -> None:
        """Gives memory back where the process holds a twentieth more than an iteration needs."""
        if not allocator.is_kept():
            return
        held = memory.held_bytes(torch.device("cpu"))
        if self._needed is None:
            self._needed = held
        elif held > _GROWTH * self._needed:
            allocator.give_back()
            self._needed = None
