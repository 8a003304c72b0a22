"""Checkpoints that a disk, a copy or somebody damaged.

They are found, passed over, and never trained on.
"""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support import programs, recipes

from tiekd.errors import CheckpointError
from tiekd.workdir import checkpoints, manifest

NEWEST, OLDER = "iter_4", "iter_2"
KINDS = ("truncate", "flip", "delete", "empty manifest", "wrong tag")


@pytest.fixture(scope="module")
def trained(ground, tmp_path_factory) -> Path:
    """A work dir with the checkpoints of iterations 2 and 4, made by one process."""
    folder = tmp_path_factory.mktemp("damages")
    recipe = recipes.recipe(ground, batch_size=2, iterations=4)
    recipe["checkpoint"] = {"interval": 2, "by": "iteration"}
    path = recipes.write_recipe(folder / "recipe.yaml", recipe)
    result = programs.finish(
        [sys.executable, programs.ROOT / "bin" / "train.py", path, "--work-dir", folder / "whole"]
    )
    assert result.code == 0, result.stderr[-3000:]
    return folder / "whole"


def damage(folder: Path, kind: str, seed: int) -> str:
    """Damages a checkpoint in one of the ways, at a seeded file and byte; says what was done."""
    pick = random.Random(seed)
    if kind == "wrong tag":
        folder.rename(folder.with_name(f"iter_{5 + seed}"))
        return f"renamed to iter_{5 + seed}"
    name = (
        manifest.NAME
        if kind == "empty manifest"
        else pick.choice(sorted(p.name for p in folder.iterdir()))
    )
    path, data = folder / name, bytearray((folder / name).read_bytes())
    place = pick.randrange(len(data))
    if kind == "delete":
        path.unlink()
    elif kind == "flip":
        data[place] ^= 1 << pick.randrange(8)
        path.write_bytes(data)
    else:
        path.write_bytes(b"" if kind == "empty manifest" else data[:place])
    return f"{kind} {name} at {place}"


@pytest.mark.parametrize("seed", range(50))
def test_find_passes_over_damaged_checkpoint(trained, tmp_path, seed):
    """`checkpoints.find` passes over a damaged checkpoint and takes the older one."""
    folder = tmp_path / "run" / checkpoints.FOLDER
    shutil.copytree(trained / checkpoints.FOLDER, folder)
    done = damage(folder / NEWEST, KINDS[seed % len(KINDS)], seed)
    taken, passed_over = checkpoints.find(tmp_path / "run")
    assert taken.name == OLDER, done
    (line,) = passed_over
    assert re.fullmatch(r"Passed over iter_\d+: \S.*", line), done


def call(folder: Path, commands: list[list]) -> list[programs.Result]:
    (folder / "commands.json").write_text(
        json.dumps([[str(word) for word in command] for command in commands])
    )
    result = programs.finish([sys.executable, programs.HERE / "mains.py", folder / "commands.json"])
    assert result.code == 0, result.stderr[-3000:]
    return [programs.Result(**row) for row in json.loads((folder / "commands.out").read_text())]


@pytest.mark.parametrize(
    "seeds", [range(5), pytest.param(range(5, 50), marks=pytest.mark.long)], ids=["few", "all"]
)
def test_resume_auto_takes_older_undamaged(trained, tmp_path, seeds):
    """`--resume-from auto` takes the older checkpoint; the damaged one itself is refused."""
    commands = []
    for seed in seeds:
        work_dir = tmp_path / str(seed)
        shutil.copytree(trained, work_dir)
        damage(work_dir / checkpoints.FOLDER / NEWEST, KINDS[seed % len(KINDS)], seed)
        (damaged,) = {p.name for p in (work_dir / checkpoints.FOLDER).glob("iter_*")} - {OLDER}
        common = [trained.parent / "recipe.yaml", "--work-dir", work_dir, "--resume-from"]
        commands += [[*common, work_dir / checkpoints.FOLDER / damaged], [*common, "auto"]]
    outcomes = call(tmp_path, commands)
    expected = programs.losses(trained)
    for seed, refused, resumed in zip(seeds, outcomes[::2], outcomes[1::2], strict=True):
        assert refused.code == 2, refused.stderr
        assert len(refused.our_lines()) == 1, refused.stderr
        assert "Traceback" not in refused.stderr + resumed.stderr
        assert resumed.code == 0, resumed.stderr[-3000:]
        assert "Passed over iter_" in resumed.stderr
        assert f"Resumed from {tmp_path / str(seed)}" in resumed.stderr
        rows = [
            json.loads(line)
            for line in (tmp_path / str(seed) / "recorded.jsonl").read_text().splitlines()
        ]
        assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 3, 4]
        assert [row["loss"] for row in rows[4:]] == expected[2:]


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_hostile_pickle_is_never_executed(trained, tmp_path):
    """No checkpoint, weights file or import executes code that is pickled in it."""
    mark, bomb = tmp_path / "exploded", tmp_path / "bomb.pth"
    torch.save({"state_dict": Bomb(mark)}, bomb)
    torch.load(bomb, weights_only=False)
    assert mark.exists(), "the bomb is a dud"
    mark.unlink()

    commands = []
    names = sorted(
        p.name
        for p in (trained / checkpoints.FOLDER / NEWEST).iterdir()
        if p.suffix in (".pt", ".pth")
    )
    engine_files = [name for name in names if name.startswith("mp_rank")]
    assert engine_files
    assert "rank_0.pt" in names
    for name in [*engine_files, "rank_0.pt"]:
        work_dir = tmp_path / name
        shutil.copytree(trained, work_dir)
        hostile = work_dir / checkpoints.FOLDER / NEWEST
        shutil.copy(bomb, hostile / name)
        (hostile / manifest.NAME).unlink()
        files = {p.name: [p.stat().st_size, manifest.digest(p)] for p in hostile.iterdir()}
        manifest.write(hostile, files)
        assert checkpoints.check(hostile) is None
        commands.append(["--work-dir", work_dir, "--resume-from", hostile])
    commands.append(["--work-dir", tmp_path / "new", "--load-from", bomb])
    commands.append(["--work-dir", tmp_path / "new", "--set", f"teacher.checkpoint={bomb}"])
    for result in call(
        tmp_path, [[trained.parent / "recipe.yaml", *command] for command in commands]
    ):
        assert result.code == 2, result.stderr[-3000:]
        assert "Traceback" not in result.stderr, result.stderr[-3000:]
        assert len(result.our_lines()) == 1, result.stderr
        assert not mark.exists()
    imported = programs.finish(
        [
            *[sys.executable, programs.ROOT / "bin" / "import_weights.py", bomb],
            *[
                programs.ROOT / "model_configs" / "students" / "light_kitti.yaml",
                "--out",
                tmp_path / "ours.pth",
            ],
        ]
    )
    assert imported.code == 2, imported.stderr
    assert len(imported.our_lines()) == 1, imported.stderr
    assert "Traceback" not in imported.stderr, imported.stderr
    assert not mark.exists()
    assert not (tmp_path / "ours.pth").exists()


def test_resume_refuses_changed_optimizer(trained, tmp_path):
    """A resume with other optimizer groups is refused with one line."""
    shutil.copytree(trained, tmp_path / "run")
    groups = 'optimizer.groups=[{"match":"encoder.*","lr_mult":0.5}]'
    recipe = trained.parent / "recipe.yaml"
    (result,) = call(
        tmp_path,
        [[recipe, "--work-dir", tmp_path / "run", "--resume-from", "auto", "--set", groups]],
    )
    assert result.code == 2, result.stderr[-3000:]
    assert "Traceback" not in result.stderr, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert "not of this recipe's network and optimizer" in line


def test_find_lists_faults_when_none_usable(tmp_path):
    """With no usable checkpoint the error says what each one lacks."""
    for iteration in (1, 2):
        (tmp_path / checkpoints.FOLDER / f"iter_{iteration}").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match="passed over iter_2: it has no manifest.*passed over iter_1: .*start"
    ):
        checkpoints.find(tmp_path)
