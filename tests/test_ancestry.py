"""A rank that nobody would end any more, ends by itself."""

import os
import subprocess
import sys

import pytest

from tiekd import ancestry


def watched(**said: str) -> subprocess.CompletedProcess:
    """A process that looks for its launchers, of which the environment says that they are there."""
    code = "from tiekd import ancestry; ancestry.watch_launchers(); print('goes on')"
    return subprocess.run([sys.executable, "-c", code], env=os.environ | said, capture_output=True, text=True)


@pytest.fixture
def ended() -> str:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        pass
    return str(process.pid)


def test_without_its_launcher_it_ends(ended):
    for said in ({ancestry.SUPERVISOR: ended}, {"CROSS_RANK": "0"}):  # DeepSpeed's launch.py says the latter
        result = watched(**said)
        assert (result.stdout, result.stderr, result.returncode) == ("", "", 1)


def test_with_it_or_with_none_it_goes_on():
    for said in ({ancestry.SUPERVISOR: str(os.getpid())}, {}):
        assert watched(**said).stdout == "goes on\n"
