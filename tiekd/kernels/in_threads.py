"""Runs a function on several shares of work, each in a thread that computes alone.

torch splits every single operation over its threads and waits for the slowest of them, thousands
of times a step where operations are small. When another process has one of the cores for a moment,
all wait. Here threads wait for each other only once, at the end. torch's number of threads is the
same afterwards. Left out: devices other than CPUs.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Share, Result = TypeVar("Share"), TypeVar("Result")

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_making = threading.Lock()


def count() -> int:
    """Returns the number of threads for a function: as many as torch computes with."""
    return torch.get_num_threads()


def each(function: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """Returns the function's results in the order of the shares, computed without gradients."""
    if len(shares) < 2:
        return [function(share) for share in shares]
    inference = torch.is_inference_mode_enabled()

    def alone(share: Share) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return function(share)

    return list(_pool(count()).map(alone, shares))


def _pool(size: int) -> ThreadPoolExecutor:
    """Returns the pool of this process, because a fork has none of its parent's threads."""
    key = os.getpid(), size
    with _making:
        if key not in _pools:
            _pools[key] = _begin(size)
        return _pools[key]


def _begin(size: int) -> ThreadPoolExecutor:
    """Returns a pool whose threads have all started and use one torch thread each.

    torch keeps one number of threads for threads that have yet to start and one for each that has
    started. So all are started, and then the first number is restored.
    """
    together = threading.Barrier(size)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(size, thread_name_prefix="tiekd-tiles")

    def begin(_) -> None:
        # A thread takes the first number at its first question, and then keeps its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        together.wait()

    try:
        list(pool.map(begin, range(size)))
    except RuntimeError:
        # The system allows no more threads; release those that wait for all to start.
        together.abort()
        raise
    finally:
        torch.set_num_threads(before)
    return pool
