"""What people read after training: networks loaded for use, tables that compare them, and pictures of what they see."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd import checkpoint, metrics, pictures
from tiekd.config import load_recipe
from tiekd.data.depth_io import write_image
from tiekd.data.transforms import normalise
from tiekd.errors import CheckpointError
from tiekd.evaluation import EvaluationSettings
from tiekd.models import weights
from tiekd.models.factory import build_network
from tiekd.models.network import Network


def load_network(recipe_path: str, checkpoint_path: str | None, overrides=()) -> tuple[Network, Path]:
    """The network of a recipe with its weights (None: the best, else the newest, of its work dir), and which those are.

    Of the overrides only those of the network and the work dir count. Raises RecipeError and CheckpointError.
    """
    recipe = load_recipe(recipe_path, [o for o in overrides if o.startswith(("network.", "work_dir="))])
    path = Path(checkpoint_path) if checkpoint_path else None
    if path is None:
        work_dir = Path(recipe.get("work_dir", checkpoint.work_dir_of(recipe_path)))
        try:
            path = checkpoint.find_weights(work_dir)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; train it with bin/train.py {recipe_path}, or name a checkpoint") from None
    network = build_network(recipe.get("network"))
    state = weights.read_weights(path)
    try:
        weights.load_into(network, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return network, path


def protocol(options: EvaluationSettings, min_depth: float, max_depth: float) -> str:
    """How the figures were made, in words."""
    return (
        f"ground truth {min_depth:g} < d < {options.cap or max_depth:g} m, crop {options.crop}, "
        f"flip averaging {'on' if options.flip else 'off'}, mean over images"
    )


def comparison_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """One row a network, one column a metric; the last column is abs_rel over the first row's."""
    width = max(map(len, figures))
    names = metrics.METRIC_NAMES
    first = next(iter(figures.values()))["abs_rel"]
    lines = [f"{'':{width}}  " + "  ".join(f"{name:>8}" for name in names) + "  abs_rel / first"]
    for label, row in figures.items():
        cells = "  ".join(f"{row[name]:8.4f}" for name in names)
        lines.append(f"{label:{width}}  {cells}  {row['abs_rel'] / first:15.3f}")
    return "\n".join(lines)


@torch.no_grad()
def write_panel(
    path: Path,
    frames: Dataset,
    predictors: Mapping[str, Callable[[Tensor], Tensor]],
    max_depth: float,
    device: torch.device,
    num_rows: int = 5,
) -> None:
    """A picture with `num_rows` frames, evenly spaced: image | ground truth | each network | error of the last one."""
    titles = ["image", "ground truth", *predictors, f"error of {list(predictors)[-1]}"]
    max_error = max_depth / 8
    rows = []
    for row in range(min(num_rows, len(frames))):
        sample = normalise(frames[row * len(frames) // min(num_rows, len(frames))])
        truth = sample.depth[0].numpy()
        image = sample.image[None].to(device)
        depths = [predict(image)[0, 0].cpu().numpy() for predict in predictors.values()]
        rows.append(
            [
                pictures.denormalise(sample.image.numpy()),
                pictures.colourise(pictures.dilate(truth, radius=1), max_depth),
                *(pictures.colourise(depth, max_depth) for depth in depths),
                pictures.error_map(depths[-1], truth, max_error, radius=1),
            ]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, pictures.panel(rows, titles, max_depth, max_error))
