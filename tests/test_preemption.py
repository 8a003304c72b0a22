"""Who counts as a launcher, and what a stop does to the hooks around it, without any ranks."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from tiekd import ancestry
from tiekd.hooks.preemption import Preemption


@pytest.fixture
def hook():
    hook = Preemption()
    hook.before_train(SimpleNamespace())
    yield hook
    hook.after_train(SimpleNamespace())


def test_a_signal_stops_after_the_iteration_that_follows(hook):
    state = SimpleNamespace(stop_reason=None)
    hook.after_iteration(state)
    os.kill(os.getpid(), signal.SIGUSR1)
    stops = []
    for _ in range(2):
        hook.after_iteration(state)
        stops.append(state.stop_reason)
    assert stops == [None, "SIGUSR1 came"]


def test_after_training_a_signal_means_what_it_meant(hook):
    hook.after_train(SimpleNamespace())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_only_deepspeeds_launcher_is_watched(tmp_path):
    assert ancestry.launchers() == [], "pytest was started by a launcher?"
    script = "import sys; sys.path.insert(0, sys.argv[1]); from tiekd import ancestry; print(len(ancestry.launchers()))"
    parent = tmp_path / "bin" / "deepspeed"
    parent.parent.mkdir()
    parent.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {script!r}, sys.argv[1]])\n")
    root = os.path.dirname(os.path.dirname(ancestry.__file__))
    assert subprocess.run([sys.executable, parent, root], capture_output=True, text=True).stdout.strip() == "1"


def test_the_end_of_a_watched_process_is_told_once():
    import psutil

    child = subprocess.Popen(["sleep", "60"])
    told, seen = [], threading.Event()
    ancestry.watch([psutil.Process(child.pid)], lambda process: (told.append(process.pid), seen.set()), every_s=0.02)
    assert not seen.wait(0.2)
    child.kill()
    assert seen.wait(10), "a zombie counts as ended"
    child.wait()
    assert told == [child.pid]
