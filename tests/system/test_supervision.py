"""bin/resume --restarts N brings a run through three kills to its end by itself.

And two runs never share a work dir.
"""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from support import programs, recipes

from tiekd.workdir import checkpoints, workdir

ITERATIONS = 60


@pytest.fixture(scope="module")
def path(ground, tmp_path_factory) -> Path:
    recipe = recipes.recipe(ground, batch_size=2, iterations=ITERATIONS)
    recipe["checkpoint"] = {"interval": 4, "by": "iteration"}
    recipe["tensorboard"] = {"image_interval": 0}
    return recipes.write_recipe(tmp_path_factory.mktemp("supervision") / "recipe.yaml", recipe)


def newest(work_dir: Path) -> int:
    return max(
        (int(p.name[5:]) for p in checkpoints.newest_first(work_dir / checkpoints.FOLDER)),
        default=0,
    )


def train(path: Path, name: str) -> list:
    return [
        *programs.deepspeed(2),
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        path.parent / name,
    ]


def resume(work_dir: Path, *options: str) -> list:
    return [
        programs.ROOT / "bin" / "resume",
        work_dir,
        f"--master_port={programs.free_port()}",
        *options,
    ]


@pytest.fixture(scope="module")
def killed(path) -> Path:
    """The work dir of a run that was killed with all its processes after its first checkpoint."""
    work_dir = path.parent / "run"
    with programs.Program(train(path, "run")) as program:
        program.wait_until(lambda: newest(work_dir) >= 4)
    return work_dir


def test_restarts_finish_run_after_three_kills(killed, path):
    """`bin/resume --restarts 3` finishes a run through three kills, bit for bit."""
    with programs.Program(resume(killed, "--restarts=3")) as program:
        for _ in range(3):
            reached = newest(killed)
            program.wait_until(
                lambda reached=reached: newest(killed) > reached and len(program.ranks()) == 2
            )
            ranks = program.ranks()
            ranks[0].kill()
            psutil.wait_procs(ranks, timeout=60)
        result = program.result()
    assert result.code == 0, result.stderr[-3000:]
    for restart in (1, 2, 3):
        assert f"restart {restart} of 3 in {2 ** (restart - 1)} s" in result.stderr
    assert workdir.read_outcome(killed).outcome == "finished"
    with programs.Program(train(path, "straight")) as program:
        assert program.result().code == 0
    straight = path.parent / "straight"
    assert programs.losses(killed) == programs.losses(straight)
    assert programs.digest(programs.student(killed, ITERATIONS)) == programs.digest(
        programs.student(straight, ITERATIONS)
    )

    again = programs.finish(resume(killed))
    assert again.code == 0
    assert f"is finished ({ITERATIONS} of {ITERATIONS} iterations" in again.stdout


def test_restarts_give_up_on_repeated_crash(path, ground):
    """A crash at the same place isn't restarted twice; a killed supervisor leaves no process.

    The teacher's file is gone, which no start mends; then it is back. After that the supervisor
    is killed.
    """
    work_dir = path.parent / "crashing"
    with programs.Program(train(path, "crashing")) as program:
        program.wait_until(lambda: newest(work_dir) >= 4)
    teacher = ground / "teacher.pth"
    teacher.rename(ground / "elsewhere.pth")
    try:
        result = programs.finish(resume(work_dir, "--restarts=5"))
    finally:
        (ground / "elsewhere.pth").rename(teacher)
    assert result.code == 2, result.stderr[-3000:]
    assert "not started again" in result.stderr, result.stderr[-3000:]
    assert "restart 1 of 5" in result.stderr
    assert "restart 2 of 5" not in result.stderr

    # Here every process has an interpreter of its own, as a user's.
    with programs.Program(resume(work_dir, "--restarts=5"), fresh=True) as program:
        program.wait_until(lambda: newest(work_dir) > 4)
        everything = [p for p in psutil.Process(program.process.pid).children(recursive=True)]
        program.process.kill()
        _, alive = psutil.wait_procs(everything, timeout=150)
        assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_work_dir_in_use_refuses_second_run(path):
    """A second run on a work dir is refused with one line and changes no file."""
    work_dir = path.parent / "shared"
    with programs.Program(
        train(path, "shared"),
    ) as first:
        first.wait_until(lambda: newest(work_dir) >= 4)
        for process in first.ranks():
            process.suspend()
        before = programs.files_of(work_dir)
        anew = [sys.executable, programs.ROOT / "bin" / "train.py", path, "--work-dir", work_dir]
        second = programs.finish([*anew, "--resume-from", "auto"])
        (line,) = second.our_lines()
        assert second.code == 2, second.stderr[-2000:]
        assert line.startswith("LaunchError: "), second.stderr[-2000:]
        assert f"is in use by process {first.ranks()[0].pid} on " in line
        assert "give another --work-dir" in line
        assert programs.files_of(work_dir) == before
        for process in first.ranks():
            process.resume()
        os.kill(first.ranks()[0].pid, signal.SIGTERM)
        assert first.result().code == 75
    assert workdir.read_outcome(work_dir).outcome == "stopped"
