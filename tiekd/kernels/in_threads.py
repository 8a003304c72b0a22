"""Runs a function for several arguments in parallel CPU threads.

torch parallelises every operation over its thread pool and waits for the slowest thread. With small
operations there are thousands of synchronisations per step, and whenever another process occupies
one core, all threads wait. Here each thread runs its operations alone, with one torch thread, and
the threads synchronise only once, at the end. Threads outside the pool keep their number of torch
threads. Not covered: devices other than CPUs.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Argument, Result = TypeVar("Argument"), TypeVar("Result")

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def num_threads() -> int:
    """Returns the number of threads of `map_in_threads`, which is `torch.get_num_threads()`."""
    return torch.get_num_threads()


def map_in_threads(
    function: Callable[[Argument], Result], arguments: Sequence[Argument]
) -> list[Result]:
    """Calls a function once for each of several arguments, in parallel threads, without gradients.

    Args:
        function: a function of one argument; it must be thread-safe. Its torch operations run on
            one thread each.
        arguments: the arguments, e.g. lists of work items. If there is only one, the function is
            called in the calling thread.

    Returns:
        The results, in the order of the arguments.
    """
    if len(arguments) < 2:
        return [function(argument) for argument in arguments]
    inference = torch.is_inference_mode_enabled()

    def call(argument: Argument) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return function(argument)

    return list(_pool(num_threads()).map(call, arguments))


def _pool(size: int) -> ThreadPoolExecutor:
    """Returns this process's pool of `size` threads, created at the first call.

    `_pools` stores the pools by process ID and size: a forked process inherits this dictionary but
    not its parent's threads, so it needs a pool of its own.
    """
    key = os.getpid(), size
    with _pools_lock:
        if key not in _pools:
            _pools[key] = _start_pool(size)
        return _pools[key]


def _start_pool(size: int) -> ThreadPoolExecutor:
    """Creates a pool of `size` running threads, each limited to one torch thread.

    torch.set_num_threads sets both the calling thread's number of torch threads and the default for
    threads that start later. So all threads of the pool are started here, and then the default is
    restored.

    Args:
        size: the number of threads.

    Returns:
        The pool, a `ThreadPoolExecutor`.
    """
    all_started = threading.Barrier(size)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(size, thread_name_prefix="tiekd-tiles")

    def limit_to_one_torch_thread(_) -> None:
        # Let get_num_threads() initialise this thread's number of torch threads first. Otherwise
        # the thread's first operation would set it to the default, and so override
        # set_num_threads(1).
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_started.wait()

    try:
        list(pool.map(limit_to_one_torch_thread, range(size)))
    except RuntimeError:
        # Abort the barrier if a thread can't be created (limit of the operating system), so that
        # the threads that have started don't wait forever.
        all_started.abort()
        raise
    finally:
        torch.set_num_threads(before)
    return pool
