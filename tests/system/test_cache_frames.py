"""Decoding all frames once by bin/cache_frames.py.

It is killed and started again; the cache is verified, and trained on bit for bit.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from support import programs, recipes

from tiekd.data.datasets.scenes import write_kitti_layout

NUM_FRAMES = 40
TOTAL = 2 * (NUM_FRAMES + 2)


@pytest.fixture(scope="module")
def recipe(ground, tmp_path_factory) -> Path:
    """A student's recipe on scenes of 128x416.

    A frame takes long enough for a kill between two.
    """
    folder = tmp_path_factory.mktemp("frames")
    write_kitti_layout(folder / "scenes", 0, 128, 416, NUM_FRAMES, 2)
    node = recipes.recipe(ground, validate=True)
    size = {
        "root": str(folder / "scenes"),
        "height": 128,
        "width": 416,
        "num_train": NUM_FRAMES,
        "num_val": 2,
    }
    node["data"] |= size | {"workers": 1}
    return recipes.write_recipe(folder / "student.yaml", node)


def command(recipe: Path, folder: Path, *options: str) -> list:
    decoded = ["--set", f"data.decoded={folder}"]
    return [
        sys.executable,
        programs.ROOT / "bin" / "cache_frames.py",
        recipe,
        "--workers",
        1,
        *options,
        *decoded,
    ]


def arrays(folder: Path) -> dict[str, tuple]:
    """Inode, time and bytes of every decoded file."""
    files = {path: path.stat() for path in sorted(folder.rglob("*.npy"))}
    return {
        str(path.relative_to(folder)): (s.st_ino, s.st_mtime_ns, path.read_bytes())
        for path, s in files.items()
    }


@pytest.fixture(scope="module")
def unbroken(recipe) -> Path:
    folder = recipe.parent / "unbroken"
    result = programs.finish(command(recipe, folder))
    assert result.code == 0, result.stderr[-3000:]
    counts, disk, progress, after = result.stdout.splitlines()
    assert counts == f"Decoded: {TOTAL} files, 0 there already, {TOTAL} to make in {folder}"
    assert disk.startswith("Disk: 0.0")
    assert " GB needed, " in disk
    assert disk.endswith(" GB free")
    assert progress.startswith(f"files: {TOTAL}/{TOTAL}, ")
    assert after == f"Read from them with --set data.decoded={folder}"
    assert len(arrays(folder)) == TOTAL
    return folder


def test_cache_frames_killed_job_resumes(recipe, unbroken):
    """A killed `cache_frames.py` resumes, and its files equal those of an uninterrupted one."""
    for attempt in range(5):  # it may be done before it is killed
        folder = recipe.parent / f"killed_{attempt}"
        with programs.Program(command(recipe, folder)) as program:
            program.wait_until(lambda: len(list(folder.rglob("*.npy"))) >= 8)  # noqa: B023
            program.kill()
        made = arrays(folder)
        if len(made) < TOTAL:
            break
    assert 8 <= len(made) < TOTAL
    result = programs.finish(command(recipe, folder))
    assert result.code == 0, result.stderr[-3000:]
    assert (
        f"Decoded: {TOTAL} files, {len(made)} there already, {TOTAL - len(made)} to make"
        in result.stdout
    )
    after = arrays(folder)
    assert {name: after[name] for name in made} == made, "what was made is not made again"
    assert {n: row[2] for n, row in after.items()} == {
        n: row[2] for n, row in arrays(unbroken).items()
    }
    assert not list(folder.rglob("*.partial"))


def test_cache_frames_verify_rebuilds_flipped_byte(recipe, unbroken):
    """`cache_frames.py --verify` finds a flipped byte and rebuilds that file alone."""
    before = arrays(unbroken)
    path = unbroken / next(iter(before))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert f"{TOTAL} there already, 0 to make" in programs.finish(command(recipe, unbroken)).stdout
    result = programs.finish(command(recipe, unbroken, "--verify"))
    assert result.code == 0
    assert result.stdout.startswith(f"verified: {TOTAL}/{TOTAL}, ")
    assert f"{TOTAL - 1} there already, 1 to make" in result.stdout
    assert {n: row[2] for n, row in arrays(unbroken).items()} == {
        n: row[2] for n, row in before.items()
    }


def test_train_on_decoded_cache_is_bit_identical(recipe, unbroken):
    """A run on decoded frames has the losses and weights of a run on the source files."""
    losses = []
    for name, options in (("files", []), ("decoded", [f"data.decoded={unbroken}"])):
        work_dir = recipe.parent / f"run_{name}"
        sets = ["--set", "train.iterations=3", *options]
        result = programs.finish(
            [
                sys.executable,
                programs.ROOT / "bin" / "train.py",
                recipe,
                "--work-dir",
                work_dir,
                *sets,
            ]
        )
        assert result.code == 0, result.stderr[-3000:]
        losses.append((programs.losses(work_dir), programs.digest(programs.student(work_dir, 3))))
    assert losses[0] == losses[1]
    assert len(losses[0][0]) == 3


def test_decoded_cache_stale_source_ends_run(recipe, unbroken):
    """A source that changed after it was decoded ends the run with a line that says what to do."""
    source = next((recipe.parent / "scenes" / "input").rglob("*.png"))
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 1))
    train = [
        sys.executable,
        programs.ROOT / "bin" / "train.py",
        recipe,
        "--work-dir",
        recipe.parent / "stale",
    ]
    result = programs.finish([*train, "--set", f"data.decoded={unbroken}", "train.iterations=20"])
    (line,) = result.our_lines()
    assert result.code == 2
    assert line.startswith(f"DataError: {source}: has changed since ")
    assert line.endswith("make that again with bin/cache_frames.py")
    assert (
        f"{TOTAL - 1} there already, 1 to make" in programs.finish(command(recipe, unbroken)).stdout
    )


@pytest.mark.parametrize("wrong", ["folder", "missing"])
def test_decoded_cache_bad_folder_is_one_line(recipe, tmp_path, wrong):
    """A cache folder that is a file or is missing ends the program with one `DataError` line."""
    (tmp_path / "file").write_text("mine")
    if wrong == "folder":
        result = programs.finish(command(recipe, tmp_path / "file"))
    else:
        train = [
            sys.executable,
            programs.ROOT / "bin" / "train.py",
            recipe,
            "--work-dir",
            tmp_path / "run",
        ]
        result = programs.finish([*train, "--set", f"data.decoded={tmp_path / 'nowhere'}"])
        assert not (tmp_path / "run").exists()
    (line,) = result.our_lines()
    assert result.code == 2
    assert line.startswith("DataError: ")
    assert str(tmp_path) in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(
    "TIEKD_REAL_DATA" not in os.environ, reason="TIEKD_REAL_DATA is not set: no real frames"
)
def test_cache_frames_real_kitti_equals_files(ground, tmp_path):
    """Decoded real KITTI frames equal the frames read from their files."""
    node = recipes.recipe(ground, validate=True)
    root = Path(os.environ["TIEKD_REAL_DATA"]) / "kitti"
    node["data"] = {"name": "kitti", "root": str(root), "kb_crop": [352, 1216], "workers": 1}
    recipe = recipes.write_recipe(tmp_path / "student.yaml", node)
    result = programs.finish(command(recipe, tmp_path / "decoded"))
    assert result.code == 0
    assert "files: 42/42, " in result.stdout
    from support.frames import kitti_frames

    from tiekd.data.decoded_cache import Decoded

    frames, cached = (kitti_frames(str(root), "train", 80.0, kb_crop=(352, 1216)) for _ in range(2))
    cached.decoded = Decoded(tmp_path / "decoded", root)
    for index in range(len(frames)):
        one, other = frames.stored(index), cached.stored(index)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.depth, other.depth)
