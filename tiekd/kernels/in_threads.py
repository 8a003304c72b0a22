"""One function on several shares of work, each share in a thread that computes alone.

torch shares every single operation out to its threads and waits for the slowest of them, thousands of times a step
where operations are small; when another process has one of the cores for a moment, all wait. Here threads meet once, at
the end. torch's number of threads is what it was afterwards. Left out: devices other than CPUs.
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
    """How many threads a function is shared out to: as many as torch computes with."""
    return torch.get_num_threads()


def each(function: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """The function's results in the shares' order, without gradients."""
    if len(shares) < 2:
        return [function(share) for share in shares]
    inference = torch.is_inference_mode_enabled()

    def alone(share: Share) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return function(share)

    return list(_pool(count()).map(alone, shares))


def _pool(size: int) -> ThreadPoolExecutor:
    """Of this process, for a fork has none of its parent's threads."""
    key = os.getpid(), size
    with _making:
        if key not in _pools:
            _pools[key] = _begin(size)
        return _pools[key]


def _begin(size: int) -> ThreadPoolExecutor:
    """torch keeps one number for threads that begin and one for each that has begun; so all begin, and then the first
    number is put back."""
    together, before = threading.Barrier(size), torch.get_num_threads()
    pool = ThreadPoolExecutor(size, thread_name_prefix="tiekd-tiles")

    def begin(_) -> None:
        torch.get_num_threads()  # a thread takes the first number when it is first asked, and then keeps its own
        torch.set_num_threads(1)
        together.wait()

    try:
        list(pool.map(begin, range(size)))
    except RuntimeError:  # no thread more may begin
        together.abort()
        raise
    finally:
        torch.set_num_threads(before)
    return pool
