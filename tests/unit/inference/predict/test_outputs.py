"""Outputs of prediction: kinds, units, the tree of the inputs; no file is overwritten."""

import numpy as np
import pytest
import torch
from PIL import Image

from tiekd.data.frames import Camera
from tiekd.data.image_io import read_levels
from tiekd.errors import DataError, RecipeError
from tiekd.inference.predict.inputs import Input
from tiekd.inference.predict.outputs import Outputs, in_words, parse_units, units_of
from tiekd.inference.student import Reading

DEPTH = np.linspace(0.5, 79.5, 20 * 30, dtype=np.float32).reshape(20, 30)
RGB = np.full((20, 30, 3), 7, np.uint8)
PLAIN = Reading(torch.from_numpy(DEPTH))


def test_outputs_write_each_kind_to_its_folder(tmp_path):
    """Each output kind is written to its own folder, keeping the input's path and values."""
    outputs = Outputs(tmp_path, 256.0, 80.0, raw=True, points=True, confidence=True)
    reading = Reading(torch.from_numpy(DEPTH), torch.full((20, 30), 0.2), torch.full((20, 30), 1.5))
    outputs.write("ride/0", RGB, reading, Camera(20.0, 20.0))
    found = sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert found == [
        "colour/ride/0.png",
        "confidence/ride/0.npy",
        "confidence/ride/0.png",
        "depth/ride/0.png",
        "points/ride/0.ply",
        "raw/ride/0.npy",
        "sigma/ride/0.npy",
        "sigma/ride/0.png",
    ]
    levels = read_levels(tmp_path / "depth/ride/0.png")[0].numpy().astype(float)
    assert np.abs(levels / 256 - DEPTH).max() <= 0.5 / 256 + 1e-6
    raw = np.load(tmp_path / "raw/ride/0.npy")
    assert raw.dtype == np.float32
    assert np.array_equal(raw, DEPTH)
    assert np.asarray(Image.open(tmp_path / "confidence/ride/0.png")).max() == 51
    assert np.load(tmp_path / "confidence/ride/0.npy").max() == np.float32(0.2)
    assert (read_levels(tmp_path / "sigma/ride/0.png") == 1.5 * 256).all()
    assert (np.load(tmp_path / "sigma/ride/0.npy") == 1.5).all()


def test_outputs_write_only_requested_kinds(tmp_path):
    """Only the requested output kinds create folders."""
    Outputs(tmp_path, 256.0, 80.0).write("0", RGB, PLAIN, colour=False)
    assert [path.name for path in tmp_path.iterdir()] == ["depth"]


def test_outputs_check_protects_existing_files(tmp_path):
    """Existing outputs need --overwrite, and an input file is never overwritten."""
    outputs, source = Outputs(tmp_path, 256.0, 80.0), tmp_path / "in/0.png"
    item = Input("0", source)
    outputs.check([item], overwrite=False)
    outputs.write("0", RGB, PLAIN)
    with pytest.raises(
        DataError, match="depth/0.png and 1 more exist already; give another --out, or --overwrite"
    ):
        outputs.check([item], overwrite=False)
    outputs.check([item], overwrite=True)
    with pytest.raises(DataError, match="depth/0.png: is an input"):
        outputs.check([Input("0", tmp_path / "depth/0.png")], overwrite=True)
    (tmp_path / "depth/clip").mkdir()
    with pytest.raises(DataError, match="depth/clip exist already"):
        outputs.check([Input("clip", tmp_path / "clip.mp4")], overwrite=False)


@pytest.mark.parametrize(
    ("data", "max_depth", "units"),
    [
        ({"name": "kitti"}, 80.0, 256.0),
        ({"name": "scenes"}, 80.0, 256.0),
        ({"name": "nyu"}, 10.0, 1000.0),
        ({"name": "folder", "depth_unit": 500}, 80.0, 500.0),
        ({"name": "folder"}, 80.0, 256.0),
        ({}, 1000.0, 65.0),
        ({}, 1e6, 1.0),
    ],
)
def test_units_of_follows_dataset(data, max_depth, units):
    """The PNG unit is the data set's, or else one that fits max_depth into 16 bits."""
    assert units_of(data, max_depth) == units


@pytest.mark.parametrize("unit", ["abc", 0, -3, True, 1e9])
def test_units_of_rejects_invalid_depth_unit(unit):
    """An invalid data.depth_unit raises a RecipeError that names the key."""
    with pytest.raises(RecipeError, match=r"^data\.depth_unit: got"):
        units_of({"name": "folder", "depth_unit": unit}, 80.0)


def test_parse_units_option_and_range_note():
    """The --depth-unit option overrides the data set's, and a note says where depth saturates."""
    assert parse_units("1000", {}, 80.0) == 1000.0
    for text in ("0", "-3", "mm", "nan", "1e9"):
        with pytest.raises(RecipeError, match="--depth-unit: got"):
            parse_units(text, {}, 80.0)
    assert in_words(256.0, 80.0) == "16-bit PNG, 256 levels a metre"
    assert in_words(1000.0, 80.0).endswith(
        "; depths above 65.53 m are stored as 65.53 m, which data sets read as not measured"
    )
