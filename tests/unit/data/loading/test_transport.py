"""Batches arrive from workers bit for bit, through memory that needs no room in /dev/shm."""

import errno
import multiprocessing
import os
import re
from pathlib import Path

import pytest
import torch

from tiekd.data.loading import transport, workers
from tiekd.data.loading.workers import read
from tiekd.errors import DataError, LaunchError

LARGE, SMALL = 50_000, 5


def made(keys: list[int]) -> dict:
    """A stack, a tensor of its own, a part of one, small ones, none, and a long text."""
    samples = [torch.arange(key, key + LARGE, dtype=torch.int32).to(torch.uint16) for key in keys]
    return {
        "stack": transport.stack(samples),
        "own": samples[0].float() / 7,
        "part": samples[0][1::2],
        "small": transport.stack([sample[:SMALL] for sample in samples]),
        "flags": samples[0][:SMALL].float() > 2,
        "none": samples[0][:0],
        "text": "x" * 200_000,
    }


def equal(one: dict, other: dict) -> bool:
    tensors = [key for key in one if key != "text"]
    return one["text"] == other["text"] and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in tensors
    )


def lies_in(tensor: torch.Tensor) -> str:
    """The file that a tensor's memory is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line.partition("/")[2]
    raise AssertionError


def batches_of(num_workers: int) -> list[dict]:
    return list(read(made, [[n, n + 1] for n in range(5)], num_workers, str, 60))


def test_batch_arrives_unchanged_in_memfd():
    """A batch arrives unchanged, its large tensors in anonymous shared memory."""
    free = os.statvfs("/dev/shm").f_bfree
    without, sent = batches_of(0), batches_of(2)
    assert len(sent) == 5
    assert all(map(equal, without, sent))
    assert all(
        "memfd:tiekd-batch" in lies_in(batch[key]) for batch in sent for key in ("stack", "own")
    )
    assert not any("memfd" in lies_in(batch[key]) for batch in sent for key in ("small", "flags"))
    assert abs(os.statvfs("/dev/shm").f_bfree - free) < 5 * LARGE / 4096, (
        "others use it, too, but not so much"
    )


def test_batch_holds_one_descriptor():
    """A received batch holds one file descriptor and releases it with its tensors."""
    before = len(os.listdir("/proc/self/fd"))
    sent = batches_of(2)
    assert len(os.listdir("/proc/self/fd")) - before == len(sent)
    del sent
    assert len(os.listdir("/proc/self/fd")) == before


def test_batch_falls_back_to_files(monkeypatch, tmp_path):
    """Without `memfd_create` unlinked files carry the batch, and a full disk is one line."""

    def refused(*_):
        raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "memfd_create", refused)
    monkeypatch.setattr(transport.tempfile, "tempdir", str(tmp_path))
    sent = batches_of(2)
    assert all(map(equal, batches_of(0), sent))
    assert all(f"{tmp_path}/"[1:] in lies_in(batch["stack"]) for batch in sent)
    assert os.listdir(tmp_path) == []

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        DataError, match=rf"^{tmp_path}: no room for a batch of 0 MB .*TMPDIR.*data.workers=0$"
    ):
        batches_of(2)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EAGAIN, r"Resource temporarily unavailable \(ulimit -u is .*\); raise that"),
        (errno.ENOMEM, "Cannot allocate memory; free some memory"),
        (errno.EMFILE, r"Too many open files \(ulimit -n is .*\); raise that"),
    ],
)
def test_fork_failure_is_one_line_and_ends_workers(number, told, monkeypatch):
    """A worker that can't be forked raises one line and ends the workers already started."""
    fork, left = os.fork, 2

    def fork_twice():
        nonlocal left
        if left == 0:
            raise OSError(number, os.strerror(number))
        left -= 1
        return fork()

    monkeypatch.setattr(os, "fork", fork_twice)
    line = (
        rf"data.workers: 2 of 3 data workers could be started: {told}, or set a smaller "
        r"data.workers"
    )
    with pytest.raises(LaunchError) as error:
        list(read(made, [[1]], 3, str, 60))
    assert re.fullmatch(line, str(error.value))
    assert multiprocessing.active_children() == []
    assert workers._live == []


def test_too_few_descriptors_is_one_line(monkeypatch):
    """A batch whose descriptor can't be received raises a `LaunchError` of one line."""

    def dropped(_):  # as by the kernel, of what this process may not open
        raise RuntimeError("received 0 items of ancdata")

    monkeypatch.setattr(transport, "recv_handle", dropped)
    with pytest.raises(
        LaunchError,
        match=r"^a batch can't be received: Too many open files \(ulimit -n is \d+ here\)",
    ):
        batches_of(1)
