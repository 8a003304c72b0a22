"""Runs a function for several arguments in parallel CPU threads.

torch parallelises every operation over its thread pool and waits for the slowest thread. With small
operations there are thousands of synchronisations per step, and whenever another process occupies
one core, all threads wait. Here each thread runs its operations alone, with one torch thread, and
the threads synchronise only once, at the end. Threads outside the pool keep their number of torch
threads. Left out: devices other than CPUs.
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
    """Returns the number of threads that `each` uses, which is `torch.get_num_threads()`."""
    return torch.get_num_threads()


def each(function: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """Calls a function once for each of several arguments, in parallel threads, without gradients.

    Args:
        function: a function of one argument; it must be thread-safe. Its torch operations run on
            one thread each.
        shares: the arguments, e.g. lists of work items. If there is only one, the function is
            called in the calling thread.

    Returns:
        The results, in the order of the arguments.
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

    `_pools` stores the pools by process ID and size: a forked process inherits this dictionary but
    not its parent's threads, so it needs a pool of its own.
    """
    key = os.getpid(), size
    with _making:
        if key not in _pools:
            _pools[key] = _begin(size)
        return _pools[key]


def _begin(size: int) -> ThreadPoolExecutor:
    """Creates a pool of `size` running threads, each limited to one torch thread.

    torch.set_num_threads sets both the calling thread's number of torch threads and the default for
    threads that start later. So all threads of the pool are started here, and then the default is
    restored.

    Args:
        size: the number of threads.

    Returns:
        The pool, a `ThreadPoolExecutor`.
    """
    together = threading.Barrier(size)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(size, thread_name_prefix="tiekd-tiles")

    def begin(_) -> None:
        # Let get_num_threads() initialise this thread's number of torch threads first. Otherwise
        # the thread's first operation would set it to the default, and so override
        # set_num_threads(1).
        torch.get_num_threads()
        torch.set_num_threads(1)
        together.wait()

    try:
        list(pool.map(begin, range(size)))
    except RuntimeError:
        # Abort the barrier if a thread can't be created (limit of the operating system), so that
        # the threads that have started don't wait forever.
        together.abort()
        raise
    finally:
        torch.set_num_threads(before)
    return pool
