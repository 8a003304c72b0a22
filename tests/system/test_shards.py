"""A run from tar shards, its evaluation and samples, and a resume on other shards."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from support import programs, recipes, tar_shards
from support.small_student import NETWORK


def write_shards(folder: Path, shards: int = 3, frames: int = 4) -> None:
    """Writes shards of frames of 48x96 pixels, and keeps none of their files."""
    for shard in range(shards):
        members = []
        for number in range(shard * frames, (shard + 1) * frames):
            pixels = np.random.default_rng(number).integers(0, 256, (48, 96, 3), np.uint8)
            depth = np.full((48, 96), 8000 + number, np.uint16)
            for suffix, content in ((".png", pixels), (".depth.png", depth)):
                path = folder.parent / "member.png"
                Image.fromarray(content).save(path)
                members.append((f"a/{number:03d}{suffix}", path.read_bytes()))
        tar_shards.write(folder / f"s{shard}.tar", members)


def call(folder: Path, *commands: list) -> list[programs.Result]:
    """Programs one after another in one process."""
    listing = folder / "commands.json"
    listing.write_text(json.dumps([[str(word) for word in command] for command in commands]))
    result = programs.finish([sys.executable, programs.HERE / "mains.py", listing])
    assert result.code == 0, result.stderr[-3000:]
    return [programs.Result(**row) for row in json.loads(listing.with_suffix(".out").read_text())]


def test_run_from_shards_and_its_resume(ground, tmp_path):
    """A run states its epoch; a replaced shard ends its resume in one line, the old one doesn't."""
    data, work_dir = tmp_path / "data", tmp_path / "run"
    write_shards(data)
    node = recipes.recipe(ground, batch_size=2, iterations=None, epochs=1, validate=True)
    node["network"], node["teacher"], node["hooks"] = NETWORK, None, []
    node["losses"] = {"silog": {"weight": 1.0}}
    node["data"] = {"name": "shards", "root": str(data), "depth_unit": 1000, "window": 3}
    node["data"] |= {"val_shards": "s2.tar", "workers": 0, "augment": {"crop": [32, 64]}}
    node["tensorboard"] = {"image_interval": 0}
    recipe = recipes.write_recipe(tmp_path / "recipe.yaml", node)
    # The same shards and their index in another place, where one shard is replaced.
    tar_shards.frames(data)
    shutil.copytree(data, tmp_path / "other")
    write_shards(tmp_path / "more", frames=5)
    shutil.copy(tmp_path / "more" / "s1.tar", tmp_path / "other" / "s1.tar")
    resume = ["bin/resume", work_dir, "--set", "train.epochs=2"]
    run, evaluated, shown, refused, resumed = call(
        tmp_path,
        [recipe, "--work-dir", work_dir],
        ["bin/evaluate.py", recipe, work_dir, "--on-trained"],
        ["bin/show_batch.py", work_dir, "--iteration", 2, "--out", tmp_path / "shown"],
        [*resume, f"data.root={tmp_path}/other"],
        resume,
    )
    for result in (run, evaluated, shown, resumed):
        assert result.code == 0, result.stderr[-3000:]
    texts = [path.read_text() for path in sorted(work_dir.glob("*.log"))]
    assert "Training frames: 8\n" in texts[0]
    assert (
        "An epoch has 4 iterations: 2 shards in another order each epoch, their frames moved "
        "within a window of 3 (data.window)\n" in texts[0]
    )
    assert "Resumed from" in texts[-1]
    assert refused.code == 2
    (line,) = refused.our_lines()
    assert f"{tmp_path}/other/s1.tar: has changed since it was indexed; put the old one" in line


def test_train_from_shards_of_teacher_maps(ground, tmp_path):
    """`cache_teacher.py` prints the `--set` with which a run reads the maps' shards."""
    data, maps = tmp_path / "data", tmp_path / "maps"
    write_shards(data)
    node = recipes.recipe(ground, batch_size=2, iterations=2)
    node["network"], node["hooks"] = NETWORK, []
    node["losses"] = {"silog": {"weight": 1.0}}
    node["data"] = {"name": "shards", "root": str(data), "depth_unit": 1000}
    node["data"] |= {"workers": 1, "augment": {"crop": [32, 64]}}
    recipe = recipes.write_recipe(tmp_path / "recipe.yaml", node)
    learns = ["teacher=null", f"teacher.maps={maps}"]
    cached, run = call(
        tmp_path,
        ["bin/cache_teacher.py", recipe, "--out", maps],
        [recipe, "--work-dir", tmp_path / "run", "--set", *learns, "teacher.audit=off"],
    )
    for result in (cached, run):
        assert result.code == 0, result.stderr[-3000:]
    assert f"12 to make in 3 tar shards in {maps}\n" in cached.stdout
    assert cached.stdout.endswith(f"Learn from them with --set {' '.join(learns)}\n")
    assert sorted(path.name for path in maps.iterdir()) == sorted(
        ["manifest.json", *(f"s{n}.tar{end}" for n in range(3) for end in ("", ".maps.json"))]
    )
    log = programs.log_text(tmp_path / "run")
    assert f"Teacher: cached maps in {maps}, of the weights with digest " in log
    assert len(re.findall(r"decode.loss_silog: (?!0\.0+,)[\d.]+, loss: ", log)) == 2
