"""The ends of a program in a process of its own: the words and the exit code."""

import os
import subprocess
import sys

import pytest
from support.programs import ROOT

from tiekd.distributed import entrypoint, process_group


def test_entrypoint_non_utf8_names(tmp_path):
    """A file name that is no UTF-8 is printed escaped, or rejected in one line."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from tiekd.distributed import entrypoint

def main():
    print(os.fsdecode(b"K\\xe4fer.png"))
    os.fsdecode(b"M\\xfcnchen").encode()

entrypoint.program(main)
""")
    ended = subprocess.run(
        [sys.executable, program], capture_output=True, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    assert ended.returncode == 2
    assert ended.stdout == b"K\\udce4fer.png\n"
    assert ended.stderr.startswith(
        b"LaunchError: M\\udcfcnchen: a name that can't be written as utf-8; rename it"
    )
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("ranks", "code"), [(1, 0), (2, 0), (2, entrypoint.STOPPED_CODE), (1, 2)])
def test_entrypoint_exit_code_and_complete_output(ranks, code, tmp_path):
    """Each rank exits with the program's code after its output and atexit functions."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import atexit, sys
sys.path.insert(0, {str(ROOT)!r})
from tiekd.distributed import entrypoint, process_group
from tiekd.errors import DataError, LaunchError

def main():
    process_group.start_rank()
    atexit.register(print, "the end")
    print("all but")
    if {code} == entrypoint.STOPPED_CODE:
        raise entrypoint.Stopped("asked to")
    if {code} == 2:
        raise DataError("torn")

entrypoint.program(main)
""")
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_PORT": str(process_group._free_port()),
    }
    places = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    command = [sys.executable, program]
    processes = [
        subprocess.Popen(
            command, env=os.environ | {"MASTER_ADDR": "127.0.0.1", **place}, stdout=subprocess.PIPE
        )
        for place in places
    ]
    told = [process.communicate(timeout=600)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [code] * ranks
    assert all(text.endswith("all but\nthe end\n") for text in told)
