"""One variable makes programs keep the memory that tensors free.

Without it the allocator stays as it is.
"""

from types import SimpleNamespace

import pytest

from tiekd.distributed import allocator
from tiekd.errors import LaunchError
from tiekd.training import kept_memory_hook
from tiekd.workdir.environment import environment

glibc_only = pytest.mark.skipif(allocator._glibc() is None, reason="what is set is glibc's")


@pytest.fixture
def nothing_may_be_set(monkeypatch):
    """Fails where the allocator is set all the same: these tests' own process keeps its own."""
    monkeypatch.setattr(allocator, "_SETTINGS", None)


@pytest.mark.usefixtures("nothing_may_be_set")
def test_a_machine_without_glibc_has_its_own_allocator_and_says_so(monkeypatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    monkeypatch.setenv(allocator.VARIABLE, "keep")
    allocator.set_by_environment()
    allocator.give_back()
    assert allocator.description() == environment()["allocator"] == "the system's"


@glibc_only
@pytest.mark.usefixtures("nothing_may_be_set")
def test_one_that_was_preloaded_is_named_and_left_alone(monkeypatch):
    assert allocator._preloaded() is None
    monkeypatch.setattr(allocator, "_preloaded", lambda: "libjemalloc.so.2")
    monkeypatch.setenv(allocator.VARIABLE, "keep")
    allocator.set_by_environment()
    assert environment()["allocator"] == "libjemalloc.so.2 in place of glibc's"


@pytest.mark.usefixtures("nothing_may_be_set")
def test_the_switch_is_checked_even_where_nothing_is_set(monkeypatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    monkeypatch.setenv(allocator.VARIABLE, "on")
    with pytest.raises(LaunchError, match="got 'on'; allowed: keep, system"):
        allocator.set_by_environment()


def test_what_creeps_up_is_given_back_and_the_level_measured_anew(monkeypatch):
    held, seen, given_back = [1000, 1049, 1051, 1200, 1250, 1261, 900, 940, 946], [], []
    monkeypatch.setattr(
        kept_memory_hook.memory, "held_bytes", lambda device: seen.append(held.pop(0)) or seen[-1]
    )
    monkeypatch.setattr(allocator, "give_back", lambda: given_back.append(seen[-1]))
    monkeypatch.setattr(allocator, "_kept", True)
    hook = kept_memory_hook.KeptMemory()
    for _ in range(9):
        hook.after_iteration(SimpleNamespace())
    assert given_back == [1051, 1261, 946]
    monkeypatch.setattr(allocator, "_kept", False)
    hook.after_iteration(SimpleNamespace())  # nothing is asked any more
