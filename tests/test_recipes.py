"""Every recipe of the repository, found recursively, loads and builds."""

from pathlib import Path

import pytest
import torch

from tiekd import schedules
from tiekd.config import dump_recipe, load_recipe, settings
from tiekd.data.transforms import Augment
from tiekd.evaluation import EvaluationSettings
from tiekd.losses import criterion
from tiekd.models.factory import build_network
from tiekd.options import TrainSettings

MODEL_CONFIGS = Path(__file__).parents[1] / "model_configs"
RECIPES = sorted(path for suffix in ("yaml", "yml") for path in MODEL_CONFIGS.rglob(f"*.{suffix}"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(MODEL_CONFIGS)))
def test_every_recipe_of_the_repository_loads_and_builds(path, tmp_path):
    recipe = load_recipe(path)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_recipe(recipe))
    assert load_recipe(saved) == recipe
    if "network" in recipe:
        with torch.device("meta"):
            build_network(recipe["network"])
    if "losses" in recipe:
        criterion.build(recipe["losses"], "teacher" in recipe)
    if "schedule" in recipe:
        schedules.build(
            recipe["schedule"], base_lr=1e-3, base_momentum=0.9, total_iterations=10, iterations_per_epoch=5
        )
    settings(recipe, "evaluation", EvaluationSettings)
    settings({"data.augment": recipe.get("data", {}).get("augment", {})}, "data.augment", Augment)
    if "train" in recipe:
        settings(recipe, "train", TrainSettings)


def test_every_recipe_was_seen():
    files = [path for path in MODEL_CONFIGS.rglob("*") if path.is_file() and path.suffix != ".md"]
    assert len(RECIPES) >= 10 and sorted(files) == RECIPES
    whole = [path for path in RECIPES if "_base_" not in path.parts]
    assert whole and all({"network", "losses", "schedule", "data", "train"} <= load_recipe(p).keys() for p in whole)
