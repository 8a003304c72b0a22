"""Data workers end with their program; errors of one that reads ahead are reported in time."""

import multiprocessing
import subprocess
import sys
import time

import psutil
import pytest
from support.programs import ROOT

from tiekd.data.loading import transport
from tiekd.data.loading.workers import read
from tiekd.errors import DataError


@pytest.fixture
def unpinned(monkeypatch):
    """There is no pinned memory without a GPU."""
    receive = transport.receive
    monkeypatch.setattr(transport, "receive", lambda connection, _pin: receive(connection))


def slow(keys):
    time.sleep(keys[0])
    return keys


@pytest.mark.usefixtures("unpinned")
def test_pinned_errors_arrive_without_waiting():
    """With pinned memory a slow or killed worker is reported, and closing never waits."""
    started = time.monotonic()
    results = read(slow, [[0], [3600]], 1, str, 60, pin_memory=True)
    assert next(results) == [0]
    results.close()
    results = read(slow, [[0], [3600]], 1, str, 2, pin_memory=True)
    with pytest.raises(DataError, match=r"^\[3600\]: not read by a data worker within 2 s"):
        list(results)
    results = read(slow, [[0], [3600]], 1, str, 60, pin_memory=True)
    next(results)

    def kill_workers():
        for child in multiprocessing.active_children():  # one of before may still be about to end
            child.kill()
        time.sleep(60)

    with pytest.raises(DataError, match="a data worker died"):
        kill_workers()
    results.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - started < 60


def test_workers_end_with_killed_program():
    """Workers end when their program is killed."""
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import multiprocessing
from tiekd.data.loading.workers import read
results = read(lambda keys: [2 * key for key in keys], [[1]] * 100, 2, str, 60)
next(results)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), 9)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2, result.stderr
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30
    )
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
