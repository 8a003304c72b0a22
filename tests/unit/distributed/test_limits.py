"""A system's limit that is reached is named in one line, whatever error it came as.

No other error is taken for it.
"""

import errno
import os
import resource
import threading

import pytest

from tiekd.distributed import entrypoint, limits
from tiekd.errors import DataError, LaunchError


def hidden_behind_a_data_error():
    try:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "000.png")
    except OSError:
        raise DataError("000.png: torn") from None


def of(number: int):
    def fail():
        raise OSError(number, os.strerror(number))

    return fail


def gloo():
    raise RuntimeError(
        "[enforce fail at gloo/transport/tcp/device.cc:189] rv != -1. -1 vs -1. Too many open files"
    )


def thread():
    raise RuntimeError("can't start new thread")


FILES = (
    f"Too many open files (ulimit -n is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} here); "
    "raise that"
)


@pytest.mark.parametrize(
    ("fail", "told"),
    [
        (hidden_behind_a_data_error, FILES),
        (gloo, FILES),
        (thread, "Resource temporarily unavailable (ulimit -u "),
        (of(errno.EAGAIN), "Resource temporarily unavailable (ulimit -u "),
        (of(errno.ENOMEM), "Cannot allocate memory; free some memory"),
        (
            of(errno.ENFILE),
            "Too many open files in system, on the whole machine; end what isn't needed",
        ),
        (of(errno.EIO), None),
        (lambda: {}["key"], None),
    ],
)
def test_exhausted_resource_message_finds_cause_in_exception_chain(fail, told):
    """The message names the exhausted resource of an error or of its cause; else it is None."""
    with pytest.raises(Exception) as error:  # noqa: B017, PT011 - of any kind
        fail()
    found = limits.exhausted_resource_message(error.value)
    assert found is None if told is None else found.startswith(told)


def test_entrypoint_lacking_resource_is_one_line(capsys, monkeypatch):
    """A program that runs out of open files ends with code 2 and one line."""
    monkeypatch.delenv("TIEKD_DEBUG", raising=False)
    assert entrypoint.run(gloo) == 2
    assert capsys.readouterr().err == f"LaunchError: {FILES}\n"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            errno.EFBIG,
            "LaunchError: a file: File too large; raise the limit of a file's size (ulimit -f)",
        ),
        (
            errno.EIO,
            "LaunchError: a file: Input/output error; the disk, or the connection to it, fails",
        ),
        (
            errno.ESTALE,
            "LaunchError: a file: Stale file handle; the network file system no longer has it",
        ),
    ],
)
def test_entrypoint_disk_error_is_one_line(number, told, capsys, monkeypatch):
    """An error of the disk or a file size limit ends the program with one line."""
    monkeypatch.delenv("TIEKD_DEBUG", raising=False)
    assert entrypoint.run(of(number)) == 2
    assert capsys.readouterr().err.startswith(told)


def test_check_threads_too_few_is_launch_error(monkeypatch):
    """`check_threads` raises a LaunchError, and ends the threads it started."""
    before = threading.active_count()
    limits.check_threads(5)
    start, left = threading.Thread.start, 3

    def start_three(self):
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    with pytest.raises(
        LaunchError, match=r"^this process may not start 5 more threads: Resource temporarily"
    ):
        limits.check_threads(5)
    for ended in [t for t in threading.enumerate() if t.name.startswith("Thread-")]:
        ended.join(10)
    assert threading.active_count() <= before
