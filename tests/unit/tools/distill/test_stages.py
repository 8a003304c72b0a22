"""The record of stages: what is skipped, run again or refused."""

import json

import pytest

from tiekd.errors import LaunchError
from tiekd.tools.distill.stages import Records, Stage, run

NAMES = ("data", "cache", "train", "export")


class Trial:
    """Four stages that note their runs; `reads` are what they read."""

    def __init__(self, folder):
        self.folder = folder
        self.ran = []
        self.told = []
        self.reads = dict.fromkeys(NAMES, "")
        self.fails = ""

    def call(self, name):
        if name == self.fails:
            raise RuntimeError("killed")
        self.ran.append(name)
        (self.folder / name).write_text("done")

    def go(self, until=None) -> list[str]:
        """Runs what isn't finished, as a new process does; returns the names of what ran."""
        self.ran, self.told = [], []
        stages = [
            Stage(
                name,
                lambda name=name: self.call(name),
                lambda name=name: self.reads[name],
                f"{name}.in",
                [self.folder / name],
            )
            for name in NAMES
        ]
        run(stages, Records(self.folder), self.told.append, until)
        return self.ran


@pytest.fixture
def trial(tmp_path) -> Trial:
    return Trial(tmp_path)


def test_stages_run_once(trial):
    """Finished stages aren't run again, and say so."""
    assert trial.go() == list(NAMES)
    assert trial.go() == []
    assert all("finished before" in line for line in trial.told)


def test_stages_continue_where_killed(trial):
    """A stage that was killed is run again, those before it aren't."""
    trial.fails = "train"
    with pytest.raises(RuntimeError):
        trial.go()
    assert json.loads((trial.folder / "stages.json").read_text())["train"]["finished"] is False
    trial.fails = ""
    assert trial.go() == ["train", "export"]


def test_stages_end_with_until(trial):
    """--until ends after a stage, and the next call begins with the following one."""
    assert trial.go("cache") == ["data", "cache"]
    assert trial.go("cache") == []
    assert trial.go() == ["train", "export"]


def test_stages_before_training_follow_changes(trial):
    """Before the training a change runs its stage and all later ones again."""
    trial.go("cache")
    trial.reads["data"] = "more images"
    assert trial.go("cache") == ["data", "cache"]
    assert any("data.in changed; it is run again" in line for line in trial.told)


@pytest.mark.parametrize(("name", "killed"), [("data", False), ("train", False), ("train", True)])
def test_stages_refuse_changes_after_training_began(trial, name, killed):
    """Once the training has begun, even if it was killed, a change of what it reads is refused."""
    trial.fails = "train" if killed else ""
    if killed:
        with pytest.raises(RuntimeError):
            trial.go()
    else:
        trial.go()
    trial.fails = ""
    trial.reads[name] = "changed"
    with pytest.raises(LaunchError, match=f"{name}.in changed since the training began"):
        trial.go()


def test_stages_after_training_are_run_again(trial):
    """A change of what only a later stage reads runs that one again."""
    trial.go()
    trial.reads["export"] = "changed"
    assert trial.go() == ["export"]


def test_stages_make_lost_output_again(trial):
    """A stage whose output is gone is run again."""
    trial.go()
    (trial.folder / "export").unlink()
    assert trial.go() == ["export"]
    assert any("export is gone" in line for line in trial.told)


def test_stages_killed_while_making_lost_output(trial):
    """A kill while lost output is made again isn't taken for a change since the training began."""
    trial.go()
    (trial.folder / "data").unlink()
    trial.fails = "data"
    with pytest.raises(RuntimeError):
        trial.go()
    trial.fails = ""
    assert trial.go() == ["data"]


def test_stages_may_complete_what_they_read(trial):
    """A stage that changes what it reads itself, as the plan, isn't run again for that."""
    call = trial.call

    def completes(name):
        call(name)
        if name == "data":
            trial.reads["data"] = "completed"

    trial.call = completes
    trial.go()
    assert trial.go() == []


def test_stages_damaged_record_is_one_line(trial):
    """A damaged record is refused with what to do."""
    (trial.folder / "stages.json").write_text("{")
    with pytest.raises(LaunchError, match="can't be read as a record of stages; remove it"):
        trial.go()
