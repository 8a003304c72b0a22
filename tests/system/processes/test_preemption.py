"""A signal before the first iteration has ended ends the program, with all that hang below it."""

import subprocess
import sys
import time

import psutil
import pytest
from support.programs import ROOT


@pytest.mark.parametrize(("iterations", "code"), [(0, 143), (1, 0)])
def test_preemption_before_first_iteration_kills_children(iterations, code):
    """A signal before the first iteration ends with code 143; child processes end in any case."""
    script = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from types import SimpleNamespace
from tiekd.training.hooks import preemption
preemption._GRACE_S = 0.5
stuck = os.fork()
if stuck == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
print(stuck, flush=True)
hook = preemption.Preemption()
hook.before_train(None)
for _ in range({iterations}):
    hook.after_iteration(SimpleNamespace(stop_reason=None))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3 if {iterations} else 60)
os.kill(stuck, signal.SIGKILL)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=55
    )
    assert result.returncode == code, result.stderr
    # A killed process goes a moment after its parent where the machine is busy.
    deadline = time.monotonic() + 10
    while _lives(int(result.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
