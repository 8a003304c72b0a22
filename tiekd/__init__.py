"""tiekd: small metric-depth networks distilled from large frozen teachers on the DeepSpeed engine.

    tiekd.load_recipe(path, overrides=()) -> dict
    tiekd.build_network(recipe["network"]) -> nn.Module, (B, 3, H, W) image -> Prediction
    tiekd.load_student(checkpoint)(image) -> metres, for use: a file, array or tensor in, a depth map out
"""

from tiekd.config import load_recipe
from tiekd.models.factory import build_network

__version__ = "0.1.0"
__all__ = ["build_network", "load_recipe", "load_student"]


def __getattr__(name: str):
    """`load_student` comes when it is asked for: training has no need of what it reads pictures with."""
    if name == "load_student":
        from tiekd.student import load_student

        return load_student
    raise AttributeError(f"module 'tiekd' has no attribute {name!r}")
