"""Reads batches in worker processes; a dead or hanging worker ends the program in bounded time.

The main process then ends with a one-line error. Each worker is a forked process with its own
connection to the main process. The processes share no locks or queues, so a worker uses no /dev/shm
and two file descriptors (tiekd/data/loading/transport.py describes how batches are sent). A worker
exits when its connection closes, however the main process ended. A worker's death interrupts the
main thread by SIGCHLD. Not covered: detecting that the main process itself hangs, for example while
it reads files without workers.

Workers that don't start in time are replaced: before Python 3.12, a forked process hangs if another
thread was being registered with Python at the moment of the fork, as gloo's threads are after a
collective.
"""

import atexit
import contextlib
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from tiekd.data.loading import transport
from tiekd.distributed import limits
from tiekd.errors import DataError, LaunchError

TIMEOUT_S = 300.0
_DYING_S = 2.0  # seconds to wait for the exit code of a worker whose connection has closed
_STARTING_S = 5.0  # seconds that workers may take to start before all are replaced; 20 ms is usual
_STARTS = 3  # number of attempts to start all workers
_AHEAD = 2  # number of batches that are requested from each worker in advance
_ENDING_S = 5.0  # seconds to wait for busy workers to exit before they are killed
_LOOK_UP_S = 5.0  # seconds between an idle worker's checks that the main process exists
_NO_MORE = object()
_FORK = multiprocessing.get_context("fork")
_FEWER = "set a smaller data.workers"


def read(
    load: Callable[[list], Any],
    batches: Iterable[list],
    workers: int,
    describe: Callable[[list], str],
    timeout_s: float = TIMEOUT_S,
    pin_memory: bool = False,
) -> Iterator:
    """Yields the result of `load` for each batch of keys, in order.

    A key identifies a sample, such as (epoch, index).

    Args:
        load: Function of a batch of keys, which is called in a worker.
        batches: Batches of keys; the first one is requested after the workers have started.
        workers: Number of worker processes; 0 reads in this process.
        describe: Function from a batch of keys to the names of its files, for the error message if
            the batch times out.
        timeout_s: Seconds to wait for a worker's batch before an error is raised.
        pin_memory: True to receive batches into pinned memory, one batch ahead.

    Raises:
        DataError: A batch times out, or a worker dies.
        LaunchError: The system lacks memory or processes for so many workers.
    """
    if workers == 0:
        for keys in batches:
            yield load(keys)
        return
    for start in range(1, _STARTS + 1):
        with closing(_Pool(load, workers)) as pool:
            # Replace workers that don't start in time. In the last attempt they may take up to
            # `timeout_s` instead, in case the machine is slow.
            if start < _STARTS and not pool.has_started(_STARTING_S):
                continue
            results = pool.results(batches, describe, timeout_s, pin_memory)
            yield from _receive_ahead(results, pool) if pin_memory else results
            return


class _Failure:
    """An exception that was raised in a worker, in a form that can be sent to the main process.

    Attributes:
        error: The exception, or a RuntimeError with its text if it can't be pickled.
        traceback: The worker's traceback as text.
    """

    def __init__(self, error: Exception):
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        self.traceback = f'in a data worker:\n"""\n{"".join(lines)}"""'
        try:
            self.error = pickle.loads(pickle.dumps(error))
        except Exception:
            self.error = RuntimeError(str(error))

    def with_cause(self) -> Exception:
        """Returns the exception for the main process, with the worker's traceback as its cause."""
        self.error.__cause__ = RuntimeError(self.traceback)
        return self.error


class _Pool:
    """The worker processes and the connections to them; `close` ends the workers.

    Args:
        load: Function of a batch of keys (which identify samples), called in a worker. Its result
            is sent to the main process.
        count: Number of workers.

    Raises:
        LaunchError: The system lacks memory or processes for so many workers.
    """

    def __init__(self, load: Callable, count: int):
        self._processes: list[multiprocessing.Process] = []
        self._connections: list[Connection] = []
        self._ending = False
        self._hangs = False
        self._num_started = 0
        # Add the pool to `_live`, the pools whose workers `_on_child` checks, before workers start,
        # so that the death of any worker is noticed.
        _live.append(self)
        _watch_deaths()
        try:
            for number in range(count):
                self._start(load, number)
        except (OSError, RuntimeError) as error:  # RuntimeError if no thread can be started
            self.close()
            raise LaunchError(_not_started(count, number, error)) from None
        except BaseException:
            self.close()
            raise

    def _start(self, load: Callable, number: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._connections.append(ours)
        with theirs:
            process = _FORK.Process(target=_serve, args=(theirs, load, number), daemon=True)
            process.start()
        self._processes.append(process)

    def has_started(self, within_s: float) -> bool:
        """Waits until each worker has reported that it has started.

        Args:
            within_s: Seconds to wait for each worker's report.

        Returns:
            True if all workers report in time, else False.
        """
        for connection in self._connections[self._num_started :]:
            if not connection.poll(within_s):
                self._hangs = True
                return False
            self._read_greeting(connection)
        return True

    def results(
        self, batches: Iterable[list], describe: Callable, timeout_s: float, pin: bool
    ) -> Iterator:
        """Sends batches to the workers in turn, and yields the results in the batches' order.

        Args:
            batches: Batches of keys, which identify samples.
            describe: Function from a batch of keys to the names of its files, for error messages.
            timeout_s: Seconds to wait for a batch.
            pin: True to receive batches into pinned memory.

        Raises:
            DataError: A batch times out, or a worker dies.
            Exception: The error that the pool's function `load` raised in a worker.
        """
        remaining = iter(batches)
        turns = itertools.cycle(range(len(self._processes)))
        requested: deque[tuple[int, list]] = deque()

        def request() -> None:
            if (keys := next(remaining, _NO_MORE)) is not _NO_MORE:
                worker = next(turns)
                requested.append((worker, keys))
                with self._naming_deaths():
                    self._connections[worker].send(keys)

        # Request _AHEAD batches from each worker in advance.
        for _ in range(_AHEAD * len(self._processes)):
            request()
        # Receive the results in order. Request another batch each time, before the caller uses the
        # result.
        while requested:
            worker, keys = requested[0]
            result = self._receive(worker, lambda keys=keys: describe(keys), timeout_s, pin)
            requested.popleft()
            request()
            if isinstance(result, _Failure):
                raise result.with_cause()
            yield result

    def check(self) -> None:
        """Raises DataError if a worker has died, unless the pool is being closed."""
        if self._ending:
            return
        with _reaping:
            dead = [process for process in self._processes if process.exitcode]
        if dead:
            raise DataError(_death(dead[0]))

    def close(self) -> None:
        """Closes the connections, upon which workers exit, and waits for the workers.

        Workers that haven't exited after _ENDING_S seconds are killed. If a worker is known to
        hang, all are killed immediately.
        """
        self._ending = True
        for connection in self._connections:
            connection.close()
        end = time.monotonic() + (0 if self._hangs else _ENDING_S)
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
        self.kill()
        for process in self._processes:
            process.join()
        if self in _live:
            _live.remove(self)

    def kill(self) -> None:
        """Kills all workers immediately."""
        self._ending = True
        for process in self._processes:
            process.kill()

    def abandon(self) -> None:
        """Closes the connections in a worker process, which inherited them from the main process.

        These copies would otherwise keep the connections open after the main process has ended.
        """
        for connection in self._connections:
            connection.close()

    def _receive(self, worker: int, describe: Callable[[], str], timeout_s: float, pin: bool):
        connection = self._connections[worker]
        end = time.monotonic() + timeout_s
        with self._naming_deaths():
            while True:
                # Wait for the worker's message or the death of any worker, at most until the time
                # `end`.
                ready = wait([connection, *self._sentinels()], max(0.0, end - time.monotonic()))
                if connection not in ready:
                    self.check()
                if not ready:
                    self._hangs = True
                    raise DataError(_hang(describe(), timeout_s))
                if connection not in ready:
                    continue
                if worker < self._num_started:
                    return transport.receive(connection, pin)
                self._read_greeting(connection)

    def _sentinels(self) -> list[int]:
        with _reaping:
            return [process.sentinel for process in self._processes if process.exitcode is None]

    def _read_greeting(self, connection: Connection) -> None:
        """Receives the message that a worker sends once it has started, and counts it as started.

        Args:
            connection: The connection to the worker.
        """
        with self._naming_deaths():
            connection.recv_bytes()
        self._num_started += 1

    @contextlib.contextmanager
    def _naming_deaths(self):
        """Context manager that replaces errors of a worker's connection by errors with the reason.

        Raises:
            DataError: The connection was closed; the message says how the worker died.
            LaunchError: File descriptors or memory are lacking.
        """
        try:
            yield
        except (EOFError, ConnectionError) as error:
            # Wait for the exit code of a dying worker, whose connection closes before its exit code
            # is known.
            end = time.monotonic() + _DYING_S
            while time.monotonic() < end and not self._ending:
                self.check()
                time.sleep(0.01)
            raise DataError(
                f"a data worker's connection has ended ({_reason(error)}); start again"
            ) from None
        except OSError as error:
            if (lacking := limits.exhausted_resource_message(error)) is None:
                raise
            raise LaunchError(f"a batch can't be received: {lacking}, or {_FEWER}") from None


_live: list[_Pool] = []
# Lock that is held while exit codes are read. The first thread that asks for the exit code of a
# dead process takes it from the system; another thread that asks at that moment is told that the
# process is alive. So without the lock, `_on_child` could miss a death that the thread of
# `_receive_ahead` sees. The lock is re-entrant, because `_on_child` interrupts the main thread,
# which may hold it.
_reaping = threading.RLock()
_previous_handler: Callable | None = None  # the SIGCHLD handler that `_on_child` replaced


@atexit.register
def _kill_all() -> None:
    # Kill the workers before multiprocessing's own exit handler runs, which sends SIGTERM and waits
    # for them. They ignore SIGTERM, so it would wait forever.
    for pool in _live:
        pool.kill()


def _watch_deaths() -> None:
    """Installs `_on_child` as SIGCHLD handler, so that a worker's death raises DataError.

    In other threads than the main thread it does nothing, since only the main thread may install
    handlers.
    """
    global _previous_handler
    handler = signal.getsignal(signal.SIGCHLD)
    if handler is _on_child or threading.current_thread() is not threading.main_thread():
        return
    _previous_handler = handler if callable(handler) else None
    signal.signal(signal.SIGCHLD, _on_child)


def _on_child(number: int, frame) -> None:
    """Handles SIGCHLD: calls the previous handler, then raises DataError if a worker has died.

    Args:
        number: The signal's number.
        frame: The interrupted stack frame, for the previous handler.
    """
    if _previous_handler is not None:
        _previous_handler(number, frame)
    for pool in list(_live):
        pool.check()


def _receive_ahead(results: Iterator, pool: _Pool) -> Iterator:
    """Yields the results; a thread receives the next one while the caller uses the current one.

    Args:
        results: The iterator that `_Pool.results` returned.
        pool: The pool, whose workers are killed if the caller stops early.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        pending = thread.submit(next, results, _NO_MORE)
        while (result := pending.result()) is not _NO_MORE:
            pending = thread.submit(next, results, _NO_MORE)
            yield result
    finally:
        if not pending.done():
            pool.kill()  # otherwise the thread would go on waiting for a worker's batch
        thread.shutdown()


def _serve(connection: Connection, load: Callable, number: int) -> None:
    """Runs a worker until its connection closes.

    The worker ignores the signals that ask a run to stop, because launchers send them to workers,
    too.

    Args:
        connection: The connection to the main process.
        load: Function of a batch of keys, whose result is sent to the main process.
        number: The worker's number, from 0.
    """
    # Ignore the launcher's signals, and close the connections inherited from the main process.
    program = os.getppid()
    for ignored in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pool in _live:
        pool.abandon()
    _live.clear()
    torch.set_num_threads(1)
    # Seed the global random generators, which datasets from outside the project may use.
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(number)
    # Let `transport.send` put large tensors into shared memory from now on.
    transport.open_outbox()
    # Load each batch of keys that the main process sends, in order, and send the result. Stop if
    # the connection is closed or the main process is gone.
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"here")
        while True:
            # Exit if the main process is gone. A closed connection doesn't always show that,
            # because it stays open while another process that was forked from the main process has
            # a copy of it.
            while not connection.poll(_LOOK_UP_S):
                if os.getppid() != program:
                    return
            keys = connection.recv()
            try:
                transport.send(connection, load(keys))
            except ConnectionError:
                raise
            except Exception as error:
                transport.discard()
                transport.send(connection, _Failure(error))


def _death(process: multiprocessing.Process) -> str:
    code = process.exitcode
    if code > 0:
        return (
            f"a data worker died (process {process.pid} ended with code {code}); start again, or "
            f"{_FEWER}"
        )
    remedies = {
        signal.SIGKILL: f"if the memory is full, this machine's or the container's, {_FEWER}",
        signal.SIGBUS: (
            f"a file that it read was cut short, or the disk is full; see to that, or {_FEWER}"
        ),
    }
    name = signal.Signals(-code).name
    return (
        f"a data worker died (process {process.pid}, by {name}); "
        f"{remedies.get(-code, f'start again, or {_FEWER}')}"
    )


def _hang(files: str, timeout_s: float) -> str:
    return (
        f"{files}: not read by a data worker within {timeout_s:g} s; see whether the disk still "
        "answers, or set a greater data.timeout_s"
    )


def _not_started(count: int, started: int, error: Exception) -> str:
    reason = limits.exhausted_resource_message(error) or _reason(error)
    return (
        f"data.workers: {started} of {count} data workers could be started: {reason}, or {_FEWER}"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
