"""Stops a run on a signal, after the current iteration and with a checkpoint to resume from.

A run stops on SIGTERM or SIGUSR1 to any rank, and when the launcher dies. All ranks stop after the
same iteration: in every iteration they all-reduce a flag on the host, asynchronously, and read the
result one iteration later. So neither device nor host waits for this reduction. A second signal
ends the process immediately, if it comes more than 3 seconds after the first. Earlier ones are
ignored, because launchers send copies of a signal.

Before the first iteration is finished there is nothing to save. A signal before training begins
ends the process as usual. A signal during the first iteration, which may hang or compile, ends the
process 20 seconds later if that iteration is still not finished.
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
_COPY_WINDOW_S = 3.0
_SIGNAL, _ORPHANED = 1, 2


class Preemption(Hook):
    """Stops a run on a signal or when the launcher dies: sets `state.stop_reason` on every rank.

    All ranks set it after the same iteration. In the list of hooks this hook comes before the
    checkpoint hook, so that a stopped run is saved. If the launcher dies and then another rank on
    the same machine, no iteration can be finished any more. This rank's process then ends 20
    seconds later.
    """

    def __init__(self):
        self._reason: str | None = None
        self._stop_flag = 0
        self._iterations = 0  # number of iterations that this process has finished
        self._reduction: tuple[dist.Work | None, torch.Tensor] | None = None
        self._group = None

    def before_train(self, state) -> None:
        """Installs handlers for SIGTERM and SIGUSR1, and watches the launcher. Collective.

        Args:
            state: The state of the run; not used.
        """
        # Create a gloo process group for the reduction of the flag, so that it doesn't wait until
        # the GPU has finished the collectives in its queue.
        if comm.world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        # Find the other ranks on this machine. The launcher ends this rank if one of them dies, but
        # once the launcher itself has died, this rank has to watch them.
        ranks = comm.gather_objects((socket.gethostname(), os.getpid()))
        here = [pid for host, pid in ranks if host == socket.gethostname() and pid != os.getpid()]
        self._local_ranks = [psutil.Process(pid) for pid in here]
        self._previous_handlers = {
            number: signal.signal(number, self._on_signal) for number in SIGNALS
        }
        # Let a thread read the signals from a pipe. Python runs a signal handler only when the main
        # thread executes Python code, i.e. not while it waits in a collective; the thread can end a
        # process that hangs in one.
        ours, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        arguments = ours, lambda: self._iterations == 0
        threading.Thread(
            target=_end_at_second_signal, args=arguments, name="preemption", daemon=True
        ).start()
        launcher_watch.when_lost(self._on_orphaned)

    def after_iteration(self, state) -> None:
        """Sets `state.stop_reason` if any rank was asked to stop before this iteration. Collective.

        Each rank has a flag for such a request. The method reads the result of the reduction of all
        ranks' flags that was started after the previous iteration, and then starts a reduction of
        the current flags.
        """
        self._iterations += 1
        if flag := self._finish_reduction():
            state.stop_reason = self._reason or "another rank was asked to stop"
            state.orphaned = flag == _ORPHANED
            return
        # Start the reduction of the flag for a request to stop. The method reads the result after
        # the next iteration.
        flag = torch.tensor([self._stop_flag], dtype=torch.int32)
        work = (
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group, async_op=True)
            if self._group
            else None
        )
        self._reduction = work, flag

    def after_train(self, state) -> None:
        """Restores the signal handlers that were there before `before_train`.

        From now on the process ends immediately if the launcher dies, since no training is left to
        be finished.

        Args:
            state: The state of the run; not used.
        """
        self._finish_reduction()
        launcher_watch.when_lost(launcher_watch.end_process)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if signal.set_wakeup_fd(-1) == self._signals:
            os.close(self._signals)

    def _finish_reduction(self) -> int:
        """Waits for the reduction that is in progress, and returns the largest flag of all ranks.

        The result is _ORPHANED if a rank's launcher had died when the reduction was started, else
        _SIGNAL if a rank had got a signal, else 0. It is also 0 if no reduction is in progress.
        """
        if self._reduction is None:
            return 0
        work, flag = self._reduction
        self._reduction = None
        if work is not None:
            work.wait()
        return int(flag)

    def _on_signal(self, number: int, _frame) -> None:
        if self._reason is not None:
            return
        self._stop_flag = _SIGNAL
        self._reason = f"{signal.Signals(number).name} came"
        entrypoint.asked_to_stop.append(self._reason)

    def _on_orphaned(self, launcher) -> None:
        self._reason = self._reason or f"the launcher, process {launcher.pid}, is gone"
        self._stop_flag = _ORPHANED
        launcher_watch.watch(self._local_ranks, self._on_lost_rank)

    def _on_lost_rank(self, _rank) -> None:
        # Another rank on this machine has ended. It may have done so after saving its checkpoint;
        # then this process ends by itself, too, if it gets some time. So wait before ending it.
        time.sleep(_GRACE_S)
        launcher_watch.end_process()


def _end_at_second_signal(signals: int, is_first_iteration: Callable[[], bool]) -> None:
    """Reads signal numbers from a pipe, and ends the process if it doesn't stop by itself.

    It ends the process at a second request to stop. It also ends the process _GRACE_S seconds after
    the first request, if the first iteration is not finished by then. Returns when the pipe is
    closed.

    Args:
        signals: The reading end of the pipe, a file descriptor.
        is_first_iteration: Function that returns True until the first iteration is finished.
    """
    first_at, first = None, 0
    poller = select.poll()
    poller.register(signals, select.POLLIN)
    while True:
        # Wait for the next signal, without a time limit except after a request to stop during the
        # first iteration: then wait only until the process has to be ended.
        left_s = (
            None
            if first_at is None or not is_first_iteration()
            else first_at + _GRACE_S - time.monotonic()
        )
        if not poller.poll(left_s and max(0.0, left_s) * 1000):
            if is_first_iteration():
                launcher_watch.end_process(code=128 + first)
            continue
        if not (number := os.read(signals, 1)):
            break
        if number[0] not in SIGNALS:
            continue
        # End the process if this is a second request to stop. A launcher that gets a signal sends
        # it to its ranks, so copies of the first request may arrive within seconds; these don't
        # count.
        now = time.monotonic()
        if first_at is not None and now - first_at >= _COPY_WINDOW_S:
            launcher_watch.end_process(code=128 + number[0])
        first_at, first = first_at or now, first or number[0]
    os.close(signals)


build = Preemption
