"""A program whose stdout is a full disk, or a pipe that nobody reads."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("is_elsewhere", "code"), [(False, 2), (True, 0)])
def test_full_stdout_is_one_line(is_elsewhere, code, tmp_path):
    """A full stdout is one line on stderr; only a program whose result it is ends with code 2."""
    program = f"""
import logging, sys
from tiekd.distributed import entrypoint

def main():
    if {is_elsewhere}:
        entrypoint.result_is_elsewhere()
    logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))
    for _ in range(3):
        logging.warning("a line")
        print("a line", flush=True)
    open({str(tmp_path / "done")!r}, "w").close()

entrypoint.program(main)
"""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
            timeout=60,
            check=False,
        )
    assert ended.stderr == (
        "tiekd: stdout: No space left on device; all later output to stdout is lost\n"
    )
    assert ended.returncode == code
    assert (tmp_path / "done").exists()


def test_stdout_without_reader_is_no_error(tmp_path):
    """`program | head` says nothing on stderr, and the program still does its work."""
    program = f"""
from tiekd.distributed import entrypoint

def main():
    for _ in range(100_000):
        print("a line")
    print("the last line", flush=True)
    open({str(tmp_path / "done")!r}, "w").close()

entrypoint.program(main)
"""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "done").exists()
