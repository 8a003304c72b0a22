"""Lets a unit test that starts a process fail. Forks, as of data workers, are allowed."""

import os
import platform
import subprocess
from collections.abc import Iterator
from multiprocessing import popen_forkserver, popen_spawn_posix

import pytest

# Matplotlib starts fc-list where it has no cache of the system's fonts, on a machine's first plot.
FONT_LISTS = ("fc-list",)


# By module, so that fixtures of a module can't start one either.
@pytest.fixture(autouse=True, scope="module")
def no_process() -> Iterator[None]:
    """Puts a failure in the place of all that starts another program or another Python."""

    def refuse(*_arguments, **_options) -> None:
        pytest.fail("a unit test started a process; tests that need one belong in tests/system/")

    start = subprocess.Popen.__init__

    def refuse_all_but_font_lists(popen: subprocess.Popen, command, *arguments, **options) -> None:
        if not isinstance(command, list) or command[0] not in FONT_LISTS:
            refuse()
        start(popen, command, *arguments, **options)

    platform.processor()  # named in logs; Python asks `uname` for it once and remembers it
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (os, "posix_spawn"),
            (os, "posix_spawnp"),
            (os, "system"),
            (popen_spawn_posix.Popen, "_launch"),
            (popen_forkserver.Popen, "_launch"),
        ):
            patch.setattr(owner, name, refuse)
        patch.setattr(subprocess.Popen, "__init__", refuse_all_but_font_lists)
        yield
