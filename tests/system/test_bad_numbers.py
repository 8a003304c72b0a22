"""An image that is NaN, and a loss that becomes NaN and stays so.

They are skipped, logged and shown again; in the end the run is given up.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import programs, recipes

from tiekd.data.loading.sampler import epoch_batches
from tiekd.training.settings import Recipe

BAD, ITERATIONS = 5, 20
SHOWN = 7  # an iteration of the second epoch
TOLD = re.compile(r" - INFO - iteration (\d+): skipped, the loss was not finite (.*)")


def with_a_bad_picture(ground: Path, plain: bool) -> dict:
    recipe = recipes.recipe(ground, iterations=ITERATIONS)
    recipe["data"] |= {"name": "support.parts.bad_scenes", "bad": BAD}
    recipe["log"] = {"interval": 3, "by_epoch": False}
    recipe["hooks"] = [recipes.RECORDER, {"name": "support.parts.seen", "iterations": [SHOWN]}]
    if plain:  # norms over all ranks make all ranks' losses NaN
        recipe["network"] = {
            **recipe["network"],
            "encoder": {"name": "support.parts.plain_encoder"},
        }
    return recipe


@pytest.fixture(scope="module")
def folder(ground, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad_numbers")
    kinds = {
        "plain": "fp32",
        "norms": "fp32",
        "norms_zero3": "zero3_sharded",
        "norms_bf16": "bf16_autocast_zero2",
    }
    jobs = [
        {
            "name": name,
            "recipe": with_a_bad_picture(ground, name == "plain"),
            "engine": programs.DS_CONFIGS / f"{kind}.json",
        }
        for name, kind in kinds.items()
    ]
    programs.many([job | {"engine": str(job["engine"])} for job in jobs], folder, ranks=2)
    return folder


def expected() -> dict[int, int]:
    """Returns the iterations that meet the bad image, and the rank that has it."""
    epochs = [epoch_batches(epoch, 16, 4, seed=0) for epoch in range(ITERATIONS // 4)]
    batches = np.concatenate(epochs).tolist()
    return {
        number: batch.index(BAD) // 2 for number, batch in enumerate(batches, 1) if BAD in batch
    }


@pytest.mark.parametrize("name", ["plain", "norms", "norms_zero3", "norms_bf16"])
def test_nonfinite_steps_skipped_and_weights_finite(folder, name):
    """Exactly the steps with a NaN image are skipped, and the weights stay finite."""
    rows = programs.recorded(folder / name)
    steps = [
        b["skipped"] - a["skipped"] for a, b in zip([{"skipped": 0}, *rows], rows, strict=False)
    ]
    assert {number for number, skipped in enumerate(steps, 1) if skipped} == set(expected())
    assert all(
        tensor.isfinite().all() for tensor in programs.student(folder / name, ITERATIONS).values()
    )
    assert [row["iter"] for row in programs.json_log(folder / name)] == [3, 6, 9, 12, 15, 18]


def test_nonfinite_log_names_samples_and_rank(folder):
    """The log names the rank, the samples and the non-finite image of each skipped iteration."""
    told = dict(TOLD.findall(programs.log_text(folder / "plain")))
    assert {int(number) for number in told} == set(expected())
    frames = scenes_of(folder)
    for number, rank in expected().items():
        start, names, bad = told[str(number)].rsplit(": ", 2)
        names, ending = names.split("; ")
        assert (ending, bad) == ("not finite itself", frames[BAD])
        assert start.startswith(f"on rank {rank}, micro-batch 0 (decode.loss_dpm: ")
        assert ";" not in start
        assert len(names.split(", ")) == 2
        assert frames[BAD] in names
    rows = [row for row in all_rows(folder / "plain") if row.get("mode") == "skipped"]
    assert {row["iteration"]: row["micro_batches"][0]["rank"] for row in rows} == expected()


def test_nonfinite_log_names_all_ranks_with_sync_norms(folder):
    """With norms over all ranks the log of a skipped iteration names every rank."""
    told = dict(TOLD.findall(programs.log_text(folder / "norms")))
    assert {int(number) for number in told} == set(expected())
    assert all("on rank 0, " in text and "; on rank 1, " in text for text in told.values())


def scenes_of(folder: Path) -> list[str]:
    from tiekd.config.recipe import load_recipe

    recipe = load_recipe(folder / "plain" / "config.yaml")
    lines = (Path(recipe["data"]["root"]) / "kitti_eigen_train.txt").read_text().splitlines()
    return [line.split()[0] for line in lines]


def all_rows(work_dir: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in work_dir.glob("*.log.json")
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def shown(folder) -> tuple[str, Path]:
    """Returns what bin/show_batch.py prints and draws of the kept iteration, and of a bad one."""
    out, said = folder / "pictures", ""
    for iteration in (SHOWN, min(expected())):
        command = [
            programs.ROOT / "bin" / "show_batch.py",
            folder / "plain",
            "--iteration",
            iteration,
            "--out",
            out,
        ]
        result = programs.finish([sys.executable, *command])
        assert result.code == 0, result.stderr[-3000:]
        said += result.stdout
    return said, out


def test_global_batch_repeats_trained_batch(folder):
    """`global_batch` rebuilds the batch of an iteration bit for bit as it was trained on."""
    from tiekd.config.build import settings
    from tiekd.config.recipe import load_recipe
    from tiekd.data.augment.augment import Augment
    from tiekd.data.build import build_dataset
    from tiekd.data.loading.loader import Loading
    from tiekd.tools.show_batch import global_batch

    recipe = load_recipe(folder / "plain" / "config.yaml")
    augment = settings({"data.augment": recipe["data"]["augment"]}, "data.augment", Augment)
    train = Recipe(recipe).train
    assert (train.seed, train.batch_size) == (0, 4)
    dealt = list(
        global_batch(
            build_dataset(Recipe(recipe).dataset, "train"), augment, Loading(), train, 1, 2, SHOWN
        )
    )
    assert [part.rank for part in dealt] == [0, 1]
    for part in dealt:
        seen = torch.load(folder / "plain" / f"seen_{SHOWN}_{part.rank}.pt", weights_only=True)
        assert part.batch.names == seen["names"]
        for name in ("image", "depth", "inside", "intrinsics"):
            assert torch.equal(
                getattr(part.batch, name),
                seen[name],
            ), name


def test_show_batch_describes_and_draws_samples(folder, shown):
    """`show_batch.py` prints the statistics of every sample and draws an image of each."""
    said, out = shown
    seen = [
        torch.load(folder / "plain" / f"seen_{SHOWN}_{rank}.pt", weights_only=True)
        for rank in range(2)
    ]
    parts = re.split(r"^(?=rank )", said, flags=re.M)[1:]
    assert len(parts) == 8
    for number, part in enumerate(parts[:4]):
        of, sample = seen[number // 2], number % 2
        image, depth, teacher = of["image"][sample], of["depth"][sample], of["teacher"][sample]
        assert part.startswith(f"rank {number // 2}, micro-batch 0: {of['names'][sample]} (sample ")
        assert ", epoch 2)" in part
        assert "window 32x64 from row " in part
        assert "turned " in part
        assert f"image: {image.min():.4f} to {image.max():.4f}, 100 % finite" in part
        low, high = depth[depth > 0].min(), depth.max()
        assert f"depth: {low:.4f} to {high:.4f}, 100 % finite, on " in part
        assert float(re.search(r"teacher: \S+ to (\S+), ", part)[1]) == pytest.approx(
            teacher.max().item(), rel=1e-4
        )
    # The bad image is finite only where the rotation turned in nothing.
    assert (
        sum(re.search(r"image: \S+ to \S+, 100 % finite", part) is None for part in parts[4:]) == 1
    )
    names = {
        f"iteration_{n}_rank_{r}_micro_0_sample_{s}.png"
        for n in (SHOWN, min(expected()))
        for r in (0, 1)
        for s in (0, 1)
    }
    assert {path.name for path in out.iterdir()} == names
    for path in out.iterdir():
        assert np.asarray(Image.open(path)).std() > 20


def test_max_bad_iterations_ends_run_and_resumes(ground, tmp_path):
    """A run that stays non-finite ends, and resumes from the checkpoint that its error names."""
    recipe = recipes.recipe(ground, max_bad_iterations=4)
    recipe["losses"] = {"failing": {"name": "support.parts.failing_loss", "after": 9}}
    recipe["checkpoint"] |= {"interval": 2, "keep_last": 2}
    recipe["log"] = {"interval": 3, "by_epoch": False}
    path, work_dir = recipes.write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path / "work"
    train = [programs.ROOT / "bin" / "train.py", path, "--work-dir", work_dir]
    result = programs.finish(train, ranks=2)
    assert result.code == 2, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    (line,) = result.our_lines()
    # Bad from iteration 10 on; the line of 12 finds three, that of 15 six.
    assert line.startswith(
        "DivergedError: 6 iterations in a row, from 10 on, had a loss or gradient that was not "
        "finite"
    )
    named = Path(re.search(r"checkpoint is (\S+): ", line)[1])
    # Those of 12 and 14, of weights that had not changed since 9, have pushed out the ones before.
    assert named == work_dir / "checkpoints" / "iter_12"
    assert named.is_dir()
    assert len(programs.recorded(work_dir)) == 14  # the recorder stands behind the guard
    mended = ["--resume-from", named, "--set", "losses.failing.after=100"]
    result = programs.finish([sys.executable, *train, *mended])
    assert result.code == 0, result.stderr[-3000:]
    assert [row["iteration"] for row in programs.recorded(work_dir)] == list(range(1, 21))
    assert np.isfinite(programs.losses(work_dir)[12:]).all()
