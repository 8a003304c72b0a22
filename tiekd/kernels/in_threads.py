"""Runs a function on several parts of the work in parallel CPU threads.

torch parallelises every operation over its thread pool and waits for the slowest thread. With small
operations there are thousands of synchronisations per step, and whenever another process occupies
one core, all threads wait. Here each thread runs its operations alone, with one torch thread, and
the threads synchronise only once, at the end. The number of torch threads of all other threads
stays the same. Left out: devices other than CPUs.
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
    """Returns the number of threads in the pool of `each`, which is `torch.get_num_threads()`."""
    return torch.get_num_threads()


def each(function: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """Calls a function once for each of several arguments, in parallel threads, without gradients.

    Args:
        function: a function of one argument; it must be thread-safe. In a thread of the pool its
            torch operations use one thread.
        shares: the arguments, e.g. lists of work items. A single one is processed in the calling
            thread.

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

    Pools are stored by process id and size, because a forked process inherits the dictionary of
    pools but not its parent's threads.
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
    """
    together = threading.Barrier(size)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(size, thread_name_prefix="tiekd-tiles")

    def begin(_) -> None:
        # The first get_num_threads() in a thread sets its number of torch threads to the default.
        # Without this call, the thread's first operation would do so and override
        # set_num_threads(1).
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
