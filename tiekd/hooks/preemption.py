"""Stops a run that is asked to end: the iteration is finished, a checkpoint saved, and the run can go on from there.

SIGTERM and SIGUSR1 to any rank ask for it, and so does the end of the launcher. All ranks stop after the same
iteration: each tells the others at every iteration, in a reduction on the host that is waited for one iteration later,
so neither the device nor the host ever waits for it. A second signal, later than the copies of the first one that
launchers hand on, ends the process at once.
Left out: signals before the first iteration, which end the process as always; there is nothing to save yet.
"""

import os
import signal
import socket
import time

import psutil
import torch
import torch.distributed as dist

from tiekd import ancestry, distributed, launch
from tiekd.hooks.base import Hook

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_GRACE_S = 20.0
_COPIES_COME_S = 3.0
_SIGNAL, _ORPHANED = 1, 2


class Preemption(Hook):
    """Sets `state.stop_reason` on every rank after the same iteration.

    Stands before the checkpoint hook in the list. A rank that has lost its launcher and then another rank of its
    machine can't finish an iteration, and ends 20 seconds later.
    """

    def __init__(self):
        self._reason: str | None = None
        self._asked, self._asked_at = 0, 0.0
        self._question: tuple[dist.Work | None, torch.Tensor] | None = None
        self._group = None

    def before_train(self, state) -> None:
        if distributed.world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        ranks = distributed.gather_objects((socket.gethostname(), os.getpid()))
        here = [pid for host, pid in ranks if host == socket.gethostname() and pid != os.getpid()]
        self._neighbours = [psutil.Process(pid) for pid in here]
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        ancestry.when_lost(self._on_orphaned)

    def after_iteration(self, state) -> None:
        if asked := self._answer():
            state.stop_reason = self._reason or "another rank was asked to stop"
            state.orphaned = asked == _ORPHANED
            return
        asked = torch.tensor([self._asked], dtype=torch.int32)
        work = dist.all_reduce(asked, dist.ReduceOp.MAX, self._group, async_op=True) if self._group else None
        self._question = work, asked

    def after_train(self, state) -> None:
        self._answer()
        ancestry.when_lost(ancestry.end_process)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def _answer(self) -> int:
        """What the ranks said an iteration ago: 0, _SIGNAL or _ORPHANED."""
        if self._question is None:
            return 0
        work, asked = self._question
        self._question = None
        if work is not None:
            work.wait()
        return int(asked)

    def _on_signal(self, number: int, _frame) -> None:
        if self._asked_at:
            if time.monotonic() - self._asked_at < _COPIES_COME_S:
                return
            os._exit(128 + number)
        self._asked, self._asked_at = max(self._asked, _SIGNAL), time.monotonic()
        self._reason = self._reason or f"{signal.Signals(number).name} came"
        launch.asked_to_stop.append(self._reason)

    def _on_orphaned(self, launcher) -> None:
        self._reason = self._reason or f"the launcher, process {launcher.pid}, is gone"
        self._asked = _ORPHANED
        ancestry.watch(self._neighbours, self._on_lost_neighbour)

    def _on_lost_neighbour(self, _rank) -> None:
        time.sleep(_GRACE_S)  # one that has saved and ended is followed by this one long before
        ancestry.end_process()


build = Preemption
