"""Running the jobs of an experiment, with a stand-in for the processes."""

import io
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import small_experiment

from tiekd.distributed import visible_devices
from tiekd.evaluation import floors
from tiekd.tools.experiment import launch, runs, states
from tiekd.tools.experiment.launch import Launcher


class Processes:
    """Does what the commands would do: writes outcomes and figures, or fails."""

    def __init__(self, spec):
        self.spec = spec
        self.commands = []
        self.broken = ""  # rows whose training fails
        self.outcome = "finished"
        self.stopped_by = None  # a signal during the next training

    def __call__(self, command, work_dir, asked, output):
        self.commands.append(command)
        if "--score" in command:
            job = json.loads(Path(command[-1]).read_text())
            names = [job["title"]] if job["title"] else floors.NAMES
            frames = small_experiment.figures(np.full(len(small_experiment.NAMES), 0.3))
            figures = {name: [frame.as_json() for frame in frames] for name in names}
            content = {"made_from": job["made_from"], "figures": figures}
            Path(job["out"]).write_text(json.dumps(content))
            return 0
        if self.stopped_by is not None:
            asked.append(self.stopped_by)
            return 75
        row = work_dir.parent.parent.name
        output.write(b"LossError: too bad\n[2026-01-01 00:00:00,000] [ERROR] [launch.py:1] x\n")
        if row in self.broken:
            return 2
        facts = {"outcome": self.outcome, "iteration": 4, "total_iterations": 4}
        facts |= {"reason": None, "time": ""}
        (work_dir / "outcome.json").write_text(json.dumps(facts))
        return 0

    @property
    def trainings(self) -> list[str]:
        return [command for command in self.commands if "--score" not in command]


@pytest.fixture
def spec(tmp_path, scenes):
    return small_experiment.write(tmp_path, scenes)


@pytest.fixture
def launcher(spec, tmp_path):
    return Launcher(spec, tmp_path / "experiment.py", io.StringIO(), Processes(spec))


def test_run_fills_its_slots(spec, tmp_path):
    """Two jobs run at the same time, each once, with the variables of their slots."""
    together = threading.Barrier(2, timeout=20)
    processes, seen = Processes(spec), []

    def execute(command, *arguments):
        seen.append(command[:2])
        if "--score" not in command:
            together.wait()
        return processes(command, *arguments)

    launcher = Launcher(spec, tmp_path / "experiment.py", io.StringIO(), execute, num_slots=2)
    planned, of_sets = runs.plan(spec)
    assert launcher.run([*planned, *of_sets]) == launch.Finished([], False)
    assert len(processes.trainings) == 6
    assert len(processes.commands) == 13
    assert {command[0] for command in seen} == {"env"}
    told = launcher.out.getvalue().splitlines()
    assert sorted(line.split("]")[0] for line in told) == [f"[{i}/7" for i in range(1, 8)]


def test_slots_stop_together(spec, tmp_path):
    """A signal ends both slots; what failed before is named, and nothing else begins."""
    processes = Processes(spec)
    processes.stopped_by = signal.SIGTERM
    launcher = Launcher(spec, tmp_path / "experiment.py", io.StringIO(), processes, num_slots=2)
    planned, _ = runs.plan(spec)
    assert launcher.run(planned) == launch.Finished([], True)
    assert 1 <= len(processes.commands) <= 2
    processes.stopped_by = None
    again = Launcher(spec, tmp_path / "experiment.py", io.StringIO(), processes, num_slots=2)
    assert again.run(planned) == launch.Finished([], False)


def test_run_trains_and_scores_each_job_once(launcher, spec):
    """Every run is trained and evaluated; a second call finds all finished and starts nothing."""
    planned, of_sets = runs.plan(spec)
    assert launcher.run([*planned, *of_sets]) == launch.Finished([], False)
    assert len(launcher.execute.trainings) == 6
    assert len(launcher.execute.commands) == 13
    assert launcher.run([*planned, *of_sets]) == launch.Finished([], False)
    assert len(launcher.execute.commands) == 13
    told = launcher.out.getvalue().splitlines()
    assert told[0] == "[1/7] streets/new seed 0; left: not known yet"
    assert told[1].startswith("[2/7] streets/old seed 0; left: about 0:00:")
    assert told[-1] == "7 of 7 are finished already"


def test_run_trained_run_is_only_scored(launcher, spec):
    """A run that was killed during its evaluation isn't trained again."""
    job = runs.plan(spec)[0][0]
    launcher.run([job])
    job.figures_file("val").unlink()
    launcher.run([job])
    assert len(launcher.execute.trainings) == 1


def test_run_stopped_early_is_finished(launcher, spec):
    """A training whose hook has stopped it early is complete: it is evaluated, and not repeated."""
    launcher.execute.outcome = "stopped early"
    job = runs.plan(spec)[0][0]
    assert launcher.run([job]) == launch.Finished([], False)
    job.figures_file("val").unlink()
    assert launcher.run([job]) == launch.Finished([], False)
    assert len(launcher.execute.trainings) == 1


def test_run_names_failed_run_and_goes_on(launcher, spec):
    """A failed run is named with the reason and its log, and the others run."""
    launcher.execute.broken = "old"
    planned, _ = runs.plan(spec)
    ended = launcher.run(planned)
    assert [job.row for job in ended.failed] == ["old"] * 3
    assert not ended.stopped
    line = launcher.out.getvalue().splitlines()[2]
    assert line == (
        "FAILED: streets/old seed 0: training ended with code 2: LossError: too bad; its log is "
        f"{planned[1].log}"
    )
    assert states.read(planned[1]).failure.endswith("LossError: too bad")
    # The next call tries it again, and forgets the failure when it succeeds.
    launcher.execute.broken = ""
    assert launcher.run(planned).failed == []
    assert states.read(planned[1]).failure is None


def test_run_of_changed_recipe_is_not_started(launcher, spec, tmp_path):
    """A recipe that changes after the runs were listed isn't trained under the key of the old."""
    planned, _ = runs.plan(spec)
    launcher.run(planned[:1])
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    recipe["log"] = {"interval": 7}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert launcher.run(planned[1:2]) == launch.Finished([], False)
    recipe["optimizer"]["lr"] = 0.123
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert launcher.run(planned[2:3]) == launch.Finished([planned[2]], False)
    told = "its recipe, the engine config, the hostfile or tiekd's code has changed"
    assert told in launcher.out.getvalue()
    assert len(launcher.execute.trainings) == 2
    assert launcher.run(runs.plan(spec)[0]).failed == []


def test_run_of_changed_data_is_not_started(tmp_path, scenes):
    """An image that changes after the runs were listed isn't trained on under the old key."""
    copy = tmp_path / "copy"
    shutil.copytree(scenes, copy)
    spec = small_experiment.write(tmp_path, copy)
    launcher = Launcher(spec, tmp_path / "experiment.py", io.StringIO(), Processes(spec))
    planned, _ = runs.plan(spec)
    assert launcher.run(planned[:1]) == launch.Finished([], False)
    image = next((copy / "input").rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"x")
    assert launcher.run(planned[1:2]) == launch.Finished([planned[1]], False)
    assert "its data, the teacher's weights or code of" in launcher.out.getvalue()
    assert len(launcher.execute.trainings) == 1
    assert launcher.run(runs.plan(spec)[0][1:2]).failed == []


def test_run_of_changed_code_is_not_scored(launcher, spec, monkeypatch):
    """Code that changes during a training doesn't evaluate it."""
    job = runs.plan(spec)[0][0]
    finish = launcher.execute

    def execute(*arguments):
        monkeypatch.setattr(runs, "_PACKAGES", ("torch",))
        return finish(*arguments)

    launcher.execute = execute
    assert launcher.run([job]).failed == [job]
    assert len(finish.commands) == 1
    assert not job.figures_file("val").exists()
    runs.code_digest.cache_clear()


def test_run_stops_when_asked(launcher, spec):
    """A signal during a training stops the experiment, and that run is no failure."""
    launcher.execute.stopped_by = signal.SIGTERM
    planned, _ = runs.plan(spec)
    assert launcher.run(planned) == launch.Finished([], True)
    assert len(launcher.execute.commands) == 1
    assert "streets/new seed 0 was stopped" in launcher.out.getvalue()
    assert states.read(planned[0]).failure is None
    assert launcher.run(planned).stopped
    assert len(launcher.execute.commands) == 1


def test_seconds_count_all_attempts(launcher, spec, monkeypatch):
    """The time of a run is that of its stopped, its killed and its last attempt together."""
    clock = [1000.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(launch.time, "time", lambda: clock[0])
    job = runs.plan(spec)[0][0]
    execute = launcher.execute

    def slow(*arguments):
        clock[0] += 10.0
        return execute(*arguments)

    launcher.execute = slow
    execute.stopped_by = signal.SIGTERM
    launcher.run([job])
    assert states.read(job) == states.State(job.label, job.key, 10.0)
    # A killed attempt has written its beginning alone; its log ends 7 s later.
    began = replace(states.read(job), began=2000.0)
    states.write(job, began)
    job.log.write_text("")
    os.utime(job.log, (2007.0, 2007.0))
    assert states.read(job).seconds == 17.0
    launcher.received_signals.clear()
    execute.stopped_by = None
    assert launcher.run([job]) == launch.Finished([], False)
    # Training and evaluation took 10 s each.
    finished = states.State(job.label, job.key, 37.0, is_finished=True)
    assert states.read(job) == finished


def test_run_waits_for_ranks_of_killed_experiment(launcher, spec, monkeypatch):
    """A run whose work dir is still locked is started once the lock is free, and fails after it."""
    job = runs.plan(spec)[0][0]
    job.train_dir.mkdir(parents=True)
    locked = [True, True, False]
    monkeypatch.setattr(launch.workdir, "is_in_use", lambda folder: locked.pop(0))
    monkeypatch.setattr(launch, "_POLL_S", 0.0)
    assert launcher.run([job]) == launch.Finished([], False)
    assert locked == []
    assert "waiting for an earlier start of this run" in launcher.out.getvalue()
    # The wait is bounded, and names the folder.
    other = runs.plan(spec)[0][1]
    other.train_dir.mkdir(parents=True)
    monkeypatch.setattr(launch.workdir, "is_in_use", lambda folder: True)
    monkeypatch.setattr(launch, "_EARLIER_RANKS_LEAVE_S", 0.0)
    assert launcher.run([other]).failed == [other]
    assert f"{other.train_dir} is in use by an earlier start" in launcher.out.getvalue()
    assert len(launcher.execute.trainings) == 1


def test_train_command_takes_first_visible_device(spec, monkeypatch):
    """A training runs on the first device of CUDA_VISIBLE_DEVICES, not on the machine's first."""
    monkeypatch.setattr(visible_devices, "_uuids", lambda: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    job = runs.plan(spec)[0][0]
    command = launch.train_command(spec, job, "bin/train.py", os.environ)
    assert command[3:5] == ["--include", "localhost:2"]
    assert not any(word.startswith("--num_gpus") for word in command)


def test_train_command_resumes_by_itself(spec, monkeypatch):
    """The command runs the launcher on a free port, and resumes if there is a checkpoint."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    job = runs.plan(spec)[0][0]
    command = launch.train_command(spec, job, "bin/train.py", os.environ)
    assert command[1:4] == ["-m", "deepspeed.launcher.runner", "--num_gpus=1"]
    assert command[4].startswith("--master_port=")
    assert command[5:11] == [
        "bin/train.py",
        str(job.recipe),
        "--work-dir",
        str(job.train_dir),
        "--resume-from",
        "auto",
    ]
    assert command[11:] == ["--set", *job.overrides]


def test_weights_are_last_or_best(tmp_path, scenes, spec):
    """The weights of the last iteration are evaluated, unless the best ones are asked for."""
    job = runs.plan(spec)[0][0]
    assert launch.weights_of(job, spec) == job.train_dir / "checkpoints" / "iter_4"
    best = small_experiment.write(tmp_path, scenes, weights="best")
    assert launch.weights_of(job, best) == job.train_dir


def test_measure_takes_one_run_of_each_row(launcher, spec):
    """A dry run of each row is measured; a row that can't be is named with the reason."""

    def execute(command, _work_dir, _asked, output):
        launcher.spoke.append(command)
        is_new = any("weight=2.0" in word for word in command)
        output.write(b"ETA: 12.0 s for training\n" if is_new else b"DataError: no frames\n")
        return 0

    launcher.spoke, launcher.execute = [], execute
    planned, _ = runs.plan(spec)
    assert launch.measure(launcher, planned) == {("streets", "new"): 12.0}
    assert len(launcher.spoke) == 2
    assert all("--dry-run" in command for command in launcher.spoke)
    told = "streets/old seed 2 could not be measured: DataError: no frames\n"
    assert launcher.out.getvalue() == told
    assert not spec.folder.exists()
