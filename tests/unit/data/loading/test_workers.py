"""A data worker that dies or hangs is one line in a bounded time, wherever the program is then; no process stays."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from support import fake_data, stuck_disk
from support.fake_data import image_name
from support.frames import kitti_frames

from tiekd.data.augment.augment import Augment
from tiekd.data.loading import transport, workers
from tiekd.data.loading.loader import training_batches, validation_batches
from tiekd.data.loading.sampler import MicroBatches
from tiekd.data.loading.workers import read
from tiekd.errors import DataError

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    return kitti_frames(str(fake_data.make(tmp_path)), "train", 80.0)


@pytest.fixture(autouse=True)
def no_process_stays():
    yield
    assert multiprocessing.active_children() == []


def training(data, workers, **options):
    sampler = MicroBatches(len(data), 2, 1, 0, 1, 0, 0, 1000)
    return training_batches(data, sampler, Augment(crop=(12, 16)), 0, workers, CPU, **options)


@pytest.mark.processes
@pytest.mark.parametrize("place", ["waiting", "elsewhere"])
def test_a_worker_that_is_killed_ends_the_program_wherever_it_is(data, place):
    batches = training(data, 2, timeout_s=60)
    next(batches)
    victim = multiprocessing.active_children()[0]
    started = time.monotonic()
    with pytest.raises(DataError) as error:
        os.kill(victim.pid, signal.SIGKILL)
        if place == "waiting":
            for _ in batches:
                pass
        time.sleep(120)  # stands for a network's step
    assert str(error.value) == (
        f"a data worker died (process {victim.pid}, by SIGKILL); if the memory is full, this machine's or the "
        "container's, set a smaller data.workers"
    )
    assert time.monotonic() - started < 60
    batches.close()


def test_a_file_that_does_not_answer_is_named_when_the_time_is_over(data, tmp_path, monkeypatch):
    path = tmp_path / "input" / image_name(3)
    stuck_disk.hold(monkeypatch, path)
    for batches in (training(data, 2, timeout_s=6), validation_batches(data, 1, 0, 1, 1, CPU, 6)):
        started = time.monotonic()
        with pytest.raises(DataError) as error:
            list(batches)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        told = ": not read by a data worker within 6 s; see whether the disk still answers, or set a greater data.tim"
        assert told in str(error.value)
        assert time.monotonic() - started < 60, "workers that hang are not waited for"


class Doubled(torch.utils.data.Dataset):
    def __getitems__(self, keys):
        return [2 * key for key in keys]


@pytest.mark.parametrize("stuck", [1, 2])
def test_workers_that_do_not_start_are_replaced(stuck, monkeypatch):
    """As where a lock is held in the forked process that nobody there will ever release."""
    monkeypatch.setattr(workers, "_STARTING_S", 1.0)
    forks_left = stuck

    def hang() -> None:
        nonlocal forks_left
        forks_left -= 1
        if forks_left == 0:
            time.sleep(3600)

    def count() -> None:
        nonlocal forks_left
        forks_left -= 1

    os.register_at_fork(after_in_child=hang, after_in_parent=count)
    began = time.monotonic()
    assert list(read(Doubled(), [[number] for number in range(9)], 2, list, str, 60)) == [
        [2 * n] for n in range(9)
    ]
    assert 1.0 < time.monotonic() - began < 50.0


@pytest.mark.processes
def test_no_worker_stays_where_the_rest_is_not_asked_for():
    results = read(Doubled(), [[number] for number in range(100)], 2, list, str, 60)
    assert [next(results) for _ in range(3)] == [[0], [2], [4]]
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []


def test_an_error_of_ours_keeps_its_traceback():
    def broken(_):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(read(Doubled(), [[1]], 1, broken, str, 60))


@pytest.fixture
def unpinned(monkeypatch):
    """There is no pinned memory without a GPU."""
    receive = transport.receive
    monkeypatch.setattr(transport, "receive", lambda connection, _pin: receive(connection))


def test_results_for_a_gpu_are_received_one_ahead_in_order(unpinned):
    results = read(Doubled(), [[number] for number in range(20)], 2, list, str, 60, pin_memory=True)
    assert list(results) == [[2 * number] for number in range(20)]
    results = read(Doubled(), [[number] for number in range(20)], 2, list, str, 60, pin_memory=True)
    assert next(results) == [0]
    results.close()
    assert [
        thread.name for thread in threading.enumerate() if thread.name.startswith("batches")
    ] == []


class Slow(torch.utils.data.Dataset):
    def __getitems__(self, keys):
        time.sleep(keys[0])
        return keys


@pytest.mark.processes
def test_what_goes_wrong_ahead_is_told_and_nothing_waits_for_it(unpinned):
    started = time.monotonic()
    results = read(Slow(), [[0], [3600]], 1, list, str, 60, pin_memory=True)
    assert next(results) == [0]
    results.close()
    results = read(Slow(), [[0], [3600]], 1, list, str, 2, pin_memory=True)
    with pytest.raises(DataError, match=r"^\[3600\]: not read by a data worker within 2 s"):
        list(results)
    results = read(Slow(), [[0], [3600]], 1, list, str, 60, pin_memory=True)
    next(results)
    with pytest.raises(DataError, match="a data worker died"):
        for child in multiprocessing.active_children():  # one of before may still be about to end
            child.kill()
        time.sleep(60)
    results.close()
    assert time.monotonic() - started < 60


@pytest.mark.processes
def test_a_worker_ends_with_its_program_however_that_ended(tmp_path):
    code = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parents[4])!r}, {str(Path(__file__).parents[3])!r}, {str(Path(__file__).parent)!r}]
import multiprocessing
from test_workers import Doubled
from tiekd.data.loading.workers import read
results = read(Doubled(), [[1]] * 100, 2, list, str, 60)
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
