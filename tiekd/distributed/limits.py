"""What a system allows a process, and which of it an error says is lacking: open files, processes and threads, memory.

Left out: limits that end a process by a signal (`ulimit -t`, a container's memory), which leave nobody to tell.
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
_WORDS = {
    errno.EMFILE: re.compile("too many open files", re.I),
    errno.EAGAIN: re.compile("can't start new thread|resource temporarily unavailable", re.I),
}


def lacking(error: BaseException) -> str | None:
    """What is lacking and how to have more, in words, where an error or what led to it comes from that; else None."""
    for each in _chain(error):
        number = each.errno if isinstance(each, OSError) else _by_words(str(each))
        if number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
            return _in_words(number)
    return None


def check_threads(count: int) -> None:
    """Raises LaunchError where this process may not have so many threads more: C++ libraries abort where they can't."""
    may_end = threading.Event()
    threads = [threading.Thread(target=may_end.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise LaunchError(
            f"this process may not start {count} more threads: {lacking(error) or error}"
        ) from None
    finally:
        may_end.set()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those before it; `raise ... from None` hides them, but they are there."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _by_words(text: str) -> int | None:
    return next((number for number, words in _WORDS.items() if words.search(text)), None)


def _in_words(number: int) -> str:
    reason = os.strerror(number)
    if number == errno.ENOMEM:
        return f"{reason}; free some memory"
    if number not in _LIMITS:
        return f"{reason}, on the whole machine; end what isn't needed"
    name, kind = _LIMITS[number]
    limit = resource.getrlimit(kind)[0]
    if limit == resource.RLIM_INFINITY:
        return f"{reason} ({name} sets no limit here, so the container or the service does); raise that"
    return f"{reason} ({name} is {limit} here); raise that"
