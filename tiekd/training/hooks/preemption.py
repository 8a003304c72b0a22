"""Stops a run that is asked to end: after the iteration, with a checkpoint to resume from.

SIGTERM and SIGUSR1 to any rank ask for it, and so does the end of the launcher. All ranks stop
after the same iteration: each tells the others at every iteration, in a reduction on the host that
is waited for one iteration later, so neither the device nor the host ever waits for it. A second
signal, later than the copies of the first one that launchers pass on, ends the process at once.

Until the first iteration is done there is nothing to save: a signal before it begins ends the
process as always, and one that comes while it is waited for (batches that don't come, a
compilation) ends it 20 seconds later.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

import psutil
import torch
import torch.distributed as dist

from tiekd.distributed import comm, entrypoint, launcher_watch
from tiekd.training.hook import Hook

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_GRACE_S = 20.0
_COPIES_COME_S = 3.0
_SIGNAL, _ORPHANED = 1, 2


class Preemption(Hook):
    """Sets `state.stop_reason` on every rank after the same iteration.

    Stands before the checkpoint hook in the list. A rank that has lost its launcher and then
    another rank of its machine can't finish an iteration, and ends 20 seconds later.
    """

    def __init__(self):
        self._reason: str | None = None
        self._asked = 0
        self._iterations = 0  # of this process
        self._question: tuple[dist.Work | None, torch.Tensor] | None = None
        self._group = None

    def before_train(self, state) -> None:
        """Takes over the signals, and begins to watch the launcher. Collective."""
        # A group of its own: the question must not wait behind the device's collectives.
        if comm.world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        # Ranks of this machine are watched if the launcher dies.
        ranks = comm.gather_objects((socket.gethostname(), os.getpid()))
        here = [pid for host, pid in ranks if host == socket.gethostname() and pid != os.getpid()]
        self._neighbours = [psutil.Process(pid) for pid in here]
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        # A handler has to wait for a collective that the main thread is in; the thread at the
        # pipe's end hasn't.
        ours, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        arguments = ours, lambda: self._iterations == 0
        threading.Thread(
            target=_end_at_second, args=arguments, name="preemption", daemon=True
        ).start()
        launcher_watch.when_lost(self._on_orphaned)

    def after_iteration(self, state) -> None:
        """Reads the ranks' answers of the iteration before, and asks again. Collective."""
        self._iterations += 1
        if asked := self._answer():
            state.stop_reason = self._reason or "another rank was asked to stop"
            state.orphaned = asked == _ORPHANED
            return
        # The question is asked now, and its answer awaited an iteration later.
        asked = torch.tensor([self._asked], dtype=torch.int32)
        work = (
            dist.all_reduce(asked, dist.ReduceOp.MAX, self._group, async_op=True)
            if self._group
            else None
        )
        self._question = work, asked

    def after_train(self, state) -> None:
        """Gives the signals back; a lost launcher ends the process at once again."""
        self._answer()
        launcher_watch.when_lost(launcher_watch.end_process)
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if signal.set_wakeup_fd(-1) == self._signals:
            os.close(self._signals)

    def _answer(self) -> int:
        """Returns what the ranks said an iteration ago: 0, _SIGNAL or _ORPHANED."""
        if self._question is None:
            return 0
        work, asked = self._question
        self._question = None
        if work is not None:
            work.wait()
        return int(asked)

    def _on_signal(self, number: int, _frame) -> None:
        if self._reason is not None:
            return
        self._asked = _SIGNAL
        self._reason = f"{signal.Signals(number).name} came"
        entrypoint.asked_to_stop.append(self._reason)

    def _on_orphaned(self, launcher) -> None:
        self._reason = self._reason or f"the launcher, process {launcher.pid}, is gone"
        self._asked = _ORPHANED
        launcher_watch.watch(self._neighbours, self._on_lost_neighbour)

    def _on_lost_neighbour(self, _rank) -> None:
        time.sleep(_GRACE_S)  # one that has saved and ended is followed by this one long before
        launcher_watch.end_process()


def _end_at_second(signals: int, waits: Callable[[], bool]) -> None:
    """Reads the numbers of signals as they come, until the pipe is closed.

    Ends the process at a second request, and where it still waits for its first iteration some time
    after the first request.
    """
    first_at, first = None, 0
    poller = select.poll()
    poller.register(signals, select.POLLIN)
    while True:
        # Waits without an end, but where a request came before the first iteration is done.
        left_s = None if first_at is None or not waits() else first_at + _GRACE_S - time.monotonic()
        if not poller.poll(left_s and max(0.0, left_s) * 1000):
            if waits():
                launcher_watch.end_process(code=128 + first)
            continue
        if not (number := os.read(signals, 1)):
            break
        if number[0] not in SIGNALS:
            continue
        # Launchers pass a signal on, so copies of the first request come within seconds.
        now = time.monotonic()
        if first_at is not None and now - first_at >= _COPIES_COME_S:
            launcher_watch.end_process(code=128 + number[0])
        first_at, first = first_at or now, first or number[0]
    os.close(signals)


build = Preemption
