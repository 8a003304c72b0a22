"""A rank that nobody would end any more, ends by itself."""

from types import SimpleNamespace

import pytest

from tiekd.distributed import launcher_watch


@pytest.mark.parametrize(
    ("parent", "name", "group", "adopted"),
    [
        (1, "systemd", 70, True),
        (50, "systemd", 70, True),
        (1, "bash", 1, False),  # a container's first process, of whose job it is
        (1, "systemd", 80, False),  # a service, or started by hand
        (60, "bash", 70, False),
        (70, "deepspeed", 70, False),
    ],
)
def test_is_adopted_detects_orphaned_launch(parent, name, group, adopted, monkeypatch):
    """`_is_adopted` is true for a launch.py whose parent, `deepspeed`, has ended."""
    above = SimpleNamespace(pid=parent, name=lambda: name)
    launch = SimpleNamespace(
        pid=80,
        parent=lambda: above,
        cmdline=lambda: ["python", "-m", "deepspeed.launcher.launch", "x.py"],
    )
    monkeypatch.setattr(
        launcher_watch.os, "getpgid", {80: group, 50: 50, 60: 60, 70: 70, 1: 1}.__getitem__
    )
    assert launcher_watch._is_adopted(launch) is adopted
