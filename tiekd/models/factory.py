"""Puts networks together from recipe nodes, and finds the teacher that a recipe means."""

from tiekd.annotations import check_value
from tiekd.config import build, check_keys
from tiekd.errors import RecipeError
from tiekd.models.network import Network

PARTS = ("encoder", "neck", "decoder", "head", "min_depth", "max_depth")


def build_network(node: dict) -> Network:
    """The network of `recipe["network"]`: encoder, optional neck, decoder, head, and the depth range in metres.

    Returns a Network: (image (B, 3, H, W)) -> Prediction. Raises RecipeError for unknown parts or arguments.
    """
    if not node:
        raise RecipeError("network: there is none in the recipe; take one from model_configs/_base_/networks by _base_")
    check_keys(node, PARTS, "network")
    missing = [part for part in PARTS if part not in node and part != "neck"]
    if missing:
        raise RecipeError(f"network: needs {', '.join(missing)}")
    min_depth, max_depth = node["min_depth"], node["max_depth"]
    for name in ("min_depth", "max_depth"):
        check_value(node[name], float, f"network.{name}")
    if not 1e-6 <= min_depth < max_depth <= 1e6:
        raise RecipeError(
            f"network: min_depth {min_depth} and max_depth {max_depth} must be metres with 0 < min < max, 1e-6 to 1e6"
        )
    encoder = build(node["encoder"], "tiekd.models.encoders", "network.encoder")
    channels, neck = encoder.channels, None
    if "neck" in node:
        neck = build(node["neck"], "tiekd.models.necks", "network.neck", encoder_channels=channels)
        channels = neck.channels
    decoder = build(
        node["decoder"],
        "tiekd.models.decoders",
        "network.decoder",
        encoder_channels=channels,
        encoder_strides=encoder.strides,
        max_depth=max_depth,
    )
    head = build(
        node["head"],
        "tiekd.models.heads",
        "network.head",
        in_channels=decoder.channels,
        stride=decoder.stride,
        min_depth=min_depth,
        max_depth=max_depth,
    )
    return Network(encoder, decoder, head, min_depth, max_depth, neck=neck)
