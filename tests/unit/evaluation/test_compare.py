"""Networks side by side: which take part, their names, and all figures as plain values."""

import json
import math
from pathlib import Path

import pytest
import torch
from support.noise_frames import CPU, Frames
from support.small_student import NETWORK, write_recipe

from tiekd.data.loading.loader import Loading
from tiekd.evaluation import compare
from tiekd.evaluation.compare import EvaluatedPredictor
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings
from tiekd.models.build import build_network
from tiekd.workdir import weights_file

PROTOCOL = EvaluationProtocol(EvaluationSettings(crop="none", batch_size=2), 1e-3, 80.0)


def constant(depth):
    return EvaluatedPredictor(
        lambda image: image.new_full((len(image), 1, *image.shape[-2:]), depth), Path("x.pth")
    )


def evaluated(predictor):
    return compare.evaluate(predictor, Frames(), PROTOCOL, CPU, Loading(workers=0), None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.yaml", ("a.yaml", None)),
        ("a.yaml:b.pth", ("a.yaml", "b.pth")),
        ("x/a.yaml:y/b:c.pth", ("x/a.yaml", "y/b:c.pth")),
    ],
)
def test_recipe_and_checkpoint_split_at_colon(text, expected):
    """`recipe.yaml:checkpoint` is split after the recipe's suffix."""
    assert compare.recipe_and_checkpoint(text) == expected


def test_recipe_and_checkpoint_colon_in_existing_path(tmp_path):
    """A path of an existing file with a colon is a recipe without a checkpoint."""
    path = tmp_path / "a:b.yaml"
    path.write_text("")
    assert compare.recipe_and_checkpoint(str(path)) == (str(path), None)


def test_load_networks_gives_unique_names(tmp_path):
    """Networks get unique names, and overrides apply to the last network only."""
    recipe = write_recipe(tmp_path)
    wider = NETWORK | {"encoder": {"name": "mobilenet_v2", "width": 0.5}}
    for name, node in (("a", NETWORK), ("b", NETWORK), ("wide", wider)):
        weights_file.write_weights(
            tmp_path / f"{name}.pth", build_network(node).state_dict(), node, 0
        )
    a, b, wide = (str(tmp_path / f"{name}.pth") for name in ("a", "b", "wide"))
    named = [(recipe, a), (recipe, b), (recipe, b), (recipe, wide)]
    found = compare.load_networks(named, ["network.encoder.width=0.5"], True, CPU)
    assert list(found)[:2] == ["mine", "mine:b.pth"]
    assert len(found) == 4
    assert [predictor.weights.name for predictor in found.values()] == [
        "a.pth",
        "b.pth",
        "b.pth",
        "wide.pth",
    ]
    image = torch.randn(1, 3, 32, 64)
    first, second, again, last = (predictor.predict(image) for predictor in found.values())
    assert torch.equal(second, again)
    assert not torch.equal(first, second)
    assert last.shape == (1, 1, 32, 64)


def test_load_networks_saved_recipe_is_named_by_work_dir(tmp_path, monkeypatch):
    """A network whose recipe is a run's config.yaml is named by the work dir."""
    (tmp_path / "my_run").mkdir()
    weights_file.write_weights(tmp_path / "x.pth", build_network(NETWORK).state_dict(), NETWORK, 0)
    Path(write_recipe(tmp_path)).rename(tmp_path / "my_run" / "config.yaml")
    monkeypatch.chdir(tmp_path / "my_run")
    assert list(compare.load_networks([("config.yaml", "../x.pth")], [], True, CPU)) == ["my_run"]


def test_as_json_nonfinite_figures_are_null():
    """`as_json` gives plain values, with null for figures that aren't finite."""
    results = {"far": evaluated(constant(60.0)), "broken": evaluated(constant(math.nan))}
    plain = compare.as_json(results, PROTOCOL)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["protocol"] == {
        **{"split": "val", "frames": 7, "frames_with_ground_truth": 6},
        **{
            "pixels": sum(results["far"].frames.pixels),
            "min_depth_m": 1e-3,
            "cap_m": 80.0,
            "crop": "none",
        },
        **{"flip": True, "means": "metrics: over images; ranges: over pixels"},
        "scored_at": "the ground truth's own size; depth of another size is brought up bilinearly",
    }
    far, broken = plain["networks"]["far"], plain["networks"]["broken"]
    assert far["metrics"] == results["far"].metrics
    assert far["weights"] == "x.pth"
    assert [(row["from_m"], row["to_m"]) for row in far["ranges"]] == [(0, 20), (20, 40), (40, 80)]
    assert sum(row["pixels"] for row in far["ranges"]) == plain["protocol"]["pixels"]
    assert far["ranges"][0]["bias_m"] > 30
    assert len(far["worst"]) == 3
    assert broken["metrics"]["abs_rel"] is None
    assert broken["ranges"][0]["rmse_m"] is None
    pair = plain["against"]["far"]
    assert pair["difference"]["abs_rel"] is None
    assert (pair["frames_better"]["abs_rel"], pair["frames_worse"]["abs_rel"]) == (0, 6)


def test_mean_map_ignores_image():
    """The mean map predicts the same depth for every image."""
    predict = compare.mean_map(Frames(), CPU, None).predict
    assert torch.equal(predict(torch.rand(1, 3, 12, 20)), predict(torch.rand(2, 3, 12, 20))[1:])
