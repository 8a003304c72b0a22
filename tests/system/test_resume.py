"""A run that is killed in mid-epoch and resumed is the run that was never killed, bit for bit."""

import json
import sys
from pathlib import Path

import pytest
from support import programs, recipes

from tiekd.kernels import layouts
from tiekd.workdir import checkpoints

ITERATIONS = 24  # of 2 images: eight an epoch; a checkpoint every fifth


def resumable(ground: Path) -> dict:
    recipe = recipes.recipe(ground, batch_size=2, iterations=ITERATIONS, validate=True)
    recipe["checkpoint"] = {"interval": 5, "by": "iteration", "keep_last": 3}
    recipe["evaluation"] |= {"interval": 8, "by": "iteration"}
    return recipe


def train(path: Path, work_dir: Path, ranks: int = 2) -> list:
    return [
        *programs.deepspeed(ranks),
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        work_dir,
    ]


@pytest.fixture(scope="module")
def unbroken(ground, tmp_path_factory) -> Path:
    """The folder of `recipe.yaml` and of the work dir `unbroken`, made by two ranks in one go.

    Without the file `to_the_end` a run of the recipe stays at iteration 20.
    """
    folder = tmp_path_factory.mktemp("resume")
    hooks = [{**recipes.RECORDER, "wait_for": str(folder / "to_the_end"), "after": 20}]
    path = recipes.write_recipe(folder / "recipe.yaml", {**resumable(ground), "hooks": hooks})
    (folder / "to_the_end").touch()
    result = programs.finish(train(path, folder / "unbroken"))
    assert result.code == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def resumed(unbroken) -> tuple[Path, int]:
    """The work dir of a run that was killed after iteration 12 and resumed, and where it resumed.

    All of its processes were killed.
    """
    work_dir, to_the_end = unbroken / "killed", unbroken / "to_the_end"
    to_the_end.unlink()
    with programs.Program(train(unbroken / "recipe.yaml", work_dir)) as program:
        program.wait_until(lambda: iterations_done(work_dir) >= 12)
        program.kill()
    to_the_end.touch()
    killed_at = iterations_done(work_dir)
    assert 12 <= killed_at < ITERATIONS, killed_at
    # The checkpoint to resume from: at a fifth iteration the kill may have come before or after the
    # save.
    resumed_after = int(checkpoints.find(work_dir)[0].name.removeprefix("iter_"))
    assert 10 <= resumed_after <= killed_at
    result = programs.finish(
        [programs.ROOT / "bin" / "resume", work_dir, f"--master_port={programs.free_port()}"]
    )
    assert result.code == 0, result.stderr[-3000:]
    return work_dir, resumed_after


def iterations_done(work_dir: Path) -> int:
    path = work_dir / "recorded.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def second_log(work_dir: Path) -> tuple[str, list[dict]]:
    newest = sorted(work_dir.glob("*.log"))[-1]
    rows = map(json.loads, newest.with_suffix(".log.json").read_text().splitlines())
    return newest.read_text(), [row for row in rows if row.get("mode") == "train"]


def without_times(rows: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in ("time", "data_time", "images_per_s")}
        for row in rows
    ]


def test_resume_continues_at_next_iteration(resumed):
    """A resumed run continues with the iteration after its checkpoint."""
    work_dir, after = resumed
    text, rows = second_log(work_dir)
    assert f"Resumed from {work_dir / 'checkpoints' / f'iter_{after}'}" in text
    assert (rows[0]["epoch"] - 1) * 8 + rows[0]["iter"] == after + 1
    assert "images an iteration on 2 ranks" in text


def test_resume_is_bit_identical_to_unbroken_run(unbroken, resumed):
    """Losses, weights and best checkpoint of a resumed run equal an unbroken run bit for bit."""
    work_dir, after = resumed
    straight = without_times(programs.json_log(unbroken / "unbroken"))
    assert without_times(second_log(work_dir)[1]) == straight[after:]
    assert programs.losses(work_dir) == programs.losses(unbroken / "unbroken")
    digests = {
        programs.digest(programs.student(folder, ITERATIONS))
        for folder in (work_dir, unbroken / "unbroken")
    }
    assert len(digests) == 1
    assert (work_dir / "best_abs_rel.pth").read_bytes() == (
        unbroken / "unbroken" / "best_abs_rel.pth"
    ).read_bytes()


def test_resume_under_launcher_and_when_finished(resumed):
    """`bin/resume` works under the launcher, and says when a run is finished."""
    work_dir, _ = resumed
    before = programs.student(work_dir, ITERATIONS)
    result = programs.finish([programs.ROOT / "bin" / "resume", work_dir])
    assert result.code == 0
    assert f"is finished ({ITERATIONS} of {ITERATIONS} iterations" in result.stdout
    (work_dir / "outcome.json").unlink()  # as if it had been killed after its last save
    result = programs.finish([*programs.deepspeed(2), programs.ROOT / "bin" / "resume", work_dir])
    assert result.code == 0, result.stderr[-3000:]
    assert f"Resumed from {work_dir}/checkpoints/iter_{ITERATIONS}" in result.stderr
    assert programs.digest(programs.student(work_dir, ITERATIONS)) == programs.digest(before)


def test_resume_keeps_layouts_of_other_cpu(ground, tmp_path):
    """A resume on another CPU type keeps the recorded memory layouts and logs the difference."""
    path = recipes.write_recipe(
        tmp_path / "recipe.yaml", recipes.recipe(ground, batch_size=2, iterations=2)
    )
    train = [
        sys.executable,
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        tmp_path / "run",
    ]
    result = programs.finish(train, ATEN_CPU_CAPABILITY="default")
    assert result.code == 0, result.stderr[-3000:]
    assert "CPU instructions: other" in result.stderr, result.stderr[-3000:]
    record = (tmp_path / "run" / "layouts.json").read_bytes()
    assert json.loads(record) == {"isa": "other", "choices": layouts.of_isa("other")}
    result = programs.finish([*train, "--resume-from", "auto", "--set", "train.iterations=3"])
    assert result.code == 0, result.stderr[-3000:]
    assert f"started on a CPU with other, this one has {layouts.isa()}" in result.stderr
    assert (tmp_path / "run" / "layouts.json").read_bytes() == record


@pytest.fixture(scope="module")
def one_process(ground, unbroken) -> dict[str, programs.Result]:
    """Outcomes of bin/train.py with --resume-from, one after another in one process."""
    folder = unbroken
    recipe = resumable(ground)
    recipe["train"] |= {"iterations": 12, "validate": False}
    path = str(recipes.write_recipe(folder / "short.yaml", recipe))
    to_14 = ["--set", "train.iterations=14"]
    commands = {
        "straight": [path, "--work-dir", str(folder / "auto")],
        "checkpoint": [path, "--work-dir", str(folder / "from_5"), *to_14]
        + ["--resume-from", str(folder / "auto" / "checkpoints" / "iter_5")],
        "auto": [path, "--work-dir", str(folder / "auto"), "--resume-from", "auto", *to_14],
        "nowhere": [
            path,
            "--work-dir",
            str(folder / "auto"),
            "--resume-from",
            str(folder / "no_such"),
        ],
        "again": [path, "--work-dir", str(folder / "auto")],
        "lowered": ["bin/resume", str(folder / "auto"), "--set", "train.iterations=13"],
        "finished": ["bin/resume", str(folder / "auto")],
    }
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    result = programs.finish([sys.executable, programs.HERE / "mains.py", folder / "commands.json"])
    assert result.code == 0, result.stderr[-3000:]
    outcomes = json.loads((folder / "commands.out").read_text())
    return {name: programs.Result(**row) for name, row in zip(commands, outcomes, strict=True)}


def test_train_resume_from_auto_or_checkpoint(one_process, unbroken):
    """`train.py --resume-from` resumes from `auto` or from a named checkpoint."""
    for name in ("straight", "auto", "checkpoint"):
        assert one_process[name].code == 0, one_process[name].stderr[-3000:]
    iterations = [row["iteration"] for row in programs.recorded(unbroken / "auto")]
    assert iterations == list(range(1, 15))
    rows = programs.recorded(unbroken / "from_5")
    assert [row["iteration"] for row in rows] == list(range(6, 15))
    # The schedule is that of 14 iterations now, so the first loss is that of the straight run and
    # later ones are not.
    straight = programs.losses(unbroken / "auto")[5:]
    assert rows[0]["loss"] == straight[0]
    assert rows[3]["loss"] != straight[3]


def test_resume_refuses_end_before_checkpoint(one_process, unbroken):
    """A resume with fewer iterations than its checkpoint has is refused with one line."""
    result = one_process["lowered"]
    assert result.code == 2, result.stderr[-3000:]
    assert "Traceback" not in result.stderr, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert line == (
        "RecipeError: train.iterations: 13 means 13 iterations in all, but "
        f"{unbroken / 'auto' / 'checkpoints' / 'iter_14'} is of iteration 14; give "
        "train.iterations of 14 or more, or resume from an earlier checkpoint with bin/train.py "
        "--resume-from"
    )
    assert one_process["finished"].code == 0
    assert "is finished (14 of 14 iterations" in one_process["finished"].stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere", "no such checkpoint folder; give .../checkpoints/iter_N or auto"),
        ("again", "already holds a run (iter_14); resume it with bin/resume"),
    ],
)
def test_resume_impossible_is_refused_in_one_line(one_process, name, text):
    """A missing checkpoint or a work dir that holds a run is refused with one line."""
    result = one_process[name]
    assert result.code == 2, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert line.startswith("LaunchError: " if name == "again" else "CheckpointError: "), line
    assert text in line, line
    assert "Traceback" not in result.stderr
