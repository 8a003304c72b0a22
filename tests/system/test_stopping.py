"""A run that is asked to stop, or whose launcher ends.

It saves its state, leaves no process, and resumes bit for bit.
"""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from support import programs, recipes

from tiekd.distributed.entrypoint import STOPPED_CODE
from tiekd.workdir import checkpoints

ITERATIONS = 80


@pytest.fixture(scope="module")
def path(ground, tmp_path_factory) -> Path:
    recipe = recipes.recipe(ground, batch_size=2, iterations=ITERATIONS, validate=True)
    recipe["checkpoint"] = {"interval": 1000, "by": "iteration"}
    recipe["data"] |= {"workers": 1}  # launchers send their signals to data workers too
    recipe["evaluation"] |= {"interval": 7, "by": "iteration"}
    recipe["tensorboard"] = {"image_interval": 0}
    return recipes.write_recipe(tmp_path_factory.mktemp("stopping") / "recipe.yaml", recipe)


def start(path: Path, name: str, fresh: bool = False) -> programs.Program:
    command = [
        *programs.deepspeed(2),
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        path.parent / name,
    ]
    return programs.Program(command, fresh=fresh)


@pytest.fixture(scope="module")
def straight(path) -> Path:
    with start(path, "straight") as program:
        assert program.result().code == 0
    return path.parent / "straight"


def processes(program: programs.Program) -> dict[str, list[psutil.Process]]:
    """`runner`, `launch` and `ranks` (with their data workers) of a run."""
    runner = psutil.Process(program.process.pid)
    (launch,) = runner.children()
    return {"runner": [runner], "launch": [launch], "ranks": launch.children()}


def iterations_done(work_dir: Path) -> int:
    recorded = work_dir / "recorded.jsonl"
    return recorded.read_text().count("\n") if recorded.is_file() else 0


def wait_until_gone(everything: list[psutil.Process]) -> float:
    """Seconds until none of them runs any more; fails after 150."""
    began = time.monotonic()
    _, alive = psutil.wait_procs(everything, timeout=150)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return time.monotonic() - began


def resume(work_dir: Path, fresh: bool) -> None:
    command = [programs.ROOT / "bin" / "resume", work_dir, f"--master_port={programs.free_port()}"]
    result = programs.finish(command, fresh=fresh)
    assert result.code == 0, result.stderr[-3000:]


@pytest.mark.parametrize(
    ("whom", "number", "code"),
    [
        ("ranks", signal.SIGTERM, STOPPED_CODE),
        pytest.param("ranks", signal.SIGUSR1, STOPPED_CODE, marks=pytest.mark.long),
        ("runner", signal.SIGTERM, -signal.SIGTERM),
        pytest.param("runner", signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.long),
        pytest.param("launch", signal.SIGTERM, 1, marks=pytest.mark.long),
        ("launch", signal.SIGKILL, 0),  # deepspeed takes a killed launch.py for a success
    ],
    ids=[
        "TERM-rank",
        "USR1-rank",
        "TERM-deepspeed",
        "KILL-deepspeed",
        "TERM-launch",
        "KILL-launch",
    ],
)
def test_stopped_run_saves_and_resumes_bit_identical(path, straight, whom, number, code, request):
    """A run that is signalled saves and leaves no process; a resume is bit-identical."""
    name = request.node.callspec.id
    work_dir = path.parent / name
    is_launcher = whom != "ranks"  # then every process has an interpreter of its own, as a user's
    with start(path, name, fresh=is_launcher) as program:
        program.wait_until(lambda: iterations_done(work_dir) >= 10)
        of = processes(program)
        everything = [p for each in of.values() for p in each] + [
            c for p in of["ranks"] for c in p.children()
        ]
        os.kill(of[whom][-1].pid, number)
        result = program.result(timeout_s=300)
        wait_until_gone(everything)
    assert result.code == code, result.stderr[-3000:]
    stopped_after = int(checkpoints.find(work_dir)[0].name.removeprefix("iter_"))
    assert 10 <= stopped_after < ITERATIONS
    assert stopped_after == iterations_done(work_dir)
    assert f"stopped after iteration {stopped_after}, " in result.stderr
    assert "Traceback" not in result.stderr
    if name in ("TERM-rank", "KILL-launch"):
        resume(work_dir, fresh=is_launcher)
        assert programs.losses(work_dir) == programs.losses(straight)
        assert programs.digest(programs.student(work_dir, ITERATIONS)) == programs.digest(
            programs.student(straight, ITERATIONS)
        )


def test_second_signal_ends_run_without_saving(path):
    """A second signal ends a run at once, without a checkpoint."""
    work_dir = path.parent / "twice"
    with start(path, "twice") as program:
        program.wait_until(lambda: iterations_done(work_dir) >= 3)
        of = processes(program)
        first, second = of["ranks"]
        second.suspend()  # so that the first can't finish its iteration
        first.send_signal(signal.SIGTERM)
        time.sleep(8)  # what comes within 3 s counts as a copy of the first
        first.send_signal(signal.SIGUSR1)
        first.wait(150)
        second.resume()
        result = program.result(timeout_s=300)
        wait_until_gone([p for each in of.values() for p in each])
    assert result.code in (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
    assert not list((work_dir / "checkpoints").glob("iter_*"))


def test_resume_makes_up_missed_evaluation(straight, path):
    """Stopped and resumed runs log every evaluation of the unbroken run once.

    Every evaluation of the straight run is there once among the runs above, with its figures.
    """
    for name in ("TERM-rank", "KILL-launch"):
        assert validations(path.parent / name) == validations(straight)


def validations(work_dir: Path) -> list[str]:
    lines = programs.log_text(work_dir).splitlines()
    return [line.split(" - INFO - ")[1] for line in lines if "(val)" in line]
