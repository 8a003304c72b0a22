"""bin/make_shards.py: the frames of a recipe's data set as tar shards that read alike."""

import argparse

import pytest
import torch
from support import fake_data
from support.frames import kitti_frames, shards_frames
from support.small_student import NETWORK

from tiekd.config.recipe_yaml import dump
from tiekd.errors import DataError, LaunchError
from tiekd.tools import make_shards


def arguments(tmp_path, **others):
    """Returns the command line for a KITTI folder of five frames a split."""
    root = tmp_path / "kitti"
    if not root.exists():
        fake_data.make(root, 5)
        data = {"name": "kitti", "root": str(root)}
        (tmp_path / "r.yaml").write_text(dump({"network": NETWORK, "data": data}))
    given = {"recipe": str(tmp_path / "r.yaml"), "overrides": [], "split": "both"}
    given |= {"out": tmp_path / "out", "frames_per_shard": 2, "shuffle": None}
    return argparse.Namespace(**given | others)


def test_make_shards_gives_the_same_samples(tmp_path, capsys):
    """Shards of a recipe hold its frames with depth and camera, the same in two runs."""
    make_shards.run(arguments(tmp_path))
    assert "val: 5 frames in 3 shards in" in capsys.readouterr().out
    for split in ("train", "val"):
        theirs = kitti_frames(str(tmp_path / "kitti"), split, 80.0)
        ours = shards_frames(
            str(tmp_path / "out"),
            split,
            80.0,
            shards=f"{split}-*.tar",
            depth_unit=256.0,
            val_shards="val-*.tar" if split == "val" else None,
            val_fraction=0.0,
        )
        assert [frame.name for frame in ours.frames] == [frame.name for frame in theirs.frames]
        for index in range(len(theirs)):
            one, other = ours[index], theirs[index]
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.depth, other.depth)
            assert torch.allclose(one.intrinsics, other.intrinsics)
    make_shards.run(arguments(tmp_path, out=tmp_path / "again"))
    for path in (tmp_path / "out").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_make_shards_shuffles_by_a_seed(tmp_path):
    """A seed gives another order of the same frames."""
    data = kitti_frames(str(arguments(tmp_path) and tmp_path / "kitti"), "train", 80.0)
    (tmp_path / "s").mkdir()
    make_shards.write_split(data, "train", tmp_path / "s", 3, shuffle=1)
    ours = shards_frames(str(tmp_path / "s"), "train", 80.0, depth_unit=256.0, val_fraction=0.0)
    names = [[frame.name for frame in frames.frames] for frames in (data, ours)]
    assert names[0] != names[1]
    assert sorted(names[0]) == sorted(names[1])


def test_make_shards_refuses_old_shards_and_missing_files(tmp_path):
    """A folder with shards isn't written to, and a missing file is named."""
    args = arguments(tmp_path)
    args.out.mkdir()
    (args.out / "x.tar").write_bytes(b"")
    with pytest.raises(LaunchError, match="holds x.tar already; give another folder"):
        make_shards.run(args)
    frames = kitti_frames(str(tmp_path / "kitti"), "train", 80.0)
    image = frames.frames[1].image
    (tmp_path / "kitti" / image).unlink()
    with pytest.raises(DataError, match=f"^{image}: No such file or directory"):
        make_shards.write_split(frames, "train", args.out, 2)
