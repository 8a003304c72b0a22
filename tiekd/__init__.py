"""tiekd: small metric-depth networks distilled from large frozen teachers on the DeepSpeed engine.

    tiekd.load_recipe(path, overrides=()) -> dict
    tiekd.build_network(recipe["network"]) -> nn.Module, (B, 3, H, W) image -> Prediction
    tiekd.load_student(checkpoint)(image) -> metres, for use: a file, array or tensor in, a depth map out

Each comes when it is first asked for: `import tiekd` takes milliseconds, and reading a recipe needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiekd.config import load_recipe
    from tiekd.models.factory import build_network
    from tiekd.student import load_student

__version__ = "0.1.0"
__all__ = ["build_network", "load_recipe", "load_student"]

_HOMES = {
    "build_network": "tiekd.models.factory",
    "load_recipe": "tiekd.config",
    "load_student": "tiekd.student",
}


def __getattr__(name: str):
    """Imports the module that has the name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tiekd' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """What is there, with the names that haven't been asked for yet."""
    return sorted({*globals(), *_HOMES})
