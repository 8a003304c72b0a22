"""A data worker that dies or hangs is reported in one line, in a bounded time.

That holds wherever the program is then, and no process stays.
"""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from support import fake_data, stuck_disk
from support.fake_data import image_name
from support.frames import kitti_frames

from tiekd.data.augment.augment import Augment
from tiekd.data.loading import transport, workers
from tiekd.data.loading.loader import Loading, training_batches, validation_batches
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


def training(data, loading):
    sampler = MicroBatches(len(data), 2, range(1000), seed=0)
    return training_batches(data, sampler, Augment(crop=(12, 16)), CPU, loading=loading)


@pytest.mark.parametrize("place", ["waiting", "elsewhere"])
def test_killed_worker_raises_wherever_program_is(data, place):
    """A killed worker raises a `DataError` in the main process, waiting or not."""
    batches = training(data, Loading(workers=2, timeout_s=60))
    next(batches)
    victim = multiprocessing.active_children()[0]
    started = time.monotonic()

    def go_on():
        os.kill(victim.pid, signal.SIGKILL)
        if place == "waiting":
            for _ in batches:
                pass
        time.sleep(120)  # stands for a network's step

    with pytest.raises(DataError) as error:
        go_on()
    assert str(error.value) == (
        f"a data worker died (process {victim.pid}, by SIGKILL); if the memory is full, this "
        "machine's or the container's, set a smaller data.workers"
    )
    assert time.monotonic() - started < 60
    batches.close()


def test_read_timeout_names_file(data, tmp_path, monkeypatch):
    """A file that isn't read within `timeout_s` is named in one line."""
    path = tmp_path / "input" / image_name(3)
    stuck_disk.hold(monkeypatch, path)
    for batches in (
        training(data, Loading(workers=2, timeout_s=6)),
        validation_batches(data, 1, CPU, loading=Loading(workers=1, timeout_s=6)),
    ):
        started = time.monotonic()
        with pytest.raises(DataError) as error:
            list(batches)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        told = (
            ": not read by a data worker within 6 s; see whether the disk still answers, or set a "
            "greater data.tim"
        )
        assert told in str(error.value)
        assert time.monotonic() - started < 60, "workers that hang are not waited for"


def asleep(keys):
    time.sleep(keys[0])
    return keys


def doubled(keys):
    return [2 * key for key in keys]


@pytest.mark.parametrize("stuck", [1, 2])
def test_hung_worker_start_is_replaced(stuck, monkeypatch):
    """Workers that hang while they start are replaced, and all results arrive.

    A lock that is held in the forked process, and that nobody there releases, does this.
    """
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
    assert list(read(doubled, [[number] for number in range(9)], 2, str, 60)) == [
        [2 * n] for n in range(9)
    ]
    assert 1.0 < time.monotonic() - began < 50.0


def test_closed_iterator_ends_workers():
    """Closing the iterator ends its workers."""
    results = read(doubled, [[number] for number in range(100)], 2, str, 60)
    assert [next(results) for _ in range(3)] == [[0], [2], [4]]
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []


def test_internal_error_keeps_class():
    """An error that isn't the project's own keeps its class and message."""

    def broken(_):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours") as error:
        list(read(broken, [[1]], 1, str, 60))
    told = str(error.value.__cause__)
    assert told.startswith("in a data worker:\n")
    assert f'File "{__file__}", line ' in told
    assert ", in broken\n" in told


@pytest.fixture
def unpinned(monkeypatch):
    """There is no pinned memory without a GPU."""
    receive = transport.receive
    monkeypatch.setattr(transport, "receive", lambda connection, _pin: receive(connection))


@pytest.mark.usefixtures("unpinned")
def test_pinned_results_keep_order():
    """Results for a GPU arrive in order, and closing ends the receiving thread."""
    results = read(doubled, [[number] for number in range(20)], 2, str, 60, pin_memory=True)
    assert list(results) == [[2 * number] for number in range(20)]
    results = read(doubled, [[number] for number in range(20)], 2, str, 60, pin_memory=True)
    assert next(results) == [0]
    results.close()
    assert [
        thread.name for thread in threading.enumerate() if thread.name.startswith("batches")
    ] == []


@pytest.mark.usefixtures("unpinned")
def test_death_seen_by_reading_thread_interrupts_main_thread(monkeypatch):
    """A death raises in the main thread though the thread that reads ahead saw it first."""
    seen = threading.Event()
    main, waitpid = threading.main_thread(), os.waitpid

    def slow_waitpid(pid, options):
        # The main thread comes second, and before the first thread has stored the exit code.
        if options and threading.current_thread() is main:
            seen.wait(0.5)
        result = waitpid(pid, options)
        if result[0] and threading.current_thread() is not main:
            seen.set()
            time.sleep(0.2)
        return result

    results = read(asleep, [[0], [60]], 1, str, 60, pin_memory=True)
    assert next(results) == [0]
    victim = multiprocessing.active_children()[0]
    monkeypatch.setattr(os, "waitpid", slow_waitpid)

    def go_on():
        os.kill(victim.pid, signal.SIGKILL)
        time.sleep(20)  # stands for a network's step

    with pytest.raises(DataError, match="a data worker died"):
        go_on()
    results.close()
