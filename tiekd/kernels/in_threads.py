"""Runs a function on several shares of work in parallel CPU threads.

torch parallelises every operation over its thread pool and waits for the slowest thread. With small
operations there are thousands of synchronisations per step, and whenever another process occupies
one core, all threads wait. Here each thread runs its operations alone, with one torch thread, and
the threads synchronise only once, at the end. torch's
number of threads is restored afterwards. Left out: devices other than CPUs.
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
    """Returns the number of threads that `each` uses: torch's number of threads."""
    return torch.get_num_threads()


def each(function: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """Calls the function once per share of work, each in a separate thread, without autograd.

    Args:
        function: called once per share; it must be thread-safe.
        shares: the arguments. A single share runs in the calling thread.

    Returns:
        The results, in the order of the shares.
    """
    if len(shares) < 2:
        return [function(share) for share in shares]
    inference = torch.is_inference_mode_enabled()

    def alone(share: Share) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return function(share)

    return list(_pool(count()).map(alone, shares))


def _pool(size: int) -> ThreadPoolExecutor:
    """Returns this process's pool of `size` threads, created at the first call.

    The key contains the process id, because a forked process doesn't inherit its parent's threads.
    """
    key = os.getpid(), size
    with _making:
        if key not in _pools:
            _pools[key] = _begin(size)
        return _pools[key]


def _begin(size: int) -> ThreadPoolExecutor:
    """Creates a pool whose threads are all running and use one torch thread each.

    torch.set_num_threads sets the calling thread's number and the default of threads that start
    later. So all threads of the pool are launched first, and then the default is restored.
    """
    together = threading.Barrier(size)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(size, thread_name_prefix="tiekd-tiles")

    def begin(_) -> None:
        # The first get_num_threads() in a thread initialises its number from the default; without
        # this call, the thread's first operation would override set_num_threads(1).
        torch.get_num_threads()
        torch.set_num_threads(1)
        together.wait()

    try:
        list(pool.map(begin, range(size)))
    except RuntimeError:
        # Thread creation failed (OS limit): abort the barrier, so that the threads that have
        # started don't wait forever.
        together.abort()
        raise
    finally:
        torch.set_num_threads(before)
    return pool
