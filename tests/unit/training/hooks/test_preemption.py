"""Who counts as a launcher, and what a stop does to the hooks around it, without any ranks."""

import base64
import json
import os
import signal
from types import SimpleNamespace

import pytest

from tiekd.distributed import launcher_watch
from tiekd.training.hooks import preemption


def before(number: int, frame) -> None:
    """Stands for the signal handler that a process has before it trains."""


@pytest.fixture
def hook():
    own = signal.signal(signal.SIGTERM, before)
    hook = preemption.Preemption()
    hook.before_train(SimpleNamespace())
    yield hook
    hook.after_train(SimpleNamespace())
    signal.signal(signal.SIGTERM, own)


def test_preemption_stops_after_next_iteration(hook):
    """A signal sets the stop reason at the end of the iteration after the one that saw it."""
    state = SimpleNamespace(stop_reason=None)
    hook.after_iteration(state)
    os.kill(os.getpid(), signal.SIGUSR1)
    stops = []
    for _ in range(2):
        hook.after_iteration(state)
        stops.append(state.stop_reason)
    assert stops == [None, "SIGUSR1 came"]


def test_preemption_repeated_signal_is_one_request(monkeypatch, hook):
    """Repeated copies of a signal count as one stop request."""
    monkeypatch.setattr(preemption, "_COPY_WINDOW_S", 600.0)  # a slow machine would end the tests
    state = SimpleNamespace(stop_reason=None)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):
        hook.after_iteration(state)
    assert state.stop_reason == "SIGTERM came"
    assert not state.orphaned


def test_preemption_restores_signal_handler(hook):
    """After training the signal handler of before is restored."""
    assert signal.getsignal(signal.SIGTERM) is not before
    hook.after_train(SimpleNamespace())
    assert signal.getsignal(signal.SIGTERM) is before


NODES = {"a": [0, 1], "b": [0]}


@pytest.mark.parametrize(
    ("names", "found", "nodes"),
    [
        (["sshd: me@notty", "LAUNCH"], ["LAUNCH", "sshd: me@notty"], NODES),
        (
            ["sshd: me@notty", "bash -c python LAUNCH"],
            ["bash -c python LAUNCH", "sshd: me@notty"],
            NODES,
        ),
        (
            ["sshd: me@pts/0", "-bash", "bin/deepspeed", "LAUNCH"],
            ["LAUNCH", "bin/deepspeed"],
            NODES,
        ),
        (["sshd: me@pts/0", "bin/deepspeed", "LAUNCH"], ["LAUNCH", "bin/deepspeed"], NODES),
        (
            ["sshd: me@pts/0", "bin/deepspeed --no_ssh", "LAUNCH"],
            ["LAUNCH", "bin/deepspeed --no_ssh"],
            None,
        ),
        (["sshd: me@pts/0", "-bash", "nohup LAUNCH"], ["nohup LAUNCH"], NODES),
        (["sshd: me@pts/0", "-bash"], [], None),
    ],
)
def test_launchers_watches_ssh_session(monkeypatch, names, found, nodes):
    """An SSH session is watched only if a launcher elsewhere started this process through it.

    A process below others of these names, each the child of the one before it.
    """
    ours = _processes(names)
    monkeypatch.setattr(
        launcher_watch.psutil, "Process", lambda: SimpleNamespace(parents=lambda: ours[::-1])
    )
    monkeypatch.setattr(launcher_watch.psutil, "process_iter", lambda: ours)
    assert [process.cmdline() for process in launcher_watch.launchers()] == [
        p.cmdline() for p in _processes(found)
    ]
    assert launcher_watch.nodes() == nodes


def test_launchers_watches_pdsh_and_parents(monkeypatch):
    """On the launcher's machine the newest matching pdsh and its parents are watched."""
    ours = _processes(["sshd: me@notty", "LAUNCH --node_rank=0"])
    above = _processes(
        ["bash", "python bin/resume work --restarts 3", "python -m deepspeed.launcher.runner x.py"]
    )
    old, pdsh, other = _processes(
        ["pdsh LAUNCH", "pdsh LAUNCH", "pdsh deepspeed.launcher.launch --master_port=2"]
    )
    for time_s, process in enumerate((old, pdsh, other)):
        process.create_time, process.parents = lambda time_s=time_s: time_s, lambda: above[::-1]
    monkeypatch.setattr(
        launcher_watch.psutil, "Process", lambda: SimpleNamespace(parents=lambda: ours[::-1])
    )
    monkeypatch.setattr(
        launcher_watch.psutil, "process_iter", lambda: [*ours, old, pdsh, other, *above]
    )
    assert launcher_watch.launchers() == [ours[1], ours[0], pdsh, above[2], above[1]]


def _processes(names: list[str]) -> list[SimpleNamespace]:
    told = base64.urlsafe_b64encode(json.dumps(NODES).encode()).decode()
    launch = f"deepspeed.launcher.launch --world_info={told} --master_port=1"
    return [
        SimpleNamespace(cmdline=lambda name=name: name.replace("LAUNCH", launch).split(" "))
        for name in names
    ]
