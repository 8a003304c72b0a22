"""A thread that ends for want of something is told in a line."""

import resource
import subprocess
import sys

from support.programs import ROOT

OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
FILES = f"Too many open files (ulimit -n is {OPEN_FILES} here); raise that"


def test_thread_lacking_resource_prints_one_line():
    """A thread that fails for want of a resource prints one line and no traceback."""
    code = f"""
import errno, os, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from tiekd.distributed import entrypoint
def fail(number):
    raise OSError(number, os.strerror(number), "wd/tf_logs")
def main():
    for number in (errno.EMFILE, errno.ENOSPC):
        thread = threading.Thread(target=fail, args=(number,), name="writer")
        thread.start()
        thread.join()
entrypoint.program(main)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    files, disk = result.stderr.splitlines()[-2:]
    assert files == f"tiekd: thread writer has ended: {FILES}"
    assert disk.startswith(
        "tiekd: thread writer has ended: wd/tf_logs: No space left on device; make "
    )
    assert "Traceback" not in result.stderr
    assert result.returncode == 0
