"""bin/experiment.py: what it runs, prints and returns, with a stand-in for the processes."""

import argparse
import os
import signal

import pytest
from support import small_experiment

from tiekd.errors import LaunchError
from tiekd.tools.experiment import launch, program, runs


@pytest.fixture
def start(tmp_path, scenes, monkeypatch):
    """Runs the program with options, and returns its exit code and what was run."""
    spec = small_experiment.write(tmp_path, scenes)
    ran: list[list] = []
    failing: set[str] = set()

    def run(self, jobs):
        ran.append(list(jobs))
        failed = [job for job in jobs if job.row in failing]
        return launch.Finished(failed, bool(self.received_signals))

    monkeypatch.setattr(launch.Launcher, "run", run)
    monkeypatch.setattr(launch.Launcher, "catch_signals", lambda self: None)
    monkeypatch.setattr(program.workdir, "lock", lambda folder: None)
    monkeypatch.setattr(program.report, "plot", lambda table: None)  # see test_report.py

    def start(spec=spec, **options):
        given = {"only": [], "report": False, "dry_run": False, "power": False, "score": None}
        given |= {"latency": False, "jobs": 1}
        args = argparse.Namespace(**{**given, **options})
        return program.run(args, spec, tmp_path / "experiment.py")

    start.spec, start.ran, start.failing = spec, ran, failing
    return start


def test_run_pilot_then_all_and_floors(start, capsys):
    """The pilot runs first, then what the experiment needs is told, then all runs and floors."""
    assert start() == 0
    pilot, everything = start.ran
    assert {(job.row, job.seed) for job in pilot} == {
        (row, seed) for row in ("new", "old") for seed in (0, 1, 2)
    }
    assert [job.row for job in everything] == ["new", "old"] * 3 + [None]
    told = capsys.readouterr().out
    assert "streets: smallest detectable difference of abs_rel with 3 seeds" in told
    assert "  old: not known; it needs new and old with 3 seeds" in told
    assert (start.spec.folder / "report.md").is_file()


def test_run_power_stops_after_the_pilot(start, capsys):
    """--power runs the pilot alone and prints the difference beside each row."""
    small_experiment.finish_all(start.spec, 0.03)
    assert start(power=True) == 0
    assert len(start.ran) == 1
    least = float(capsys.readouterr().out.split("  new: ")[1].split()[0])
    assert 0.0 < least < 0.03
    assert not (start.spec.folder / "report.md").exists()


def test_run_only_selects_runs(start):
    """--only runs the chosen runs and the floors of their sets."""
    assert start(only=["new", "1"]) == 0
    assert [(job.row, job.seed) for job in start.ran[1]] == [("new", 1), (None, None)]


def test_run_failed_run_gives_code_1(start, capsys):
    """The exit code says that runs failed, and they are named last, with their logs."""
    start.failing.add("old")
    assert start() == 1
    last = capsys.readouterr().out.splitlines()[-3:]
    for seed, line in enumerate(last):
        assert line.startswith(f"FAILED: streets/old seed {seed}; its log is ")
    # Nothing is tried twice in one call.
    assert [job.row for job in start.ran[1]] == ["new"] * 3 + [None]


def test_run_stopped_gives_code_75(start, monkeypatch, capsys):
    """A stopped experiment says how to resume, with the code for "try again later"."""
    monkeypatch.setattr(
        launch.Launcher, "catch_signals", lambda self: self.received_signals.append(signal.SIGINT)
    )
    assert start() == 75
    assert len(start.ran) == 1
    assert "the same command resumes the experiment" in capsys.readouterr().out


def test_run_dry_run_lists_runs_with_time(start, monkeypatch, capsys):
    """--dry-run lists what is left with the expected time, and leaves no folder behind."""
    measured = {("streets", "new"): 60.0, ("streets", "old"): 30.0}
    asked = []
    monkeypatch.setattr(launch, "measure", lambda _, jobs: asked.extend(jobs) or measured)
    planned, _ = runs.plan(start.spec)
    assert start(dry_run=True) == 0
    told = capsys.readouterr().out
    assert f"streets/new seed 0: about 0:01:00 ({planned[0].folder})" in told
    assert "6 runs are left, 0 are finished; about 0:04:30" in told
    assert len(asked) == 6
    assert not start.spec.folder.exists()
    assert start.ran == []
    assert start(dry_run=True, jobs=2) == 0
    assert "0 are finished; about 0:02:15 with 2 at the same time" in capsys.readouterr().out


def test_run_report_runs_nothing(start, capsys):
    """--report writes the report of the finished runs."""
    small_experiment.finish_all(start.spec, 0.03)
    assert start(report=True) == 0
    assert start.ran == []
    assert "# spec" in capsys.readouterr().out


def test_run_refuses_launcher_options(start, tmp_path, scenes):
    """Options that the launcher would refuse are refused first, in one line."""
    spec = small_experiment.write(tmp_path, scenes, launcher=["--num_gpus=none"])
    with pytest.raises(LaunchError, match="--num_gpus: got 'none'"):
        start(spec)


def test_run_checks_visible_devices_first(start, monkeypatch):
    """Devices that don't exist are refused before a run; what hides all GPUs is kept for it."""
    monkeypatch.setattr(program.visible_devices, "_uuids", lambda: ["GPU-a"])
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(LaunchError, match="CUDA_VISIBLE_DEVICES=4: this machine has 1 GPUs"):
        start()
    assert start.ran == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DS_ACCELERATOR", "")
    assert start() == 0
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    # Evaluations see the variable, since no launcher gives them a device.
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_run_refuses_folder_of_running_experiment(start, monkeypatch):
    """Two experiments in one folder are refused, with what to change."""

    def refuse(folder):
        raise LaunchError(f"{folder} is in use; give another --work-dir")

    monkeypatch.setattr(program.workdir, "lock", refuse)
    with pytest.raises(LaunchError, match="give another work_dir in the specification"):
        start()
    assert start.ran == []
