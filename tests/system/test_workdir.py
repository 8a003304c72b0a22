"""A work dir belongs to one run at a time."""

import subprocess
import sys

import pytest

from tiekd.errors import LaunchError
from tiekd.workdir import workdir

# Locks are a process's own, so the other run must be one.
OTHER_RUN = """
import sys
from pathlib import Path
from tiekd.workdir import workdir
workdir.lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_lock_refuses_work_dir_in_use(tmp_path):
    """A work dir that another process has locked is refused until that process ends."""
    command = [sys.executable, "-c", OTHER_RUN, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        assert workdir.is_in_use(tmp_path)
        told = (
            f"{tmp_path} is in use by process {other.pid} on .*; wait until it has ended, end it, "
            "or give another"
        )
        with pytest.raises(LaunchError, match=told):
            workdir.lock(tmp_path)
        other.communicate()
    assert not workdir.is_in_use(tmp_path)
    workdir.lock(tmp_path)
