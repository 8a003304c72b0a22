"""Two jobs don't write teacher maps into one folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.cached_teacher import cache, make_ground, recipe_of, refused

from tiekd.errors import TeacherError


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


def test_cache_maps_rejects_locked_folder(ground, tmp_path):
    """A folder locked by another job is rejected until that job ends."""
    cache(recipe_of(ground), tmp_path / "maps")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); "
    hold += "fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "maps" / "manifest.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        message = refused(TeacherError, recipe_of(ground), tmp_path / "maps")
        other.communicate(b"\n")
    assert message == (
        f"{tmp_path / 'maps'}: another job is writing maps there; wait until it ends, or give "
        "another --out"
    )
    cache(recipe_of(ground), tmp_path / "maps")
