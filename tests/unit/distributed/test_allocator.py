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
def test_allocator_without_glibc_is_the_systems(monkeypatch):
    """Without glibc nothing is set, and the environment names the system's allocator."""
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    monkeypatch.setenv(allocator.VARIABLE, "keep")
    allocator.set_by_environment()
    allocator.give_back()
    assert allocator.description() == environment()["allocator"] == "the system's"


@glibc_only
@pytest.mark.usefixtures("nothing_may_be_set")
def test_allocator_preloaded_is_named_and_kept(monkeypatch):
    """A preloaded allocator is named in the environment and left as it is."""
    assert allocator._preloaded() is None
    monkeypatch.setattr(allocator, "_preloaded", lambda: "libjemalloc.so.2")
    monkeypatch.setenv(allocator.VARIABLE, "keep")
    allocator.set_by_environment()
    assert environment()["allocator"] == "libjemalloc.so.2 in place of glibc's"


@pytest.mark.usefixtures("nothing_may_be_set")
def test_allocator_value_checked_without_glibc(monkeypatch):
    """An unknown TIEKD_ALLOCATOR raises a LaunchError even without glibc."""
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    monkeypatch.setenv(allocator.VARIABLE, "on")
    with pytest.raises(LaunchError, match="got 'on'; allowed: keep, system"):
        allocator.set_by_environment()


def test_kept_memory_hook_gives_back_growth(monkeypatch):
    """The hook gives memory back each time that it has grown by 5 % over its level."""
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
