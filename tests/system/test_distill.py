"""bin/distill.py as a user starts it: from a folder of images to an exported student.

Its programs are forked from the warm server, which saves the start of each; the long test starts
the command itself, and kills it again and again.
"""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import programs, recipes

from tiekd.config import shipped
from tiekd.config.recipe_yaml import dump
from tiekd.evaluation import floors
from tiekd.tools.distill import latency, plan, stages, teacher, work
from tiekd.tools.distill.commands import Commands, ProgramResult

DISTILL = programs.ROOT / "bin" / "distill.py"
OPTIONS = {
    "epochs": 1,
    "checkpoint_every": 1,
    "size": [64, 96],
    "batch_size": 4,
    "init": "random",
    "audit": False,
    "student": "lite0_narrow",
}


class Killed(Exception):
    """Raised in the place of the kill of the whole command."""


class Warm(Commands):
    """Runs programs by the warm server; kills the training at `kill_at`, a checkpoint's name."""

    kill_at = ""

    def run(self, name: str, arguments, folder: Path | None = None) -> ProgramResult:
        self.print_line(f"$ {self.shell_command(name, arguments, [])}")
        with programs.Program([str(shipped.programs()[name]), *arguments]) as started:
            if name == "train" and self.kill_at:
                checkpoint = folder / "checkpoints" / self.kill_at
                started.wait_until(checkpoint.exists)
                started.kill()
                raise Killed
            result = started.result()
        assert result.code in (0, work.FOUND), result.stderr[-3000:]
        return ProgramResult(result.code, 0.0, 0)


@pytest.fixture(scope="module")
def rides(tmp_path_factory) -> Path:
    """Two folders of 12 and 4 images of 64x96, and files that can't be used."""
    folder = tmp_path_factory.mktemp("rides")
    random = np.random.default_rng(0)
    for number in range(16):
        path = folder / ("a" if number < 12 else "b") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = random.integers(0, 255, (8, 12, 3), np.uint8)
        Image.fromarray(coarse).resize((96, 64)).save(path)
    (folder / "a" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (folder / "a" / "x.bmp").write_bytes(b"BM")
    return folder


@pytest.fixture(scope="module")
def teacher_file(ground, tmp_path_factory) -> Path:
    """A file with the node of the tiny teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "net.yaml").write_text(dump({"network": recipes.TEACHER}))
    node = {"recipe": str(folder / "net.yaml"), "checkpoint": str(ground / "teacher.pth")}
    (folder / "teacher.yaml").write_text(dump({"teacher": node}))
    return folder / "teacher.yaml"


def distil(out: Path, told: list[str], kill_at: str = "") -> None:
    """Runs the stages that aren't finished, as a new call of the command does."""
    commands = Warm(out, 1, 1, [], told.append)
    commands.kill_at = kill_at
    kept = plan.read(out)
    stages.run(
        work.Work(kept, out, commands, told.append).stages(), stages.Records(out), told.append
    )


def weights(path: Path) -> str:
    return programs.digest(torch.load(path, weights_only=True)["state_dict"])


def test_distill_continues_and_equals_recipe(rides, teacher_file, tmp_path, monkeypatch):
    """A command that is killed in the training continues, and equals its recipe run by hand."""
    monkeypatch.setattr(latency, "runtime", lambda _on: "torch_export")
    out, told = tmp_path / "out", []
    out.mkdir()
    asked = {"images": str(rides), "teacher": teacher.parse(str(teacher_file)), **OPTIONS}
    plan.write(plan.new(asked, threads=1), out)
    with pytest.raises(Killed):
        distil(out, told, kill_at="iter_1")
    told.clear()
    distil(out, told)
    # What was finished isn't done again, and the training goes on at its checkpoint.
    assert sum("finished before" in line for line in told) == 4
    assert f"Resumed from {out}/run/checkpoints/iter_" in programs.log_text(out / "run")
    # The torn image is left out, and the sequence that is held out is one of the two.
    left_out = json.loads((out / "images.json").read_text())["left_out"]
    assert left_out["a/torn.jpg"] == "faulty: unreadable"
    assert "a/x.bmp" in left_out
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["protocol"]["figures_are"].startswith("agreement with the teacher, not accuracy")
    assert list(figures["networks"]) == [*floors.NAMES, "recipe"]
    assert (out / "student.pt2").is_file()
    # The recipe, run by hand, gives the same weights.
    command = [programs.ROOT / "bin" / "train.py", out / "recipe.yaml"]
    result = programs.finish([*command, "--work-dir", tmp_path / "by_hand"])
    assert result.code == 0, result.stderr[-3000:]
    best = next((out / "run").glob("best_*.pth"))
    assert weights(best) == weights(tmp_path / "by_hand" / best.name)
    told.clear()
    distil(out, told)
    assert sum("finished before" in line for line in told) == len(told)


def test_distill_mistakes_are_one_line(rides, teacher_file, tmp_path):
    """Mistakes are one line and exit code 2, before anything is written."""
    out = tmp_path / "out"
    plain = [DISTILL, rides, "--teacher", teacher_file, "--out", out]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    for command, told in (
        ([*plain, "--hours", "0"], "LaunchError: --hours: got 0.0"),
        ([*plain, "--epochs", "1", "--until", "fit"], "LaunchError: --until: got 'fit'"),
        (plain, "LaunchError: --hours or --epochs: neither is given"),
        ([*plain[:-1], tmp_path / "other", "--epochs", "1"], "LaunchError: --out"),
        (
            [DISTILL, rides, "--teacher", "nobody", "--out", out, "--epochs", "1"],
            "TeacherError: --teacher: nothing is called nobody",
        ),
    ):
        result = programs.finish(command)
        assert result.code == 2, command
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stderr.startswith(told)
    assert not out.exists()


@pytest.mark.long
def test_distill_equals_unbroken_after_kills(rides, teacher_file, tmp_path):
    """Killed (SIGKILL) in several stages, the command ends with the files of an unbroken one."""
    options = ["--epochs", "2", "--size", "64x96", "--batch-size", "4", "--init", "random"]
    options += ["--accept-audit", "--student", "lite0_narrow", "--num_gpus", "2"]
    made = {}
    for name, kills in (("whole", []), ("killed", ["check", "maps", "run/checkpoints/iter_3"])):
        folder = tmp_path / name
        folder.mkdir()
        command = [DISTILL, rides, "--teacher", teacher_file, "--out", "out", *options]
        for path in kills:
            with programs.Program(command, cwd=folder, fresh=True) as started:
                started.wait_until((folder / "out" / path).exists)
                started.process.send_signal(signal.SIGKILL)
                started.process.wait()
                time.sleep(1)
        result = programs.finish(command, cwd=folder, fresh=True)
        assert result.code == 0, result.stderr[-3000:]
        out = folder / "out"
        figures = json.loads((out / "evaluation.json").read_text())["networks"]
        made[name] = {
            "weights": weights(next((out / "run").glob("best_*.pth"))),
            "figures": {name: each["metrics"] for name, each in figures.items()},
            "rows": (out / "evaluation.csv").read_bytes(),
            "export": next(out.glob("student.*")).read_bytes(),
        }
        shutil.rmtree(out / "images")
    assert made["whole"] == made["killed"]
