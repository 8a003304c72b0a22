"""What to try next: each rule finds its planted symptom, and nothing else."""

import math
from dataclasses import replace

import pytest
from support import recipes

from tiekd.config.recipe import load_recipe
from tiekd.data.resize import Resize
from tiekd.evaluation.range_errors import RangeFigures
from tiekd.models.build import build_network
from tiekd.tools.report import symptoms
from tiekd.tools.report.measure import LEVELS, Reliability
from tiekd.tools.report.symptoms import Findings
from tiekd.training.settings import Recipe


def ranges(near: float, far: float, far_pixels: int = 1000):
    return [
        RangeFigures(0, 20, 10_000, 0.0, near, 1.0),
        RangeFigures(20, 40, 0, math.nan, math.nan, math.nan),
        RangeFigures(40, 80, far_pixels, 0.0, far, 1.0),
    ]


def sigma(factor: float) -> Reliability:
    return Reliability(list(LEVELS), factor)


RECIPE = {
    "network": recipes.STUDENT,
    "teacher": {"recipe": "t.yaml", "checkpoint": "t.pth"},
    "losses": {"dpm": {"weight": 1.0}, "depth": {"name": "silog", "weight": 1.0}},
    "data": {"name": "folder", "resize": {"height": 192, "width": 640, "mode": "stretch"}},
    "train": {"epochs": 12},
}
HEALTHY = Findings(
    RECIPE,
    Resize(192, 640, "stretch"),
    frames=50,
    abs_rel=0.08,
    aligned=0.075,
    relative_bias=0.01,
    ranges=ranges(0.08, 0.10),
    mid_air=0.1,
    reliability=sigma(1.1),
    excess_gain=0.5,
    floor_abs_rel=0.4,
    trained_abs_rel=0.07,
    teacher_flip=0.01,
    metric=([1, 2, 3, 4, 5, 6], [0.2, 0.1, 0.082, 0.081, 0.08, 0.0805]),
    worst_ratio=2.0,
)
PLANTED = {
    "few_frames": ({"frames": 5}, ("data.val_fraction=0.2",), "Only 5 "),
    "near_floor": ({"floor_abs_rel": 0.099}, (), "0.0800, and that of the median map"),
    "still_improving": (
        {"metric": ([1, 2, 3, 4, 5, 6], [0.2, 0.15, 0.12, 0.10, 0.09, 0.08])},
        ("train.epochs=24",),
        "improved by 20%",
    ),
    "overfitting_gap": (
        {"trained_abs_rel": 0.04},
        ("hooks=[{name: ema, decay: 0.999}, {name: early_stop, patience: 5}]",),
        "2.0 times as large",
    ),
    "wrong_scale": (
        {"aligned": 0.05, "focal": 721.4},
        ("network.canonical_focal=721",),
        "0.0500 instead of 0.0800",
    ),
    "bias": ({"relative_bias": -0.08}, ("losses.depth.weight=2",), "8.0% too near"),
    "weak_student": (
        {"trained_abs_rel": 0.15, "abs_rel": 0.16, "aligned": 0.15},
        ("data.resize.height=288", "data.resize.width=960"),
        "0.1500 on training frames",
    ),
    "grows_with_range": (
        {"ranges": ranges(0.08, 0.14)},
        ("data.resize.height=288", "data.resize.width=960"),
        "grows with the range",
    ),
    "worse_near": (
        {"ranges": ranges(0.14, 0.08)},
        ("network.head.num_bins=65",),
        "near things are the worst",
    ),
    "poor_edges": ({"mid_air": 0.4}, ("network.head.upsampling=convex",), "40% of the pixels"),
    "over_confident": ({"reliability": sigma(2.0)}, ("network.head.sigma=3.0",), "over-confident"),
    "width_without_order": ({"excess_gain": -0.1}, (), "no larger errors"),
    "teacher_flip": ({"teacher_flip": 0.12}, ("teacher.flip=true",), "changes by 12.0%"),
    "outliers": ({"worst_ratio": 6.0}, (), "6.0 times that of the median"),
}


def test_every_rule_has_a_planted_case():
    """The planted cases are those of the rules."""
    assert [rule.__name__ for rule in symptoms.RULES] == list(PLANTED)


def test_healthy_figures_suggest_nothing():
    """Unremarkable or unknown figures give no suggestion."""
    assert symptoms.suggestions(HEALTHY) == []
    assert symptoms.suggestions(Findings(RECIPE, Resize())) == []


@pytest.mark.parametrize("name", PLANTED)
def test_planted_symptom_is_found_alone(name):
    """Each symptom gives its suggestion alone, with its figure and the option to set."""
    changes, options, told = PLANTED[name]
    (found,) = symptoms.suggestions(replace(HEALTHY, **changes))
    assert told in found.symptom
    assert found.options == options
    assert found.advice


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_sigma_is_mended_by_calibration(factor):
    """The program is named if the head can be calibrated, and nothing if the weights are."""
    wrong = replace(HEALTHY, reliability=sigma(factor))
    assert "bin/calibrate.py WORK_DIR" in symptoms.over_confident(wrong).advice
    assert symptoms.over_confident(replace(wrong, is_calibrated=True)) is None
    # The program refuses other heads.
    other = RECIPE | {"network": recipes.STUDENT | {"head": {"name": "adabins"}}}
    advice = symptoms.over_confident(replace(wrong, recipe=other)).advice
    assert advice.startswith("Multiply this width by the factor where it is used.")


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted[1]])
def test_suggested_options_are_options(name, tmp_path):
    """A recipe takes each suggested option, and the network can be built with it."""
    node = recipes.recipe(tmp_path, iterations=None, epochs=12, validate=True)
    node["data"] = {"name": "folder", "root": str(tmp_path), "images": "x"} | RECIPE["data"]
    node["losses"] = RECIPE["losses"]
    if name == "wrong_scale":
        node["network"] = node["network"] | {"canonical_factors": [1.0, 1.0]}
    path = recipes.write_recipe(tmp_path / "recipe.yaml", node)
    loaded = Recipe(load_recipe(path, list(PLANTED[name][1])))
    assert loaded.train.epochs
    assert loaded.resize
    build_network(loaded.network)


def test_sparse_range_does_not_count():
    """A range with few of the pixels says nothing of how the error grows."""
    assert symptoms.suggestions(replace(HEALTHY, ranges=ranges(0.08, 0.9, far_pixels=20))) == []


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"val_fraction": 0.2}, ("data.val_fraction=0.4",)),
        ({"val_fraction": 0.3}, ()),
        ({"val_split": "val.txt"}, ()),
        ({"train_split": "train.txt"}, ()),
        ({"name": "kitti"}, ()),
    ],
)
def test_few_frames_suggest_a_fraction_that_holds_more_out(data, options):
    """The fraction is above the present one, and isn't suggested where split files choose."""
    recipe = RECIPE | {"data": RECIPE["data"] | data}
    found = symptoms.few_frames(replace(HEALTHY, frames=5, recipe=recipe))
    assert found.options == options


def test_cautious_student_is_told_without_an_option():
    """Sigmas that are too large are named, with their factor."""
    (found,) = symptoms.suggestions(replace(HEALTHY, reliability=sigma(0.5)))
    assert "0.50 times" in found.symptom
    assert found.options == ()


def test_advice_depends_on_the_head():
    """Without a dpm head neither bins nor readout are suggested as if there were one."""
    node = RECIPE | {"network": {"head": {"name": "sigmoid"}}}
    plain = replace(HEALTHY, recipe=node)
    (near,) = symptoms.suggestions(replace(plain, ranges=ranges(0.14, 0.08)))
    assert near.options == ()
    (edges,) = symptoms.suggestions(replace(plain, mid_air=0.4))
    assert edges.options == ("data.resize.height=288", "data.resize.width=960")
