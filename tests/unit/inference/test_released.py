"""The student that comes with tiekd: where it is, and what `predict` says and does with it."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiekd.config.recipe import load_recipe
from tiekd.errors import CheckpointError, LaunchError
from tiekd.inference import released
from tiekd.models.build import build_network
from tiekd.tools import predict, rebuild_student
from tiekd.workdir import weights_file


def arguments(*words: str, **options) -> argparse.Namespace:
    recipe, *rest = words
    given = {"recipe": Path(recipe), "words": rest, "out": None, "overrides": [], "size": None}
    given |= {"intrinsics": None, "focal": None, "points": False, "device": "cpu", "raw": True}
    given |= {"readout": "mean", "confidence": False, "depth_unit": None, "batch_size": None}
    return argparse.Namespace(**{**given, "overwrite": False, **options})


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Random weights of the released student, stored as its own are; returns its network."""
    node = load_recipe(released.recipe_file())["network"]
    torch.manual_seed(0)
    network = build_network(node).eval()
    path = tmp_path / "released" / f"{released.NAME}.pth"
    path.parent.mkdir()
    tensors = rebuild_student.in_half(network.state_dict())
    weights_file.write_weights(path, tensors, node, 1, teachers=[])
    monkeypatch.setattr(released, "weights_file", lambda: path)
    return network


def test_predict_without_recipe_takes_the_released_student(stand_in, tmp_path, capsys):
    """An image alone is predicted by the packaged weights, which are told to be a demo of shape."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (64, 96, 3), np.uint8)).save(tmp_path / "street.png")
    predict.run(arguments(str(tmp_path / "street.png"), out=tmp_path / "out"))
    told = capsys.readouterr().out
    assert "shape only, metres unreliable" in told.splitlines()[0]
    assert f"Weights: {tmp_path}/released/baseline_lite0_scenes.pth; readout mean" in told
    assert "Working resolution: the image's own size, from 1.5 times 128x416 on shrunk" in told
    depth = np.load(tmp_path / "out" / "raw" / "street.npy")
    assert depth.shape == (64, 96)
    # Storing the weights in fp16 changes depth by little.
    with torch.no_grad():
        image = torch.from_numpy(np.asarray(Image.open(tmp_path / "street.png")).copy())
        image = image.permute(2, 0, 1)[None].float()
        mean, deviation = (
            torch.tensor(each) for each in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        )
        image = (image - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
        exact = stand_in(image).depth[0, 0].numpy()
    assert np.median(np.abs(depth / exact - 1)) < 0.01


def test_predict_without_recipe_needs_weights(tmp_path, monkeypatch):
    """Without packaged weights one line says what to do, and nothing is written."""
    monkeypatch.setattr(released, "weights_file", lambda: tmp_path / "none.pth")
    with pytest.raises(CheckpointError) as error:
        predict.run(arguments("street.jpg", out=tmp_path / "out"))
    assert str(error.value) == (
        f"without RECIPE the student that comes with tiekd predicts, and there is no {tmp_path}/"
        "none.pth; give RECIPE and its weights before the images, or make the file with `python -m "
        "tiekd.tools.rebuild_student` (some 20 minutes)"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("stand_in")
def test_words_are_recipe_checkpoint_and_inputs():
    """The first word is the recipe unless it is an image, a video or a pattern."""
    request = predict.request_of(arguments("r.yaml", "work", "a.jpg", out=Path("o")))
    assert request == (Path("r.yaml"), "work", ["a.jpg"], Path("o"), False)
    request = predict.request_of(arguments("r.yaml", "photos", out=Path("o")))
    assert request == (Path("r.yaml"), None, ["photos"], Path("o"), False)
    for first in ("a.jpg", "ride.mp4", "rides/*"):
        request = predict.request_of(arguments(first, "photos", "b.jpg"))
        weights = str(released.weights_file())
        inputs = [first, "photos", "b.jpg"]
        assert request == (released.recipe_file(), weights, inputs, Path("predicted"), True)


def test_words_that_are_missing_are_named(tmp_path):
    """A recipe needs an input and --out; a folder in its place isn't taken for images."""
    with pytest.raises(LaunchError, match="INPUT is missing after r.yaml"):
        predict.request_of(arguments("r.yaml", out=Path("o")))
    with pytest.raises(LaunchError, match="--out is missing"):
        predict.request_of(arguments("r.yaml", "a.jpg"))
    assert not predict.request_of(arguments(str(tmp_path), "a.jpg", out=Path("o"))).is_released
    with pytest.raises(LaunchError, match=r"without a recipe, .* as a pattern, '.*/\*\.jpg'$"):
        predict.request_of(arguments(str(tmp_path)))


@pytest.mark.usefixtures("stand_in")
def test_recipes_and_folders_with_names_of_images_are_no_inputs(tmp_path):
    """Brackets in a recipe's path, or a folder named as an image, don't select the demo."""
    for first in ("runs[1]/recipe.yaml", "work?/Recipe.YML"):
        request = predict.request_of(arguments(first, "a.jpg", out=Path("o")))
        assert request == (Path(first), None, ["a.jpg"], Path("o"), False)
    for name in ("work.png", "run[1]"):
        (tmp_path / name).mkdir()
        request = predict.request_of(arguments(str(tmp_path / name), "a.jpg", out=Path("o")))
        assert not request.is_released


def test_released_weights_fit_their_record():
    """If weights are in this checkout, they are those of their record, and of at most 10 MB."""
    path = released.weights_file()
    if not path.is_file():
        pytest.skip("no weights here")
    assert path.stat().st_size <= rebuild_student.MAX_BYTES
    record = json.loads(released.weights_file().with_suffix(".json").read_text())
    content = torch.load(path, weights_only=True)
    assert rebuild_student.digest_of(content["state_dict"]) == record["digest"]
    assert content["teachers"] == []
    assert record["overrides"] == []
