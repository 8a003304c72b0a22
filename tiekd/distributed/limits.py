"""Recognises errors that come from a process's limits: open files, threads, memory.

Not covered: limits at which the kernel kills a process (`ulimit -t`, a container's memory), since
the process can't report anything then.
"""

import errno
import os
import re
import resource
import threading
from collections.abc import Iterator

from tiekd.errors import LaunchError

_LIMITS = {
    errno.EMFILE: ("ulimit -n", resource.RLIMIT_NOFILE),
    errno.EAGAIN: ("ulimit -u", resource.RLIMIT_NPROC),
}
_PATTERNS = {
    errno.EMFILE: re.compile("too many open files", re.I),
    errno.EAGAIN: re.compile("can't start new thread|resource temporarily unavailable", re.I),
}


def exhausted_resource_message(error: BaseException) -> str | None:
    """Returns a message if an error comes from an exhausted resource, such as open files.

    Args:
        error: The error; the errors that led to it are checked, too.

    Returns:
        A message that names the resource and says how to get more of it; None for any other error.
    """
    for each in _chain(error):
        number = each.errno if isinstance(each, OSError) else _errno_of(str(each))
        if number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
            return _message_of(number)
    return None


def check_threads(count: int) -> None:
    """Raises LaunchError if this process can't start the given number of additional threads.

    A C++ library that can't start its threads would abort the process without a clear message.

    Args:
        count: The number of threads.
    """
    # Try to start the threads. It isn't enough to read the limits: those of a container or a
    # service can't always be read.
    may_end = threading.Event()
    threads = [threading.Thread(target=may_end.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        reason = exhausted_resource_message(error) or error
        raise LaunchError(f"this process may not start {count} more threads: {reason}") from None
    finally:
        may_end.set()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, then the error that led to it, and so on.

    Errors that `raise ... from None` hides are included. Yields nothing for None.

    Args:
        error: The error; None for none.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _errno_of(text: str) -> int | None:
    return next((number for number, pattern in _PATTERNS.items() if pattern.search(text)), None)


def _message_of(number: int) -> str:
    reason = os.strerror(number)
    if number == errno.ENOMEM:
        return f"{reason}; free some memory"
    if number not in _LIMITS:
        return f"{reason}, on the whole machine; end what isn't needed"
    name, kind = _LIMITS[number]
    limit = resource.getrlimit(kind)[0]
    if limit == resource.RLIM_INFINITY:
        return (
            f"{reason} ({name} sets no limit here, so the container or the service does); raise "
            "that"
        )
    return f"{reason} ({name} is {limit} here); raise that"
