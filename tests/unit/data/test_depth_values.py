"""The units of depth files.

Units that can't be right are reported before training, and levels that pile up are shown.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.fake_data import write_png
from support.frames import folder_frames

from tiekd.data import depth_values
from tiekd.data.depth_values import check_range, levels_of
from tiekd.errors import DataError


def make(root, depths, max_depth=10.0, **options):
    """A folder data set of images of 12x16 with these depth maps.

    Maps are saved as NPY, or as PNG where they are uint16.
    """
    for index, depth in enumerate(depths):
        write_png(root / f"images/{index}.png", np.full((12, 16, 3), index, np.uint8))
        (root / "depths").mkdir(exist_ok=True)
        if depth.dtype == np.uint16:
            Image.fromarray(depth).save(root / f"depths/{index}.png")
        else:
            np.save(root / f"depths/{index}.npy", depth)
    return folder_frames(
        "images", "train", max_depth, root=str(root), depths="depths", val_fraction=0.0, **options
    )


def full(value, kind=np.float32):
    return np.full((12, 16), value, kind)


def lines(data):
    return depth_values.describe(data, [levels_of(Path(frame.depth)) for frame in data.frames])


def test_check_range_refuses_npy_millimetres(tmp_path):
    """Float NPY depth in millimetres without a unit is refused before training."""
    data = make(tmp_path, [full(2500 + index) for index in range(9)], depth_unit=1000.0)
    with pytest.raises(DataError) as error:
        check_range(data)
    assert str(error.value) == (
        f"{tmp_path}/depths/0.npy: half of its depths are farther than 2500 m, as in all 5 depth "
        "maps looked at, and max_depth is 10 m; float32 NPY is taken as metres "
        "(data.float_depth_unit): give the unit, such as 1000 for millimetres"
    )
    told = make(tmp_path, [], float_depth_unit=1000.0)
    assert check_range(told) == []
    assert (told[0].depth == 2.5).all()


def test_check_range_refuses_wrong_png_unit(tmp_path):
    """PNG depth with a wrong `depth_unit` is refused before training."""
    data = make(tmp_path, [full(2500, np.uint16)], depth_unit=1.0)
    with pytest.raises(
        DataError, match=r"0\.png: .*16-bit PNG is taken as 1 levels a metre \(data.depth_unit\)"
    ):
        check_range(data)


def test_check_range_warns_of_unusual_depths(tmp_path):
    """Unusual depths give a warning; plausible ones and other datasets give none."""
    (line,) = check_range(make(tmp_path / "far", [full(20), full(25)]))
    assert line.startswith("Warning: ")
    assert "farther than 20 m, as in all 2 depth maps looked at, and max_depth is 10 m" in line
    (line,) = check_range(make(tmp_path / "near", [full(0.05)]))
    assert (
        "nearer than 0.05 m, as in the only depth map looked at; float32 NPY is taken as metres"
        in line
    )
    assert check_range(make(tmp_path / "some", [full(2500), full(5)])) == []
    assert check_range(make(tmp_path / "none", [full(0)])) == []
    assert check_range([1, 2]) == check_range(None) == []


def test_check_range_names_exif_rotated_images(tmp_path):
    """Images that EXIF rotates are counted before training."""
    data, exif = make(tmp_path, [full(5), full(5)]), Image.Exif()
    exif[0x0112] = 3
    Image.open(data.frames[1].image).save(data.frames[1].image, exif=exif)
    (line,) = check_range(data)
    assert line.startswith(
        "1 image(s) are turned by their EXIF orientation, such as 1.png: depth maps and intrinsics"
    )


def test_check_range_ignores_unreadable_file(tmp_path):
    """An unreadable depth file is left to the loader."""
    data = make(tmp_path, [full(5), full(5)])
    (tmp_path / "depths/0.npy").write_bytes(b"")
    assert check_range(data) == []


def sloped(kind, sentinel, unit=1):
    depth = np.linspace(1, 8, 12 * 16).reshape(12, 16) * unit
    depth[:3] = sentinel
    return depth.astype(kind)


@pytest.mark.parametrize("kind", [">f4", np.float16, np.float64, np.longdouble])
def test_describe_float_npy_is_metres(tmp_path, kind):
    """NPY depth of every float dtype is described as metres."""
    (line,) = lines(make(tmp_path, [full(5, kind)], depth_unit=1000.0))
    assert (
        line
        == f"1 depth maps: {np.dtype(kind).name} NPY is taken as metres (data.float_depth_unit)"
    )


@pytest.mark.parametrize(
    ("kind", "sentinel", "line"),
    [
        (
            np.uint16,
            65535,
            "level 65535 is 25% of what isn't 0, in 2 of 2 depth maps: counts as none",
        ),
        (
            np.uint16,
            5000,
            "level 5000 is 25% of what isn't 0, in 2 of 2 depth maps: if it means not measured, "
            "set",
        ),
        (np.int32, 10000, "level 10000 is 25% .* set data.invalid=\\[10000\\]"),
        (np.float32, 100, "value 100 is 25% .* set data.invalid=\\[100\\]"),
    ],
)
def test_describe_shows_frequent_level(tmp_path, kind, sentinel, line):
    """A level that many pixels share is shown, with the option that makes it invalid."""
    unit = 1 if kind is np.float32 else 1000
    data = make(tmp_path, [sloped(kind, sentinel, unit)] * 2, depth_unit=1000.0)
    found = lines(data)
    assert len(found) == 2
    assert re.match(line, found[1])


def test_describe_invalid_level_counts_as_none(tmp_path):
    """A level in `data.invalid` is described, and read, as no depth."""
    data = make(tmp_path, [sloped(np.uint16, 5000, 1000)] * 2, depth_unit=1000.0, invalid=[5000])
    assert "level 5000 is 25% of what isn't 0, in 2 of 2 depth maps: counts as none" in lines(data)
    assert (data[0].depth[0, :3] == 0).all()
    assert (data[0].depth[0, 3:] > 0).all()


def test_describe_ignores_flat_and_even_depth(tmp_path):
    """A flat and an evenly sloped depth map show no frequent level."""
    data = make(tmp_path, [full(3000, np.uint16), sloped(np.uint16, 0, 1000)], depth_unit=1000.0)
    assert lines(data) == [
        "2 depth maps: 16-bit PNG is taken as 1000 levels a metre (data.depth_unit)"
    ]


def test_describe_warns_of_8_bit_depth(tmp_path):
    """Depth maps whose levels all fit into 8 bits give a warning."""
    depth = np.arange(192).reshape(12, 16) + 64
    data = make(tmp_path, [depth.astype(np.uint16), depth.astype(np.uint8)], depth_unit=50.0)
    found = lines(data)
    assert [line[:28] for line in found] == [
        "1 depth maps: 16-bit PNG is ",
        "1 depth maps: uint8 NPY is t",
        "WARNING: no level is above 2",
    ]
