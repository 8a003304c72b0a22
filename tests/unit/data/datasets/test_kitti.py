"""KITTI in the published layout.

What is read, what is skipped and counted, and one line for each error.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support import fake_data
from support.fake_data import depth_name, image_name, write_png
from support.frames import kitti_frames

from tiekd.config.build import build
from tiekd.errors import DataError, RecipeError


def refused(make_or_read, kind=DataError):
    with pytest.raises(kind) as error:
        make_or_read()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_kitti_sample_has_image_depth_name(tmp_path):
    """A sample has the image as stored, its depth in metres and its name."""
    data = kitti_frames(str(fake_data.make(tmp_path)), "train", 80.0)
    assert len(data) == 5
    assert data.num_skipped == 0
    sample = data[2]
    assert sample.image.dtype == torch.uint8
    assert sample.image.shape == (3, 20, 30)
    assert sample.name == image_name(2)
    assert sample.image[1:].unique().tolist() == [20]
    assert sample.image[0, 3].tolist() == list(range(30))
    assert sample.depth.shape == (1, 20, 30)
    assert (sample.depth[0, 1:] == 3).all()
    assert (sample.depth[0, 0] == 0).all()
    assert sample.inside.all()
    assert sample.inside.shape == (1, 20, 30)
    assert sample.teacher_depth is None


def test_kitti_frames_without_depth_skipped_or_kept(tmp_path):
    """Frames without ground truth are skipped and counted, or kept for a teacher."""
    root = str(fake_data.make(tmp_path, without=(1, 3)))
    skipping = kitti_frames(root, "train", 80.0, needs_ground_truth=True)
    assert [frame.name for frame in skipping.frames] == [image_name(i) for i in (0, 2, 4)]
    assert skipping.num_skipped == 2
    whole = kitti_frames(root, "train", 80.0, needs_ground_truth=False)
    assert len(whole) == 5
    assert whole.num_skipped == 0
    assert (whole[1].depth == 0).all()
    assert whole[1].depth.shape == (1, 20, 30)
    assert (whole[0].depth > 0).any()
    fake_data.make(tmp_path, num_frames=2, without=(0, 1))
    assert "none of its 2 frames has ground truth" in refused(
        lambda: kitti_frames(root, "train", 80.0)
    )


def test_kitti_kb_crop_is_bottom_centre(tmp_path):
    """`kb_crop` cuts a window at the bottom centre and shifts the intrinsics."""
    sample = kitti_frames(str(fake_data.make(tmp_path)), "train", 80.0, kb_crop=(19, 21))[0]
    assert sample.image.shape == (3, 19, 21)
    assert (
        sample.depth.shape
        == sample.inside.shape
        == (
            1,
            19,
            21,
        )
    )
    assert sample.image[0, 0, 0] == 4  # (30 - 21) // 2, and row 0 is cut off
    assert (sample.depth == 1).all()
    assert sample.intrinsics[0, 2].item() == pytest.approx(609.5593 - 4)
    assert sample.intrinsics[1, 2].item() == pytest.approx(172.854 - 1)


@pytest.mark.parametrize(
    ("day", "focal", "expected"),
    [
        ("2011_09_26", 721.5377, (721.5377, 609.5593, 172.854)),
        ("2011_09_28", 707.0493, (707.0493, 604.0814, 180.5066)),
        ("2011_10_03", 718.856, (718.856, 607.1928, 185.2157)),
        ("2011_09_26", 360.0, (360.0, 14.5, 9.5)),  # an image of another size
        ("2000_01_01", 50.0, (50.0, 14.5, 9.5)),
    ],
)
def test_kitti_intrinsics_by_recording_day(tmp_path, day, focal, expected):
    """The principal point is that of the recording day, or the centre of another image size."""
    write_png(tmp_path / "input" / image_name(0, day), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "kitti_eigen_train.txt").write_text(f"{image_name(0, day)} None {focal}\n")
    camera = kitti_frames(str(tmp_path), "train", 80.0, needs_ground_truth=False)[0].intrinsics
    f, x, y = expected
    assert torch.allclose(camera, torch.tensor([[f, 0, x], [0, f, y], [0, 0, 1]]))


def test_kitti_teacher_map_names_and_sizes(
    tmp_path,
):
    """Teacher maps are found by the joined path, at the size before or after `kb_crop`."""
    root = fake_data.make(tmp_path, num_frames=2)
    name = "2011_09_26_2011_09_26_drive_0001_sync_image_02_data_0000000000.png"
    write_png(root / "gt_kd" / name, np.full((19, 21), 65535, np.uint16))
    data = kitti_frames(str(root), "train", 10.0, kb_crop=(19, 21), maps="gt_kd")
    assert data[0].teacher_depth.shape == (1, 19, 21)
    assert (data[0].teacher_depth == 10).all()
    assert str(root / "gt_kd") in refused(lambda: data[1])
    assert "no such teacher map; make the missing maps with bin/cache_teacher.py" in refused(
        lambda: data[1]
    )
    assert (
        kitti_frames(str(root), "val", 10.0, kb_crop=(19, 21), maps="nowhere")[0].teacher_depth
        is None
    )
    assert data.map_name(0) == name
    columns = np.tile(np.arange(30, dtype=np.uint16), (20, 1))
    write_png(root / "gt_kd" / name, columns)
    assert (data[0].teacher_depth[0] * 6553.5).round()[5].tolist() == list(range(4, 25))
    write_png(root / "gt_kd" / name, columns[1:])
    assert refused(lambda: data[0]) == (
        f"{root / 'gt_kd' / name}: teacher map of 19x30 for an image of 20x30, 19x21 after "
        "data.kb_crop; make the maps from the same images"
    )
    assert "teacher.maps: no folder at" in refused(
        lambda: kitti_frames(str(root), "train", 10.0, maps="nowhere")
    )


def test_kitti_missing_or_misshapen_files_are_named(tmp_path):
    """A missing or misshapen file, and an image below `kb_crop`, are refused by name."""
    root = fake_data.make(tmp_path, num_frames=2)
    data = kitti_frames(str(root), "train", 80.0)
    write_png(root / "gt_depth" / depth_name(0), np.ones((19, 30), np.uint16))
    assert f"{root / 'gt_depth' / depth_name(0)}: 19x30 does not fit its image" in refused(
        lambda: data[0]
    )
    (root / "gt_depth" / depth_name(1)).unlink()
    assert str(root / "gt_depth" / depth_name(1)) in refused(lambda: data[1])
    (root / "input" / image_name(1)).unlink()
    assert str(root / "input" / image_name(1)) in refused(lambda: data[1])
    big = kitti_frames(str(root), "train", 80.0, kb_crop=(21, 30))
    write_png(root / "gt_depth" / depth_name(0), np.ones((20, 30), np.uint16))
    assert f"{image_name(0)}: 20x30 is smaller than data.kb_crop asks for (21x30 from" in refused(
        lambda: big[0]
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "no frames in it"),
        ("a.png b.png\n", "1: got 'a.png b.png'; a line is `image ground_truth focal`"),
        ("a.png b.png 7\nc.png\n", "2: got 'c.png'; a line is `image ground_truth focal`"),
        ("a.png\nb/../../c.png\n", "2: b/../../c.png leads out of the data root"),
        ("\na.png b.png f\n", "2: got 'a.png b.png f'"),
        ("a.png b.png nan\n", "1: got 'a.png b.png nan'"),
        ("a.png b.png -1\n", "focal in pixels > 0"),
        ("../a.png b.png 7\n", "1: ../a.png leads out of the data root"),
        ("a.png /../b.png 7\n", "1: /../b.png leads out of the data root"),
        ("a.png x/../../b.png 7\n", "1: x/../../b.png leads out of the data root"),
        (
            "a.png b.png 7\n/etc/../../passwd b.png 7\n",
            "2: /etc/../../passwd leads out of the data root",
        ),
        ("/ b.png 7\n", "1: '/' names no file; give a path below the data root"),
        ("a.png b\0.png 7\n", "1: 'b\\x00.png' names no file"),
    ],
)
def test_kitti_bad_split_line_is_named(tmp_path, text, line):
    """A bad split file is refused with its name and line number."""
    (tmp_path / "kitti_eigen_train.txt").write_text(text)
    message = refused(lambda: kitti_frames(str(tmp_path), "train", 80.0))
    assert line in message
    assert message.startswith(str(tmp_path / "kitti_eigen_train.txt"))


def test_kitti_absolute_path_is_below_root(tmp_path):
    """An absolute path in a split file is taken below the root; links there are followed."""
    root = fake_data.make(tmp_path / "real")
    outside = tmp_path / "outside.png"
    (root / "input" / image_name(0)).rename(outside)
    split = root / "kitti_eigen_train.txt"
    split.write_text(split.read_text().replace(image_name(0), str(outside)))
    (tmp_path / "link").symlink_to(root)
    for place in (root, tmp_path / "link"):
        data = kitti_frames(str(place), "train", 80.0)
        assert f"{place}/input{outside}: no such image" in refused(lambda data=data: data[0])
    (root / "input" / str(outside)[1:]).parent.mkdir(parents=True)
    (root / "input" / str(outside)[1:]).symlink_to(outside)
    assert data[0].image[0, 0].tolist() == list(range(30))


def test_kitti_benchmark_test_set(tmp_path):
    """The benchmark's test set is a list of names in a folder of its own, without depth."""
    root = fake_data.make(tmp_path)
    for index in range(3):
        write_png(
            root / "benchmark_test" / f"{index:010d}.png", np.full((12, 16, 3), index, np.uint8)
        )
    (root / "kitti_benchmark_test.txt").write_text(
        "".join(f"{index:010d}.png\n" for index in range(3))
    )
    options = {
        "val_split": "kitti_benchmark_test.txt",
        "image_folder": "benchmark_test",
        "kb_crop": (12, 16),
    }
    data = kitti_frames(str(root), "val", 80.0, needs_ground_truth=False, **options)
    assert len(data) == 3
    assert data.num_skipped == 0
    assert data.map_name(2) == "0000000002.png"
    assert data[2].image.shape == (3, 12, 16)
    assert (data[2].image == 2).all()
    assert (data[2].depth == 0).all()
    assert data[2].intrinsics[0, 0].isnan()  # no focal length, no camera
    message = refused(lambda: kitti_frames(str(root), "val", 80.0, **options))
    assert (
        "kitti_benchmark_test.txt: none of its 3 frames has ground truth, which evaluation"
        in message
    )


# Where the published evaluation cuts: height x width of the image, top and left of 352 x 1216.
@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [
        (375, 1242, 23, 13),
        (370, 1226, 18, 5),
        (376, 1241, 24, 12),
        (374, 1238, 22, 11),
        (370, 1224, 18, 4),
    ],
)
def test_kitti_kb_crop_as_published(tmp_path, height, width, top, left):
    """The window of 352x1216 has the published code's top and left."""
    root = fake_data.make(tmp_path, num_frames=1, height=height, width=width, without=(0,))
    rows = np.broadcast_to(np.arange(height, dtype=np.uint16)[:, None], (height, width))
    write_png(root / "gt_depth" / depth_name(0), np.ascontiguousarray(rows))
    line = (root / "kitti_eigen_train.txt").read_text().replace("None", depth_name(0))
    (root / "kitti_eigen_train.txt").write_text(line)
    camera = kitti_frames(str(root), "train", 80.0)[0].intrinsics
    sample = kitti_frames(str(root), "train", 80.0, kb_crop=(352, 1216))[0]
    assert sample.image.shape == (3, 352, 1216)
    assert sample.depth[0, 0, 0] * 256 == top
    assert (camera - sample.intrinsics)[:2, 2].tolist() == pytest.approx([left, top], abs=1e-4)


def test_kitti_split_file_with_bom_or_binary(tmp_path):
    """A split file may begin with a byte order mark; one that isn't text is refused."""
    root = fake_data.make(tmp_path)
    split = root / "kitti_eigen_train.txt"
    split.write_bytes(b"\xef\xbb\xbf" + split.read_bytes())
    assert kitti_frames(str(root), "train", 80.0)[0].name == image_name(0)
    split.write_bytes(b"\xff\xfe\x00")
    assert "no text" in refused(lambda: kitti_frames(str(root), "train", 80.0))


def test_kitti_invalid_levels_have_no_depth(tmp_path):
    """The level 65535 and those in `invalid` count as no depth."""
    root = fake_data.make(tmp_path)
    levels = np.full((20, 30), 65535, np.uint16)
    levels[:10] = 512
    levels[5] = 7
    write_png(root / "gt_depth" / depth_name(1), levels)
    depth = kitti_frames(str(root), "train", 80.0, invalid=(7,))[1].depth[0]
    assert (depth[10:] == 0).all()
    assert (depth[5] == 0).all()
    assert (depth[:5] == 2).all()


def test_kitti_missing_root_or_split_is_named(tmp_path, monkeypatch):
    """A missing root or split file is named; `~` and absolute split paths are accepted."""
    root = fake_data.make(tmp_path / "kitti")
    message = refused(lambda: kitti_frames(str(root), "train", 80.0, train_split="mine.txt"))
    assert (
        "mine.txt: no such split file; .txt files beside it: kitti_eigen_test.txt, "
        "kitti_eigen_train.txt" in message
    )
    assert "data.root: no folder at" in refused(
        lambda: kitti_frames(str(tmp_path / "nyu"), "train", 80.0)
    )
    assert "data.root: a file, not a folder at" in refused(
        lambda: kitti_frames(str(root / "kitti_eigen_train.txt"), "train", 80.0)
    )
    elsewhere = tmp_path / "mine.txt"
    elsewhere.write_text((root / "kitti_eigen_train.txt").read_text())
    assert len(kitti_frames(str(root), "train", 80.0, train_split=str(elsewhere))) == 5
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(kitti_frames("~/kitti", "val", 80.0)) == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"kb_crop": 5},
            "data.kb_crop: got 5; it must be a list of 2: a whole number, a whole number",
        ),
        ({"kb_crop": [0, 5]}, "data.kb_crop: got [0, 5]; it must be [height, width] in pixels"),
        ({"root": 3}, "data.root: got 3; it must be text"),
        ({"train_split": 3}, "data.train_split: got 3; it must be text"),
        ({"maps": "x"}, "data (kitti): unknown key 'maps'"),
        ({"kb_corp": [1, 1]}, "unknown key 'kb_corp'; did you mean 'kb_crop'?"),
    ],
)
def test_kitti_wrong_option_is_one_line(tmp_path, arguments, line):
    """A wrong dataset option raises a `RecipeError` of one line."""
    node = {"name": "kitti", "root": str(fake_data.make(tmp_path))} | arguments
    context = {"split": "train", "max_depth": 80.0, "maps": None, "needs_ground_truth": True}
    assert line in refused(
        lambda: build(node, "tiekd.data.datasets", "data", **context), RecipeError
    )


@pytest.mark.skipif(
    "TIEKD_REAL_DATA" not in os.environ, reason="TIEKD_REAL_DATA names no folder with real frames"
)
@pytest.mark.parametrize(("split", "count"), [("train", 17), ("val", 4)])
def test_kitti_real_frames_are_plausible(split, count):
    """Real KITTI frames have plausible images, depths and intrinsics."""
    data = kitti_frames(
        str(Path(os.environ["TIEKD_REAL_DATA"]) / "kitti"), split, 80.0, kb_crop=(352, 1216)
    )
    assert len(data) + data.num_skipped == count
    for index in {0, len(data) - 1}:
        sample = data[index]
        assert sample.image.shape == (3, 352, 1216)
        assert 40 < sample.image.float().mean() < 200
        measured = sample.depth[sample.depth > 0]
        assert 0.005 < len(measured) / sample.depth.numel() < 0.6
        assert 1 < measured.min() < measured.max() < 130
        assert sample.depth[0, :80].count_nonzero() < sample.depth[0, 200:280].count_nonzero()
        assert 500 < sample.intrinsics[0, 2] < 700
        assert 130 < sample.intrinsics[1, 2] < 200
