"""Makes a folder of ten images with a recipe, and the record of a run's inputs."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from support.fake_data import write_png

from tiekd.config.recipe import load_recipe
from tiekd.data.build import build_dataset
from tiekd.engine.config import EngineConfig
from tiekd.training import inputs
from tiekd.training.settings import Recipe

NETWORK = {"min_depth": 0.001, "max_depth": 80.0}


def write_frame(root: Path, name: str, level: int = 100) -> None:
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(root / "pictures" / f"{name}.png")
    write_png(root / "depth" / f"{name}.png", np.full((8, 12), 500 + level, np.uint16))
    write_png(root / "maps" / f"{name}.png", np.full((8, 12), 600 + level, np.uint16))


class Run:
    """A dataset of ten images, a recipe with a base, and the record of inputs that a run saves."""

    def __init__(self, folder: Path):
        self.folder = folder
        for index in range(10):
            write_frame(folder / "data", f"{index:02d}", index)
        (folder / "base.yaml").write_text("train: {epochs: 2, batch_size: 2}\n")
        self.node = {"_base_": "base.yaml", "network": dict(NETWORK)}
        self.node["data"] = {
            "name": "folder",
            "root": str(folder / "data"),
            "images": "pictures",
            "depths": "depth",
        }
        self.node["data"] |= {"depth_unit": 1000, "val_fraction": 0.2}
        self.node["evaluation"] = {"crop": "none"}
        self.engine = {"bf16": {"enabled": False}, "train_micro_batch_size_per_gpu": 2}

    def recipe(self) -> dict:
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(self.node))
        return load_recipe(self.folder / "recipe.yaml")

    def record(self, started: dict | None = None, held_out=None, validate=True) -> dict:
        recipe = self.recipe()
        if held_out is None:
            held_out = inputs.held_out(started, Recipe(recipe))
        data = {
            split: build_dataset(Recipe(recipe).dataset, split, held_out=held_out)
            for split in ("train", "val")
        }
        if not validate:
            data["val"] = None
        config = EngineConfig(self.engine, 2, 1)
        iterations = -(-len(data["train"]) // 2)
        path = self.folder / "recipe.yaml"
        return inputs.collect(Recipe(recipe), path, config, data, iterations, started)
