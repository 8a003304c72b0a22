"""Runs programs in process groups of their own, and reads the work dirs that they leave.

A Python program of the checkout is forked from a warm server (warm.py), which saves the five
seconds of importing torch and DeepSpeed, and so are `deepspeed` and the processes that it starts
(warm_launcher.py). A program is started as a new process if a test asks for that, as those about
the launcher do, or sets an environment variable that is read at an import. Every process that is
started here is ended here, with all its children, even if the test fails.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from support.warm import WarmProcess, WarmServer
from support.warm_launcher import LAUNCHER, READ_AT_START, has_command_line

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DS_CONFIGS = ROOT / "ds_configs"
BIN = Path(sys.executable).parent
# Long, since other processes may use the cores; and more than the 300 s after which a hanging data
# worker is reported.
TIMEOUT_S = 1200

REPORTS: list[str] = []  # lines to print after all tests
LOG_LINE = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - depth - INFO - Epoch \[\d+\]\[\d+/\d+\]\tlr: "
    r"[\d.e+-]+, eta: (\d+ days?, )?\d+:\d\d:\d\d, time: \d+\.\d{3}, data_time: \d+\.\d{3}, "
    r"(memory: \d+, )?decode\.loss_\w+: "
)
LOG_LINE_END = re.compile(r", loss: \d+\.\d{4}, grad_norm: \d+\.\d{4}(, loss_scale: \d+\.\d{4})?$")


class Result(NamedTuple):
    """A program's exit code and output."""

    code: int
    stdout: str
    stderr: str

    def our_lines(self) -> list[str]:
        """Returns the lines on stderr that begin with an error class, i.e. about user errors."""
        return [
            line for line in self.stderr.splitlines() if re.match(r"(?:\S+: )?\w*Error: ", line)
        ]


class Program:
    """Context manager that runs a program in its own process group; leaving it kills the group.

    Args:
        command: the program and its arguments.
        cwd: the working directory of the program.
        recorder: True if recipes may name parts in tests/ (support/parts).
        fresh: True to start a new interpreter, for tests of imports, memory or early signals.
        ranks: number of processes, which form ranks as with a launcher, but start in less time.
        environment: environment variables to set in addition to those of this process.
    """

    def __init__(
        self,
        command: list,
        cwd: Path = ROOT,
        recorder: bool = True,
        fresh: bool = False,
        ranks: int = 1,
        **environment: str,
    ):
        words = [str(word) for word in command]
        dropped = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "PORT")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        kept |= {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        path = [str(HERE.parent)] if recorder else []
        if path:
            kept["PYTHONPATH"] = path[0]
        program = python_program(words)
        is_warm = program and not fresh and not any(map(READ_AT_START.match, environment))
        assert is_warm or ranks == 1, f"{words}: only warm programs have ranks"
        self.process: subprocess.Popen | WarmProcess
        if is_warm:
            self.process = warm_server().start(program, cwd, kept | environment, path, ranks)
            return
        self.process = subprocess.Popen(
            words,
            cwd=cwd,
            env=kept | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def kill(self) -> None:
        """Kills all processes of the group that still run (SIGKILL)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def processes(self) -> list[psutil.Process]:
        """Returns the running processes: the program and all its descendants."""
        try:
            program = psutil.Process(self.process.pid)
            return [program, *program.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ranks(self) -> list[psutil.Process]:
        """Returns the ranks that DeepSpeed's launcher started, in the order of their local rank."""
        found = {}
        # Keep the first process with each command line: a rank comes before its data workers, which
        # have the same command line.
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                found.setdefault(
                    next(
                        (word for word in process.cmdline() if word.startswith("--local_rank=")), ""
                    ),
                    process,
                )
        found.pop("", None)
        return [found[option] for option in sorted(found)]

    def result(self, timeout_s: float = TIMEOUT_S) -> Result:
        """Waits for the program's end, and returns its result; raises subprocess.TimeoutExpired."""
        stdout, stderr = self.process.communicate(timeout=timeout_s)
        return Result(self.process.returncode, stdout, stderr)

    def wait_until(self, condition, timeout_s: float = TIMEOUT_S) -> None:
        """Polls until `condition()` is true; fails if the program ends before that."""
        end = time.monotonic() + timeout_s
        while True:
            # Ask for the end before the condition, which may become true at the end.
            ended = self.process.poll() is not None
            if condition():
                return
            assert not ended, self.process.communicate()[1]
            assert time.monotonic() < end, "the program did not come so far"
            time.sleep(0.05)


def python_program(words: list[str]) -> list[str]:
    """Returns the command without the interpreter, for a Python program of this checkout.

    `deepspeed` counts as one. For other commands the result is empty.
    """
    words = words[1:] if words[0] in (sys.executable, "python") else words
    is_python = words and (words[0].endswith(".py") or words[0] == str(ROOT / "bin" / "resume"))
    is_ours = is_python and Path(words[0]).is_relative_to(ROOT)
    return words if is_ours or (words[0] == str(LAUNCHER) and has_command_line()) else []


@functools.cache
def warm_server() -> WarmServer:
    """Returns the warm server of this process, which is started at the first call."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return WarmServer(ROOT, environment | {"OMP_NUM_THREADS": "1"})


def finish(command: list, timeout_s: float = TIMEOUT_S, **options) -> Result:
    """Runs a program until it ends, and returns its result."""
    with Program(command, **options) as program:
        return program.result(timeout_s)


def many(jobs: list[dict], folder: Path, ranks: int) -> None:
    """Runs training jobs (see many.py) one after another on the same ranks.

    The work dir of a job is `folder`/<the job's name>.
    """
    for job in jobs:
        job["recipe"]["work_dir"] = str(folder / job["name"])
    listing = folder / f"jobs_{ranks}.json"
    listing.write_text(json.dumps(jobs))
    result = finish([HERE / "many.py", listing], ranks=ranks)
    assert result.code == 0, result.stderr[-6000:]


def deepspeed(ranks: int, port: int | None = None) -> list[str]:
    """Returns the beginning of a command that starts a program with DeepSpeed's launcher.

    Without `port`, the ranks meet at a free port.
    """
    return [
        str(LAUNCHER),
        "--num_gpus",
        str(ranks),
        "--master_port",
        str(port or free_port()),
    ]


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def recorded(work_dir: Path) -> list[dict]:
    """Returns the rows of the hook `Recorder`: one dict per iteration, with unrounded losses.

    If an iteration was recorded twice, the later row is returned.
    """
    lines = (work_dir / "recorded.jsonl").read_text().splitlines()
    by_iteration = {row["iteration"]: row for row in map(json.loads, lines)}
    return [by_iteration[i] for i in sorted(by_iteration)]


def losses(work_dir: Path) -> list[float]:
    return [row["loss"] for row in recorded(work_dir)]


def log_text(work_dir: Path) -> str:
    return "".join(path.read_text() for path in sorted(work_dir.glob("*.log")))


def json_log(work_dir: Path) -> list[dict]:
    """Returns the training rows of all .log.json files, oldest file first."""
    rows = [
        json.loads(line)
        for path in sorted(work_dir.glob("*.log.json"))
        for line in path.read_text().splitlines()
    ]
    return [row for row in rows if row.get("mode") == "train"]


def student(work_dir: Path, iteration: int = 20) -> dict[str, torch.Tensor]:
    """Returns the student's weights in the checkpoint of an iteration."""
    path = work_dir / "checkpoints" / f"iter_{iteration}" / "student.pth"
    return torch.load(path, weights_only=True)["state_dict"]


def digest(state: dict[str, torch.Tensor]) -> str:
    """Returns a SHA-256 of all weights, bit for bit."""
    parts = hashlib.sha256()
    for name in sorted(state):
        parts.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return parts.hexdigest()


def files_of(folder: Path) -> dict[str, str]:
    """Returns relative path -> SHA-256 of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
