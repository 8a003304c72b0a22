"""Reads batches in worker processes; a worker that dies or hangs ends the program with one line, in a bounded time.

torch tells of a dead worker by a RuntimeError at whatever the program is doing then, and of one that hangs not at all
by itself. Left out: a hang without workers, and while pictures' sizes are read at the start (batches of one size), for
there is nobody left to look at the clock.

Workers that don't even start are replaced: before Python 3.12 a forked process waits without end where, at that moment,
another thread was being made known to Python, as gloo's threads are after a collective.
"""

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from tiekd.errors import DataError

TIMEOUT_S = 300.0
_DYING_S = 2.0
_STARTING_S = 5.0  # it takes some 20 ms
_STARTS = 3

_ending = False  # workers die because we end them


def read(
    dataset: Dataset,
    batches: Iterable[list],
    workers: int,
    collate: Callable,
    describe: Callable[[list], str],
    timeout_s: float = TIMEOUT_S,
    pin_memory: bool = False,
) -> Iterator:
    """What `collate` makes of each batch of keys, in order; with 0 workers in this process.

    batches: gone through from the start again where workers have to be replaced. describe: a batch of keys -> its files
    in words, to be named when nothing comes for timeout_s seconds. Raises DataError then, and when a worker dies.
    """
    for start in range(1, _STARTS + 1):
        waiting: deque[list] = deque()
        running = multiprocessing.Semaphore(0)
        loader = DataLoader(
            dataset,
            batch_sampler=_noted(batches, waiting),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            timeout=timeout_s if workers else 0,
            worker_init_fn=partial(_start_worker, running),
            # Without a generator of its own the loader draws a seed from the global stream at every start.
            generator=torch.Generator().manual_seed(0),
        )
        iterator = iter(loader)
        started = list(getattr(iterator, "_workers", ()))
        # After the last start we wait as for a batch, in case the machine is that slow.
        problem, stuck = None, start < _STARTS
        try:
            if workers:
                _tell_deaths_as_data_errors()
            stuck = stuck and not all(running.acquire(timeout=_STARTING_S) for _ in started)
            while problem is None and not stuck:
                try:
                    result = next(iterator)
                except StopIteration:
                    return
                except (RuntimeError, OSError, EOFError) as error:  # also the end of a pipe from a worker
                    if isinstance(error, RuntimeError) and "timed out after" in str(error):
                        problem = _hang(describe(waiting[0]), timeout_s)
                    elif (problem := _death_by(error, started)) is None:
                        raise
                else:
                    waiting.popleft()
                    yield result
            if problem is not None:
                raise DataError(problem)
        finally:
            if started:
                _end(iterator, started, hang=bool(problem or stuck))


def _noted(batches: Iterable[list], waiting: deque[list]) -> Iterator[list]:
    for keys in batches:
        waiting.append(keys)
        yield keys


def _end(iterator, started: list[multiprocessing.Process], hang: bool) -> None:
    """Ends the workers. torch would ask them by a signal to which they are deaf, and wait without end for one that
    hangs; where nothing came for long, none is in the middle of a batch, and all can be killed at once."""
    global _ending
    _ending = True
    try:
        if hang:
            _kill(started)
        iterator._shutdown_workers()
        _kill(started)
    finally:
        _ending = False


def _kill(processes: list[multiprocessing.Process]) -> None:
    for process in processes:
        process.kill()


def _tell_deaths_as_data_errors() -> None:
    """Puts our handler of SIGCHLD around torch's, which raises a RuntimeError when a worker has died."""
    torchs = signal.getsignal(signal.SIGCHLD)
    in_place = getattr(torchs, "__module__", None) == __name__ or not callable(torchs)
    if in_place or threading.current_thread() is not threading.main_thread():
        return

    def handler(number: int, frame) -> None:
        try:
            torchs(number, frame)
        except RuntimeError as error:
            if not _ending:
                raise DataError(_death(str(error))) from None

    signal.signal(signal.SIGCHLD, handler)


def _death_by(error: Exception, started: list[multiprocessing.Process]) -> str | None:
    """What to say of a worker's death where the error comes from one."""
    if str(error).startswith("DataLoader worker"):
        return _death(str(error))
    if dead := _dead(started):
        return _death(f"exit code {dead[0].exitcode} of process {dead[0].pid}")
    return None


def _dead(started: list[multiprocessing.Process]) -> list[multiprocessing.Process]:
    """Workers that have died; one that is about to, too, for its pipes, the sentinel among them, end before it does."""
    end = time.monotonic() + _DYING_S
    while not (dead := [process for process in started if process.exitcode]) and time.monotonic() < end:
        time.sleep(0.01)
    return dead


def _death(reason: str) -> str:
    reason = reason.splitlines()[0].strip().rstrip(".")
    return f"a data worker died ({reason}); if the memory or /dev/shm is full, set a smaller data.workers"


def _hang(files: str, timeout_s: float) -> str:
    return (
        f"{files}: not read by a data worker within {timeout_s:g} s; see whether the disk still answers, or set a "
        "greater data.timeout_s"
    )


def _start_worker(running, _worker: int) -> None:
    """One thread; and deaf to the signals that ask a run to stop, for launchers send them to workers as well."""
    running.release()
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
