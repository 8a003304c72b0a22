"""Runs the jobs of an experiment, by default one after the other, each in processes of its own.

A job is a run, i.e. a training with its evaluation, or the evaluation of baselines that don't look
at the image (floors). A run is trained by `deepspeed ... bin/train.py --resume-from auto`, which
starts it or resumes it at its newest complete checkpoint, and is then evaluated by score.py. If a
killed experiment is started again, finished runs are skipped, and the interrupted run is resumed.
The ranks watch this process (tiekd/distributed/launcher_watch.py), so that none outlives it. If a
run fails, its name and its log file are printed, and the other runs continue.
"""

import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TextIO

from tiekd.config.recipe import load_recipe
from tiekd.distributed import visible_devices
from tiekd.files import replace_text
from tiekd.tools.experiment import durations, states
from tiekd.tools.experiment import runs as listing
from tiekd.tools.experiment.runs import Job
from tiekd.tools.experiment.slots import variables_of_slots
from tiekd.tools.experiment.spec import Spec
from tiekd.tools.supervise import run_once
from tiekd.workdir import checkpoints, workdir

_LONGEST_REASON = 300
_EARLIER_RANKS_LEAVE_S = 90.0  # seconds in which ranks whose experiment was killed save and exit
_POLL_S = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Finished(NamedTuple):
    """The outcome of a call of `Launcher.run`.

    Attributes:
        failed: the jobs that failed.
        stopped: True if a signal asked the experiment to stop.
    """

    failed: list[Job]
    stopped: bool


class Launcher:
    """Runs jobs, and prints the progress and the estimated remaining time of all jobs.

    Args:
        spec: the experiment.
        program: path of bin/experiment.py.
        out: stream for the progress.
        execute: function (command, work dir, signals received so far, log) that runs a command, as
            `supervise.run_once`.
        num_slots: number of jobs that run at the same time.

    Attributes:
        slots: for each of the jobs that run at the same time the environment variables of its
            processes.

    Raises:
        LaunchError: the machine hasn't enough GPUs for so many jobs.
    """

    def __init__(
        self,
        spec: Spec,
        program: Path,
        out: TextIO = sys.stdout,
        execute: Callable[..., int] = run_once,
        num_slots: int = 1,
    ):
        self.spec = spec
        self.program = program
        self.out = out
        self.execute = execute
        self.received_signals: list[int] = []
        self.slots = variables_of_slots(num_slots, spec.launcher, os.environ)
        self._lock = threading.Lock()  # held while a slot takes a job, and while a line is printed

    def catch_signals(self) -> None:
        """Installs handlers that forward signals to stop from this process to the run."""
        for number in _SIGNALS:
            signal.signal(number, lambda number, _frame: self.received_signals.append(number))

    def run(self, jobs: Sequence[Job]) -> Finished:
        """Runs the jobs that aren't finished, in order, one in each slot at the same time.

        A job that fails doesn't prevent the later ones. After a signal no further job is started.

        Args:
            jobs: the jobs.

        Returns:
            The jobs that failed, and if a signal has stopped the experiment.
        """
        # Skip jobs that have results already, from this or an earlier call.
        waiting = [job for job in jobs if listing.read_frame_errors(job, self.spec) is None]
        done = len(jobs) - len(waiting)
        if done:
            self.print_line(f"{done} of {len(jobs)} are finished already")
        progress = _Progress(jobs, waiting)
        if len(self.slots) == 1:
            self._run_slot(self.slots[0], progress)
        else:
            with ThreadPoolExecutor(len(self.slots)) as pool:
                futures = [pool.submit(self._run_slot, slot, progress) for slot in self.slots]
            for future in futures:
                future.result()
        return Finished(progress.failed, progress.stopped)

    def _run_slot(self, variables: Mapping[str, str], progress: "_Progress") -> None:
        """Runs one job after the other, until none is left or a signal has come.

        Args:
            variables: the environment variables of the slot.
            progress: the jobs, which the slots share.
        """
        while True:
            with self._lock:
                if not progress.waiting:
                    return
                if self.received_signals:
                    progress.stopped = True
                    return
                job = progress.waiting.pop(0)
                progress.running.append(job)
                begun = len(progress.jobs) - len(progress.waiting)
                # Estimate the remaining time before each job, since the finished jobs make the
                # estimate more accurate.
                remaining = progress.remaining(self.spec.steps, len(self.slots))
            self.print_line(f"[{begun}/{len(progress.jobs)}] {job.label}; left: {remaining}")
            reason = self._run_job(job, variables)
            with self._lock:
                progress.running.remove(job)
                # A job that was stopped by a signal has neither finished nor failed.
                if reason is not None and self.received_signals:
                    progress.stopped = True
                elif reason is not None:
                    progress.failed.append(job)

    def _run_job(self, job: Job, variables: Mapping[str, str]) -> str | None:
        """Runs a job, and records its state in the job's folder.

        Args:
            job: the job.
            variables: the environment variables of its slot.

        Returns:
            None if the job is finished; otherwise the reason in one line.
        """
        started = time.monotonic()
        state = states.read(job)
        job.folder.mkdir(parents=True, exist_ok=True)
        # Write the state first, so that the folder of a killed run states which run it is.
        states.write(job, replace(state, began=time.time()))
        reason = self._attempt(job, variables)
        # Add the time of this attempt to that of earlier attempts, which trained a part of the run.
        state = states.State(job.label, job.key, state.seconds + time.monotonic() - started)
        if self.received_signals and reason is not None:
            states.write(job, state)
            self.print_line(f"{job.label} was stopped; the same command resumes it")
            return reason
        states.write(job, replace(state, failure=reason, is_finished=reason is None))
        if reason is not None:
            self.print_line(f"FAILED: {job.label}: {reason}; its log is {job.log}")
        return reason

    def _attempt(self, job: Job, variables: Mapping[str, str]) -> str | None:
        """Trains a job if it isn't trained yet, and evaluates it.

        Args:
            job: the job. Floors, i.e. baselines that don't look at the image, are only evaluated.
            variables: the environment variables of its slot.

        Returns:
            None if the job is finished; otherwise the reason in one line.
        """
        reason = self._wait_for_earlier_ranks(job)
        if reason is not None:
            return reason
        for step in (self._train, self._score) if job.row is not None else (self._score,):
            # Check for changes before each process, since a training may take hours.
            reason = listing.changed_sources(job, self.spec) or step(job, variables)
            if reason is not None:
                return reason
        return None

    def _wait_for_earlier_ranks(self, job: Job) -> str | None:
        """Waits until the ranks of a killed experiment have left the run's work dir.

        They notice that their experiment is gone, save a checkpoint and exit. A training that
        began before would find the work dir locked, and fail.

        Args:
            job: the run.

        Returns:
            None once no process uses the work dir; otherwise the reason in one line.
        """
        if not job.train_dir.is_dir():
            return None
        end = time.monotonic() + _EARLIER_RANKS_LEAVE_S
        told = False
        while workdir.is_in_use(job.train_dir):
            if self.received_signals or time.monotonic() > end:
                return f"{job.train_dir} is in use by an earlier start; end that process"
            if not told:
                self.print_line("waiting for an earlier start of this run, which is ending")
                told = True
            time.sleep(_POLL_S)
        return None

    def _train(self, job: Job, variables: Mapping[str, str]) -> str | None:
        # Skip the training of a run that was killed during its evaluation, since it is trained
        # already.
        outcome = workdir.read_outcome(job.train_dir)
        if outcome is not None and outcome.is_complete:
            return None
        job.train_dir.mkdir(exist_ok=True)
        environment = os.environ | variables
        command = train_command(self.spec, job, self.program.parent / "train.py", environment)
        code = self.execute_logged([*_with(variables), *command], job.train_dir, job.log)
        now = workdir.read_outcome(job.train_dir)
        if now is not None and now.is_complete:
            return None
        # Use the reason in the outcome only if the outcome is new; an unchanged one describes an
        # earlier attempt, because this one ended before it wrote its own.
        told = now.reason if now is not None and now != outcome and now.reason else None
        return f"training ended with code {code}: {told or last_line(job.log)}"

    def _score(self, job: Job, variables: Mapping[str, str]) -> str | None:
        out = job.figures_file(self.spec.split)
        described = {
            "title": job.row,
            "recipe": str(job.recipe),
            "overrides": list(job.overrides),
            "weights": None,
            "list": self.spec.sets[job.set].test if self.spec.split == "test" else None,
            "scenes": self.spec.absolute_scenes,
            "readings": str(self.spec.readings_file.absolute()),
            "made_from": listing.made_from(job, self.spec),
            "out": str(out),
        }
        if job.row is not None:
            described["weights"] = str(weights_of(job, self.spec))
            described["readouts"] = self.spec.rows[job.row].named(job.row)
        path = job.folder / "score.json"
        replace_text(path, json.dumps(described, indent=1) + "\n")
        command = [sys.executable, str(self.program), "--score", str(path)]
        folder = job.folder if job.row is None else job.train_dir
        code = self.execute_logged([*_with(variables), *command], folder, job.log)
        # Decide by the results and not by the exit code, since a process may fail after writing
        # them.
        if listing.read_frame_errors(job, self.spec) is not None:
            return None
        return f"evaluation ended with code {code}: {last_line(job.log)}"

    def execute_logged(self, command: Sequence[str], folder: Path, log: Path) -> int:
        """Runs a command until it ends, and returns its exit code.

        Args:
            command: the command.
            folder: the work dir, whose lock shows if a rank still runs.
            log: the file to which the command's output is appended.
        """
        with log.open("ab") as output:
            return self.execute(command, folder, self.received_signals, output)

    def print_line(self, line: str) -> None:
        """Prints a line of the progress.

        Args:
            line: the line.
        """
        with self._lock:
            self.out.write(f"{line}\n")
            self.out.flush()


@dataclass
class _Progress:
    """The jobs of a call of `Launcher.run`, which its slots share.

    Attributes:
        jobs: all jobs.
        waiting: those that haven't begun, in order.
        running: those that run.
        failed: those that failed.
        stopped: True if a signal has stopped the experiment.
    """

    jobs: Sequence[Job]
    waiting: list[Job]
    running: list[Job] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    stopped: bool = False

    def remaining(self, steps: int, num_slots: int) -> str:
        """Returns the estimated time until all jobs have ended, as `durations.as_text` returns it.

        Args:
            steps: iterations of a run.
            num_slots: number of jobs that run at the same time.
        """
        left = [*self.running, *self.waiting]
        seconds = durations.estimates(left, self.jobs, {}, steps)
        return durations.as_text(durations.until_all_ended(seconds, num_slots))


def _with(variables: Mapping[str, str]) -> list[str]:
    """Returns the words before a command that run it with further environment variables."""
    return ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []


def weights_of(job: Job, spec: Spec) -> Path:
    """Returns the path that names the weights with which a trained run is evaluated.

    It is the folder of the last checkpoint. If the experiment evaluates the best weights, it is the
    work dir, in which the evaluation finds the file of the best weights.

    Args:
        job: the run.
        spec: the experiment.
    """
    if spec.weights == "best":
        return job.train_dir
    return job.train_dir / checkpoints.FOLDER / f"iter_{spec.steps}"


def train_command(
    spec: Spec, job: Job, program: Path, environment: Mapping[str, str], *options: str
) -> list[str]:
    """Returns the command that trains a run, as a list of words for a subprocess.

    Args:
        spec: the experiment.
        job: the run.
        program: path of bin/train.py.
        environment: the environment variables of the command.
        options: further options of bin/train.py; without any, the run is started or resumed.
    """
    launcher, _ = visible_devices.in_options(spec.launcher, environment, takes_first=True)
    if not any(option.startswith("--master_port=") for option in launcher):
        # Choose a free port, since another job on this machine may use the default port.
        launcher.append(f"--master_port={_free_port()}")
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *launcher, str(program)]
    command += [str(job.recipe), "--work-dir", str(job.train_dir)]
    command += options or ("--resume-from", "auto")
    if spec.engine_config is not None:
        command += ["--deepspeed_config", spec.engine_config]
    return [*command, "--set", *job.overrides]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def last_line(log: Path) -> str:
    """Returns the last line of a log that isn't blank, cut to 300 characters.

    Lines of DeepSpeed's launcher, which follow the error of a rank, are skipped. If no line is
    left, or there is no log, a text that says so is returned.

    Args:
        log: the log.
    """
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "there is no log"
    launchers = re.compile(r"\[(INFO|WARNING|ERROR)\] \[launch\.py|^\[\d{4}-")
    kept = [line.strip() for line in lines if line.strip() and not launchers.search(line)]
    return kept[-1][:_LONGEST_REASON] if kept else "its log is empty"


def measure(launcher: Launcher, jobs: Sequence[Job]) -> dict[tuple[str, str | None], float]:
    """Measures the time of a training for each row and set, by `bin/train.py --dry-run`.

    A row is a recipe with overrides, a set is the data on which it is trained.

    Args:
        launcher: the launcher, which runs the commands.
        jobs: the runs; one run of each row and set is measured, since all of them take the same
            time.

    Returns:
        (set, row) -> seconds, for each run that could be measured.
    """
    found: dict[tuple[str, str | None], float] = {}
    program = launcher.program.parent / "train.py"
    for job in {(job.set, job.row): job for job in jobs}.values():
        if launcher.received_signals:
            break
        # Use a temporary folder as the work dir, because a dry run writes nothing to it.
        with tempfile.TemporaryDirectory() as name:
            log = Path(name) / "log.txt"
            command = train_command(launcher.spec, job, program, os.environ, "--dry-run")
            # Give it the part of the machine that a job has beside others.
            command = [*_with(launcher.slots[0]), *command]
            launcher.execute_logged(command, Path(name), log)
            seconds = durations.seconds_in_report(log.read_text(encoding="utf-8", errors="replace"))
            why = last_line(log)
        if seconds is None:
            launcher.print_line(f"{job.label} could not be measured: {why}")
        else:
            found[job.set, job.row] = seconds
    return found


def test_list_of(spec: Spec, job: Job) -> Path | None:
    """Returns the path of the test list of a job's set; None if the set has none.

    Args:
        spec: the experiment.
        job: the job.
    """
    test = spec.sets[job.set].test
    if test is None:
        return None
    root = load_recipe(job.recipe, job.overrides).get("data", {}).get("root", ".")
    return (Path(root).expanduser() / test).absolute()
