"""Two machines give the same run as one.

It ends, and resumes, when one of them or the launcher is lost.

The machines are namespaces (two_machines.py), the launcher is `deepspeed` over pdsh and ssh, or one
by hand on each.
"""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from support import programs, recipes
from support.two_machines import Machine, pair, write_hostfile

from tiekd.distributed.entrypoint import STOPPED_CODE
from tiekd.workdir import checkpoints

ITERATIONS = 40
# Seconds after which no process is left: 4, 15 and 58 were measured, half an hour by the process
# group's own clock.
LAUNCHER_KILLED_S, NODE_KILLED_S, LINK_CUT_S = 150, 200, 240
TRAIN, RESUME = programs.ROOT / "bin" / "train.py", programs.ROOT / "bin" / "resume"


@pytest.fixture(scope="module")
def path(ground, tmp_path_factory) -> Path:
    recipe = recipes.recipe(ground, batch_size=2, iterations=ITERATIONS, validate=True)
    recipe["evaluation"] |= {"interval": 8, "by": "iteration"}
    recipe["tensorboard"] = {"image_interval": 0}
    return recipes.write_recipe(tmp_path_factory.mktemp("machines") / "recipe.yaml", recipe)


@pytest.fixture(scope="module")
def straight(path) -> Path:
    """The work dir of the same run on two ranks of this machine."""
    result = programs.finish(
        [*programs.deepspeed(2), TRAIN, path, "--work-dir", path.parent / "straight"]
    )
    assert result.code == 0, result.stderr[-3000:]
    return path.parent / "straight"


@pytest.fixture
def machines(tmp_path):
    """node1 and node2, which may enter each other.

    tmp_path is the user's folder, with what the launcher needs.
    """
    write_hostfile(tmp_path / "hosts")
    # The launcher hands on the names that begin with PYTHON, and these.
    (tmp_path / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
    first, second = pair(tmp_path / "etc", ssh=True)
    with first, second:
        yield first, second


@pytest.fixture
def closed_machines(tmp_path):
    """node1 and node2, without ssh."""
    write_hostfile(tmp_path / "hosts")
    first, second = pair(tmp_path / "etc", ssh=False)
    with first, second:
        yield first, second


def launch(machine: Machine, folder: Path, *arguments) -> programs.Program:
    return programs.Program(machine.command(*arguments, folder=folder))


def train(machine: Machine, path: Path, folder: Path) -> programs.Program:
    command = ["deepspeed", "--hostfile", "hosts", TRAIN, path, "--work-dir", folder / "work"]
    return launch(machine, folder, *command)


def iterations_done(work_dir: Path) -> int:
    recorded = work_dir / "recorded.jsonl"
    return recorded.read_text().count("\n") if recorded.is_file() else 0


def wait_until_gone(machines, within_s: float, but: str = "\0") -> None:
    """Fails when anything, `but` commands that begin so, still runs on a machine after a while."""
    end = time.monotonic() + within_s
    while left := [
        command
        for m in machines
        for command in m.processes().values()
        if not command.startswith(but)
    ]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def stopped_after(work_dir: Path) -> int:
    return int(checkpoints.find(work_dir)[0].name.removeprefix("iter_"))


@pytest.mark.parametrize(
    ("machine", "command", "number", "told"),
    [
        (0, "bin/deepspeed", signal.SIGKILL, "the launcher, process [0-9]+, is gone"),
        pytest.param(
            1, "sshd: ", signal.SIGKILL, "another rank was asked to stop", marks=pytest.mark.long
        ),
        pytest.param(
            1,
            "--local_rank=0",
            signal.SIGTERM,
            "another rank was asked to stop",
            marks=pytest.mark.long,
        ),
    ],
    ids=["KILL-deepspeed", "KILL-sshd", "TERM-rank"],
)
def test_two_machines_stop_and_resume_bit_identical(
    machines, path, straight, tmp_path, machine, command, number, told
):
    """A run that is stopped or loses its launcher resumes on both machines, bit for bit."""
    work_dir = tmp_path / "work"
    with train(machines[0], path, tmp_path) as program:
        program.wait_until(lambda: iterations_done(work_dir) >= 10)
        (process,) = [p for p, words in machines[machine].processes().items() if command in words]
        process.send_signal(number)
        wait_until_gone(machines, LAUNCHER_KILLED_S)
        assert re.search(
            f"tiekd: stopped after iteration [0-9]+, {told}; continue", program.result().stderr
        )
    assert 10 <= iterations_done(work_dir) == stopped_after(work_dir) < ITERATIONS
    assert json.loads((work_dir / "launch.json").read_text())["nodes"] == {
        "node1": [0],
        "node2": [0],
    }
    with launch(machines[0], tmp_path, RESUME, "work") as program:
        result = program.result()
    assert result.code == 0, result.stderr[-3000:]
    for name in ("node1", "node2"):  # each has said something
        assert f"{name}: " in result.stdout + result.stderr
    assert programs.losses(work_dir) == programs.losses(straight)
    digests = {
        programs.digest(programs.student(folder, ITERATIONS)) for folder in (work_dir, straight)
    }
    assert len(digests) == 1
    assert (work_dir / "best_abs_rel.pth").read_bytes() == (
        straight / "best_abs_rel.pth"
    ).read_bytes()


@pytest.mark.parametrize(
    ("loss", "within_s"),
    [("switched off", NODE_KILLED_S), pytest.param("cut off", LINK_CUT_S, marks=pytest.mark.long)],
    ids=["switched-off", "cut-off"],
)
def test_lost_machine_ends_run_and_resumes_on_other(
    machines, path, straight, tmp_path, loss, within_s
):
    """After a lost machine the run ends with one line and resumes on the other machine."""
    work_dir, lost = tmp_path / "work", tmp_path / "lost"
    recipe = json.loads(path.read_text())
    recipe["hooks"] = [{**recipes.RECORDER, "wait_for": str(lost), "after": 12}]
    with train(
        machines[0], recipes.write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path
    ) as program:
        program.wait_until(lambda: iterations_done(work_dir) >= 12)
        machines[1].kill() if loss == "switched off" else machines[1].cut()
        lost.touch()  # so that the other rank goes on into what fails
        began = time.monotonic()
        wait_until_gone(machines[:1], within_s)
        result = program.result()
    if loss == "cut off":
        wait_until_gone(machines[1:], within_s - (time.monotonic() - began), but="sshd: ")
    assert result.code != 0
    told = (
        "rank 0 lost rank 1, "
        if loss == "switched off"
        else "machine node2 stopped answering; resume with bin/resume"
    )
    assert sum(f"LaunchError: {told}" in line for line in result.stderr.splitlines()) == 1, (
        result.stderr[-3000:]
    )
    assert "Traceback" not in result.stderr
    assert stopped_after(work_dir) == 10
    with launch(machines[0], tmp_path, RESUME, "work", "--exclude=node2") as program:
        result = program.result()
    assert result.code == 0, result.stderr[-3000:]
    # The first ten are those of two ranks; one rank's differ by rounding, and what follows from it.
    assert programs.losses(work_dir)[:10] == programs.losses(straight)[:10]
    assert programs.losses(work_dir)[:14] == pytest.approx(programs.losses(straight)[:14], rel=1e-4)
    assert len(programs.losses(work_dir)) == ITERATIONS
    assert json.loads((work_dir / "launch.json").read_text())["world_size"] == 1


def by_hand(machines, folder: Path, *arguments) -> list[programs.Program]:
    """The launcher without ssh, started on each machine by itself."""
    command = ["deepspeed", "--hostfile", "hosts", "--no_ssh", "--master_addr", "node1"]
    return [
        launch(machine, folder, *command, "--node_rank", rank, *arguments)
        for rank, machine in enumerate(machines)
    ]


@pytest.mark.long
def test_two_machines_without_ssh_same_losses(closed_machines, path, straight, tmp_path):
    """A launcher started by hand on each machine gives the losses of one machine."""
    first, second = by_hand(closed_machines, tmp_path, TRAIN, path, "--work-dir", tmp_path / "work")
    with first, second:
        for result in (first.result(), second.result()):
            assert result.code == 0, result.stderr[-3000:]
    assert programs.losses(tmp_path / "work") == programs.losses(straight)
    assert not (
        tmp_path / "work" / "hostfile"
    ).exists()  # bin/resume couldn't start it from one machine


@pytest.mark.long
def test_unshared_work_dir_is_refused(closed_machines, path, tmp_path):
    """A work dir that another machine doesn't see is refused by every rank."""
    shared = tmp_path / "shared"
    shared.mkdir()
    closed_machines[1].hide(shared)
    first, second = by_hand(closed_machines, tmp_path, TRAIN, path, "--work-dir", shared / "work")
    with first, second:
        for result in (first.result(), second.result()):
            assert result.code != 0
            (line,) = result.our_lines()
            assert line.startswith(
                f"LaunchError: {shared}/work isn't shared: node2 doesn't see it; give a --work-dir"
            )
            assert "Traceback" not in result.stderr
    assert not list((shared / "work").glob("checkpoints/*"))


def step_of_two_tasks(*command) -> list[programs.Program]:
    """Starts two tasks with the variables that srun would set, on this machine.

    The list of nodes begins with its name.
    """
    step = {
        "SLURM_JOB_ID": str(programs.free_port()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
    }
    step |= {"SLURM_NODELIST": "localhost", "SLURM_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    return [
        programs.Program(command, **step, SLURM_PROCID=str(task), SLURM_LOCALID=str(task))
        for task in range(2)
    ]


def test_slurm_tasks_become_ranks(path, straight, tmp_path):
    """The tasks of a Slurm job step train as the ranks of one run."""
    first, second = step_of_two_tasks("python", TRAIN, path, "--work-dir", tmp_path / "work")
    with first, second:
        for result in (first.result(), second.result()):
            assert result.code == 0, result.stderr[-3000:]
    assert programs.losses(tmp_path / "work") == programs.losses(straight)


@pytest.mark.long
def test_slurm_stopped_step_resumes_in_another(path, straight, tmp_path):
    """A stopped Slurm job step resumes in another one with the same losses."""
    work_dir = tmp_path / "work"
    first, second = step_of_two_tasks("python", TRAIN, path, "--work-dir", work_dir)
    with first, second:
        first.wait_until(lambda: iterations_done(work_dir) >= 10)
        second.process.terminate()
        assert [first.result().code, second.result().code] == [STOPPED_CODE] * 2
    assert 10 <= stopped_after(work_dir) < ITERATIONS
    first, second = step_of_two_tasks("python", RESUME, work_dir)
    with first, second:
        for result in (first.result(), second.result()):
            assert result.code == 0, result.stderr[-3000:]
    assert programs.losses(work_dir) == programs.losses(straight)
