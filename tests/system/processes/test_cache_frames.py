"""Decoding frames on a disk that other jobs fill, or into a folder that one writes to."""

import os
import subprocess
import sys

import pytest
from support.decoded_frames import arrays, fill, make_root, refused

from tiekd.tools import cache_frames


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "kitti")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("workers", [0, 2])
def test_fill_disk_full_midway_is_one_line(root, monkeypatch, workers):
    """A disk that fills up midway ends with a one-line error and keeps whole files."""
    small = root / "decoded"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", small], capture_output=True
    ).returncode:
        pytest.skip("mounting isn't allowed here")
    try:
        monkeypatch.setattr(cache_frames, "_check_disk", lambda *_: None)
        told = refused(root, workers=workers)
        assert told.startswith(str(small))
        assert "No space left on device" in told
        assert told.count("check the disk") == 1
        whole = arrays(root)
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    assert whole
    assert len(whole) < 15


def test_fill_rejects_second_job(root):
    """A folder locked by another job is rejected until that job ends."""
    fill(root)
    code = "import fcntl, sys; lock = open(sys.argv[1], 'w'); "
    code += "fcntl.lockf(lock, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(root / "decoded" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert (
            refused(root) == f"{root / 'decoded'}: another job is writing there; wait until it ends"
        )
        other.communicate(b"\n")
    assert "15 there already" in fill(root)[0]
