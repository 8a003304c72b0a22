"""Tiny recipes: scenes of 64x128, networks of some ten thousand parameters, crops of 32x64."""

import json
from pathlib import Path

ENCODER = {
    "name": "mobilenet_v2",
    "width": 0.25,
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "dilations": [1] * 7,
    "taps": [1, 3],
}
RANGE = {"min_depth": 0.001, "max_depth": 80.0}
STUDENT = {
    "encoder": ENCODER,
    "decoder": {"name": "densedepth", "widths": [8, 16], "extra_ups": 1, "extra_width": 8},
    "head": {"name": "dpm", "num_bins": 33, "target": "gaussian", "sigma": 2.0, "beyond": "clamp"},
    **RANGE,
}
TEACHER = {
    "encoder": ENCODER,
    "decoder": {"name": "densedepth", "widths": [8, 8], "extra_ups": 1, "extra_width": 8},
    "head": {"name": "sigmoid"},
    **RANGE,
}
RECORDER = {"name": "support.parts.recorder"}


def recipe(ground: Path, **train) -> dict:
    """Returns a recipe of a student that learns from the teacher of `ground` (see conftest).

    It also learns from ground truth, and trains for 20 iterations with a batch size of 4. Adam's
    eps is 1e-4: with the usual value, rounding noise of gradients near 0 would cause full steps,
    and runs wouldn't be comparable.
    """
    options = {
        "batch_size": 4,
        "iterations": 20,
        "clip_norm": 35.0,
        "seed": 0,
        "validate": False,
        **train,
    }
    return {
        "network": STUDENT,
        # Its weights are random, which an audit would notice.
        "teacher": {
            "network": TEACHER,
            "checkpoint": str(ground / "teacher.pth"),
            "audit": "off",
        },
        "losses": {"dpm": {"weight": 1.0}, "silog": {"weight": 1.0, "against": "ground_truth"}},
        "data": {
            **{"name": "scenes", "root": str(ground / "scenes"), "height": 64, "width": 128},
            **{"num_train": 16, "num_val": 4, "workers": 0},
            "augment": {"rotate_p": 1.0, "rotate_deg": 20.0, "crop": [32, 64]},
        },
        "optimizer": {"name": "adamw", "lr": 0.001, "betas": [0.95, 0.99], "eps": 1e-4},
        "schedule": {
            "name": "one_cycle",
            "pct_start": 0.3,
            "div_factor": 25,
            "final_div_factor": 100,
        },
        "train": options,
        "evaluation": {"crop": "none"},
        "checkpoint": {"interval": 10, "by": "iteration", "keep_last": 2},
        "log": {"interval": 1, "by_epoch": True},
        "tensorboard": {"image_interval": 10},
        "hooks": [RECORDER],
    }


def write_recipe(path: Path, node: dict) -> Path:
    """Writes a recipe as JSON, which is valid YAML, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(node, indent=1))
    return path
