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


@pytest.mark.parametrize(
    ("command", "launches"),
    [
        ("python -m deepspeed.launcher.runner --num_gpus=1 bin/train.py r.yaml", True),
        ("python bin/resume work_dirs/x --restarts 3", True),
        ("python bin/resume work_dirs/x", False),
        ("python /home/x/bin/experiment.py spec.yaml", True),
        ("python bin/experiment.py", True),
        ("python bin/my_experiment.py spec.yaml", False),
        ("vim bin/experiment.pyc", False),
        ("python bin/distill.py rides --out o", True),
        ("python /venv/bin/tiekd distill rides --out o", True),
        ("python /venv/bin/tiekd experiment demo", True),
        ("python -m tiekd.tools.rebuild_student --threads 2", True),
        ("python -m tiekd.tools.rebuild_students", False),
        ("python bin/undistill.py rides", False),
        ("python bin/train.py r.yaml", False),
    ],
)
def test_launches_knows_programs_that_start_ranks(command, launches):
    """A rank watches the launcher, and the programs that supervise a launcher."""
    assert launcher_watch._launches(command) is launches
