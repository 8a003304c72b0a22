"""tiekd distils small metric-depth networks from large frozen teachers, on the DeepSpeed engine.

    tiekd.load_recipe(path, overrides=()) -> dict
    tiekd.build_network(recipe["network"]) -> nn.Module: (B, 3, H, W) images in, a Prediction out
    tiekd.load_student(checkpoint)(image) -> depth map in metres, of a file, array or tensor

The names that users' own datasets, networks and hooks need can be imported from here, too: Batch,
Sample, Prediction, Hook and others (model_configs/YOUR_PARTS.md). These import paths stay the same
even if a definition moves to another module.

Each name is imported on first access. So `import tiekd` takes milliseconds, and reading a recipe
imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiekd.config.recipe import load_recipe
    from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
    from tiekd.data.batch import Batch
    from tiekd.data.sample import Sample
    from tiekd.data.target import Target
    from tiekd.distributed.comm import is_main, mean_over_ranks
    from tiekd.errors import DataError, RecipeError
    from tiekd.inference.student import load_student
    from tiekd.losses import mean_over_valid, valid_pixels
    from tiekd.models.build import build_network
    from tiekd.models.layers.batch_norm import BatchNorm2d
    from tiekd.models.network import Prediction
    from tiekd.training.hook import Hook

__version__ = "0.1.0"
__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "BatchNorm2d",
    "DataError",
    "Hook",
    "Prediction",
    "RecipeError",
    "Sample",
    "Target",
    "build_network",
    "is_main",
    "load_recipe",
    "load_student",
    "mean_over_ranks",
    "mean_over_valid",
    "valid_pixels",
]

# Maps each public name of `tiekd` to the module that defines it.
_HOMES = {
    "IMAGENET_MEAN": "tiekd.data.augment.augment",
    "IMAGENET_STD": "tiekd.data.augment.augment",
    "Batch": "tiekd.data.batch",
    "BatchNorm2d": "tiekd.models.layers.batch_norm",
    "DataError": "tiekd.errors",
    "Hook": "tiekd.training.hook",
    "Prediction": "tiekd.models.network",
    "RecipeError": "tiekd.errors",
    "Sample": "tiekd.data.sample",
    "Target": "tiekd.data.target",
    "build_network": "tiekd.models.build",
    "is_main": "tiekd.distributed.comm",
    "load_recipe": "tiekd.config.recipe",
    "load_student": "tiekd.inference.student",
    "mean_over_ranks": "tiekd.distributed.comm",
    "mean_over_valid": "tiekd.losses",
    "valid_pixels": "tiekd.losses",
}


def __getattr__(name: str):
    """Imports a public name of `tiekd` from the module that defines it, and returns its value.

    Python calls this function only at the first access to a name, since the value is stored.

    Args:
        name: The name, such as `load_student`.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'tiekd' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Returns a sorted list of the names in `tiekd`, with public names that aren't imported yet."""
    return sorted({*globals(), *_HOMES})
