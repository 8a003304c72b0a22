"""bin/predict.py from outside: every kind of input, what it writes, and its errors."""

import csv
import json
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support import programs, recipes

from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights

REAL = pytest.mark.skipif(
    "TIEKD_REAL_DATA" not in os.environ, reason="TIEKD_REAL_DATA is not set: no real frames"
)
KITTI = {"name": "kitti", "root": "nowhere", "kb_crop": [352, 1216]}
NYU = {"name": "nyu", "root": "nowhere"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A work dir with an untrained student's weights, and recipes that find it there."""
    folder = tmp_path_factory.mktemp("desk")
    torch.manual_seed(0)
    network = build_network(recipes.STUDENT)
    torch.nn.init.normal_(network.head.weight, std=1.0)
    (folder / "work").mkdir()
    write_weights(folder / "work/best_abs_rel.pth", network.state_dict(), recipes.STUDENT, 3)
    for name, data, max_depth in (("kitti", KITTI, 80.0), ("nyu", NYU, 10.0)):
        recipe = {
            "network": recipes.STUDENT | {"max_depth": max_depth},
            "data": data,
            "work_dir": str(folder / "work"),
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def predict(desk, *arguments, recipe="kitti"):
    command = [
        sys.executable,
        programs.ROOT / "bin/predict.py",
        desk / f"{recipe}.yaml",
        *arguments,
    ]
    return programs.finish(command, recorder=False)


def levels(path: Path) -> np.ndarray:
    """A depth file as another program reads it."""
    image = Image.open(path)
    assert image.mode == "I;16"
    return np.asarray(image)


def photo(height, width) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [columns * 255 // width, rows * 255 // height, (rows + columns) % 256], axis=2
    ).astype(np.uint8)


def test_predict_folder_with_all_image_modes(desk, tmp_path):
    """A folder of all image modes is predicted, and a torn image is reported in one line."""
    images = tmp_path / "pictures"
    (images / "deep/er").mkdir(parents=True)
    small = photo(60, 100)
    Image.fromarray(photo(3000, 4000)).save(images / "large.jpg", quality=90)
    Image.fromarray(small[..., 0]).save(images / "grey.png")
    Image.fromarray(small[..., 0].astype(np.uint16) * 257).save(images / "sixteen.png")
    Image.fromarray(np.dstack([small, small[..., 0]])).save(images / "deep/rgba.png")
    Image.fromarray(small).quantize(32).save(images / "deep/er/palette.png")
    whole = (images / "grey.png").read_bytes()
    (images / "deep/torn.png").write_bytes(whole[: len(whole) // 2])
    before = programs.files_of(images)
    out = tmp_path / "out"
    result = predict(
        desk, desk / "work", images, "--out", out, "--raw", "--confidence", "--readout", "local"
    )
    assert result.code == 2
    lines = result.our_lines()
    assert len(lines) == 2
    assert f"{images}/deep/torn.png: a torn or damaged PNG" in lines[0]
    assert "1 of 6 could not be predicted" in lines[1]
    assert "Traceback" not in result.stderr
    assert f"Weights: {desk}/work/best_abs_rel.pth; readout local" in result.stdout
    assert "16-bit PNG, 256 levels a metre" in result.stdout
    assert "images: 6/6" in result.stdout
    assert "images/s" in result.stdout
    assert programs.files_of(images) == before
    good = {"large": (3000, 4000)} | dict.fromkeys(
        ("grey", "sixteen", "deep/rgba", "deep/er/palette"), (60, 100)
    )
    for kind, suffix in (
        ("depth", "png"),
        ("colour", "png"),
        ("raw", "npy"),
        ("confidence", "png"),
        ("confidence", "npy"),
        ("sigma", "png"),
        ("sigma", "npy"),
    ):
        found = sorted(
            str(path.relative_to(out / kind)) for path in (out / kind).rglob(f"*.{suffix}")
        )
        assert found == sorted(f"{name}.{suffix}" for name in good)
    for name, size in good.items():
        depth = np.load(out / f"raw/{name}.npy")
        assert depth.shape == size
        assert np.isfinite(depth).all()
        assert 0.001 <= depth.min() <= depth.max() <= 80
        assert np.abs(levels(out / f"depth/{name}.png") / 256.0 - depth).max() <= 0.51 / 256
        colour = Image.open(out / f"colour/{name}.png")
        assert colour.height == size[0]
        assert colour.width > size[1] + 20
    assert np.array_equal(np.load(out / "raw/grey.npy"), np.load(out / "raw/sixteen.npy"))
    assert np.load(out / "raw/large.npy").std() > 0


def test_predict_takes_best_and_keeps_old_files(desk, tmp_path):
    """Without a checkpoint the best weights are taken; existing outputs need `--overwrite`."""
    Image.fromarray(photo(48, 64)).save(tmp_path / "p.png")
    first = predict(desk, tmp_path / "p.png", "--out", tmp_path / "out")
    assert first.code == 0
    assert first.our_lines() == []
    assert f"Weights: {desk}/work/best_abs_rel.pth; readout mean, on" in first.stdout
    before = programs.files_of(tmp_path / "out")
    again = predict(desk, tmp_path / "*.png", "--out", tmp_path / "out")
    assert again.code == 2
    assert "exist already; give another --out, or --overwrite" in again.our_lines()[0]
    assert programs.files_of(tmp_path / "out") == before
    assert predict(desk, tmp_path / "*.png", "--out", tmp_path / "out", "--overwrite").code == 0
    assert programs.files_of(tmp_path / "out") == before  # the same depth, bit for bit


MISTAKES = {
    "no such file": (["none.png"], "none.png: no such file or folder; give an image"),
    "no input": (["work/best_abs_rel.pth"], "weights by their name, no image"),
    "no such weights": (
        ["nothing.pth", "p.png"],
        "nothing.pth: no such file; give a checkpoint file",
    ),
    "no such readout": (
        ["p.png", "--readout", "median"],
        "readout: got 'median'; allowed: mean, mode, local",
    ),
    "no such size": (["p.png", "--size", "big"], "--size: got 'big'; allowed: HEIGHTxWIDTH"),
    "unknown camera": (["p.png", "--points"], "1 of 1 could not be predicted"),
    "half a camera": (
        ["p.png", "--points", "--intrinsics", "1,2"],
        "--intrinsics: got '1,2'; it must be four numbers",
    ),
    "a camera that isn't used": (
        ["p.png", "--intrinsics", "90,90,32,24"],
        "--intrinsics: this network was trained without network.canonical_focal",
    ),
    "a focal length that isn't used": (
        ["p.png", "--focal", "90"],
        "--focal: this network was trained without network.canonical_focal",
    ),
    "no such device": (["p.png", "--device", "warp"], "--device warp: there is no such device"),
    "two of a name": (["p.png", "p.jpg"], "p.jpg would have the same outputs"),
    "a head without bins": (
        ["w.pth", "p.png", "--confidence"],
        "confidence: asked for, but this network's head",
    ),
}


@pytest.fixture(scope="module")
def mistakes(desk, tmp_path_factory) -> dict[str, programs.Result]:
    """The results of MISTAKES, all in one process (mains.py); none left a file."""
    folder = tmp_path_factory.mktemp("mistakes")
    Image.fromarray(photo(48, 64)).save(desk / "p.png")
    Image.fromarray(photo(48, 64)).save(desk / "p.jpg")
    write_weights(desk / "w.pth", build_network(recipes.TEACHER).state_dict(), recipes.TEACHER, 0)
    (desk / "sigmoid.yaml").write_text(yaml.safe_dump({"network": recipes.TEACHER}))
    calls = []
    for words, _ in MISTAKES.values():
        paths = [
            str(desk / word) if word.endswith((".png", ".jpg", ".pth")) else word for word in words
        ]
        recipe = desk / ("sigmoid.yaml" if "w.pth" in words else "kitti.yaml")
        calls.append(["bin/predict.py", str(recipe), *paths, "--out", str(folder / "out")])
    (folder / "arguments.json").write_text(json.dumps(calls))
    result = programs.finish(
        [sys.executable, programs.HERE / "mains.py", folder / "arguments.json"], recorder=False
    )
    assert result.code == 0, result.stderr[-3000:]
    results = [programs.Result(**row) for row in json.loads((folder / "arguments.out").read_text())]
    assert sorted(programs.files_of(folder)) == ["arguments.json", "arguments.out"]
    return dict(zip(MISTAKES, results, strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_predict_mistake_is_one_line(mistakes, name):
    """A mistake on the command line ends with code 2 and one line."""
    result, words = mistakes[name], MISTAKES[name][1]
    assert result.code == 2
    assert words in result.our_lines()[-1]
    assert "Traceback" not in result.stderr + result.stdout
    if name == "unknown camera":  # an image's own trouble, after which the others would go on
        assert (
            "the camera of an image of 48x64 there isn't known; give --intrinsics"
            in result.our_lines()[0]
        )
    else:
        assert len(result.our_lines()) == 1


def test_predict_video_keeps_times_and_prints_flicker(desk, tmp_path):
    """The outputs of a video keep its frame times, and the flicker is printed."""
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    from tiekd.inference.predict.video import Video, mp4_writer

    times = [0, 80, 160, 240, 380, 400]
    with mp4_writer(tmp_path / "ride.mp4", Fraction(25, 2), Fraction(1, 1000)) as add:
        for index, pts in enumerate(times):
            frame = photo(64, 96)
            frame[10:30, 8 * index : 8 * index + 16] = 255
            add(frame, pts)
    result = predict(
        desk, tmp_path / "ride.mp4", "--out", tmp_path / "out", "--batch-size", "4", "--raw"
    )
    assert result.code == 0, result.stderr
    assert "Predicted 6 frames of" in result.stdout
    assert "Flicker: " in result.stdout
    rows = list(csv.DictReader((tmp_path / "out/times/ride.csv").open()))
    seconds = [pts / 1000 for pts in times]
    assert [float(row["time_s"]) for row in rows] == pytest.approx(seconds)
    assert all(0 < float(row["static_share"]) < 1 for row in rows[1:])
    colours = Video(tmp_path / "out/colour/ride.mp4")
    source = Video(tmp_path / "ride.mp4")
    assert colours.rate == source.rate
    assert [f.time_s for f in colours.frames()] == pytest.approx(seconds)
    assert [levels(tmp_path / f"out/depth/ride/{i:06}.png").shape for i in range(6)] == [
        (64, 96)
    ] * 6
    assert len(list((tmp_path / "out/raw/ride").iterdir())) == 6


@REAL
def test_predict_real_kitti_with_points(desk, tmp_path):
    """Real KITTI frames are predicted at their size, with a point cloud each."""
    root = Path(os.environ["TIEKD_REAL_DATA"]) / "kitti/input"
    result = predict(
        desk, f"{root}/**/*[02468].png", "--out", tmp_path / "out", "--points", "--batch-size", "2"
    )
    assert result.code == 0, result.stderr
    for path in sorted(root.rglob("*[02468].png")):
        name = path.relative_to(root).with_suffix("")
        assert (
            levels(tmp_path / f"out/depth/{name}.png").shape
            == np.asarray(Image.open(path)).shape[:2]
        )
        assert (tmp_path / f"out/points/{name}.ply").stat().st_size > 15 * 370 * 1224


@REAL
def test_predict_real_nyu_in_millimetres(desk, tmp_path):
    """Real NYU frames are predicted with 1000 levels a metre."""
    root = Path(os.environ["TIEKD_REAL_DATA"]) / "nyu"
    result = predict(
        desk, f"{root}/**/rgb_*.jpg", "--out", tmp_path / "out", "--raw", "--points", recipe="nyu"
    )
    assert result.code == 0, result.stderr
    assert "1000 levels a metre" in result.stdout
    names = sorted(path.relative_to(root).with_suffix("") for path in root.rglob("rgb_*.jpg"))
    assert len(names) >= 7
    for name in names:
        depth = np.load(tmp_path / f"out/raw/{name}.npy")
        assert depth.shape == (480, 640)
        assert depth.max() <= 10
        assert (
            np.abs(levels(tmp_path / f"out/depth/{name}.png") / 1000.0 - depth).max() <= 0.51 / 1000
        )
