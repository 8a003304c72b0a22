"""Unit tests start no process but forks; conftest.py sees to it."""

import multiprocessing
import os
import subprocess

import pytest


def in_context(method: str) -> multiprocessing.Process:
    process = multiprocessing.get_context(method).Process(target=int)
    process.start()
    return process


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.Popen(["true"]),
        lambda: subprocess.run(["true"], check=False),
        lambda: os.system("true"),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.posix_spawnp("true", ["true"], {}),
        lambda: in_context("spawn"),
        lambda: in_context("forkserver"),
    ],
    ids=["Popen", "run", "system", "posix_spawn", "posix_spawnp", "spawn", "forkserver"],
)
def test_unit_test_that_starts_a_process_fails(start):
    """Each way to start a program or a Python fails with where the test belongs."""
    with pytest.raises(pytest.fail.Exception, match="belong in tests/system/"):
        start()


def test_unit_test_may_fork():
    """Data workers are forked."""
    process = in_context("fork")
    process.join()
    assert process.exitcode == 0
