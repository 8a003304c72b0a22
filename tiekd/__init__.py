"""tiekd: small metric-depth networks distilled from large frozen teachers on the DeepSpeed engine.

    tiekd.load_recipe(path, overrides=()) -> dict
    tiekd.build_network(recipe["network"]) -> nn.Module, (B, 3, H, W) image -> Prediction
"""

from tiekd.config import load_recipe
from tiekd.models.factory import build_network

__version__ = "0.1.0"
__all__ = ["build_network", "load_recipe"]
