"""A small experiment for tests: two rows, three seeds, and figures of frames that are made up."""

import copy
import json
from pathlib import Path

import numpy as np
import yaml
from support import recipes

from tiekd.evaluation import floors
from tiekd.evaluation.frame_figures import FrameFigures
from tiekd.tools.experiment import runs
from tiekd.tools.experiment import spec as specs

SCENES = {"kitchen": 6, "hall": 4, "desk": 3, "office": 3, "lab": 2}
NAMES = [f"{scene}/{place}.png" for scene, count in SCENES.items() for place in range(count)]


def write(folder: Path, rendered: Path | None = None, **changes) -> specs.Spec:
    """Writes a specification of rows `new` and `old` on rendered scenes, and reads it.

    The scenes are in the folder `rendered`, or in `folder`.
    """
    node = copy.deepcopy(recipes.recipe(folder, batch_size=2))
    del node["teacher"], node["hooks"]
    node["losses"] = {"silog": {"weight": 1.0}}
    node["data"] |= {"num_train": 4, "num_val": 3}
    node["data"]["root"] = str(rendered or folder / "scenes")
    node["train"].pop("validate")
    recipes.write_recipe(folder / "recipe.yaml", node)
    text = {
        "steps": 4,
        "seeds": [0, 1, 2],
        "scenes": {"regex": r"([^/]+)\.png$"},
        "work_dir": str(folder / "work"),
        "rows": {
            "new": {"recipe": "recipe.yaml", "set": ["losses.silog.weight=2.0"]},
            "old": {"recipe": "recipe.yaml"},
        },
        "sets": {"streets": {"primary": ["new", "old"]}},
        **changes,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(text))
    return specs.read(folder / "spec.yaml")


def figures(abs_rel: np.ndarray, names: list[str] = NAMES) -> list[FrameFigures]:
    """Figures of frames with these errors, of which the aligned ones are half as large."""
    return [
        FrameFigures(
            name, 100, value, value / 2, 100 * value, float("nan"), [[50.0, 1.0, 2.0, 3.0]] * 3
        )
        for name, value in zip(names, abs_rel.tolist(), strict=True)
    ]


def finish(job: runs.Job, spec: specs.Spec, found: dict[str, list[FrameFigures]]) -> None:
    """Writes the figures of a job, as its evaluation does."""
    job.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "made_from": runs.made_from(job, spec),
        "figures": {name: [each.as_json() for each in row] for name, row in found.items()},
    }
    job.figures_file(spec.split).write_text(json.dumps(content))


def finish_all(spec: specs.Spec, gain: float, floor: float = 0.5) -> tuple[list, list]:
    """Makes up figures of all runs, in which `new` is better by `gain`, and of the floors."""
    random = np.random.default_rng(0)
    base = random.uniform(0.25, 0.35, len(NAMES))
    planned = runs.plan(spec)
    for job in planned[0]:
        shift = 0.002 * job.seed - (gain if job.row == "new" else 0.0)
        noise = random.normal(0, 0.002, len(NAMES))
        finish(job, spec, {job.row: figures(base + shift + noise)})
    for job in planned[1]:
        made = figures(np.full(len(NAMES), floor))
        finish(job, spec, dict.fromkeys(floors.NAMES, made))
    return planned
