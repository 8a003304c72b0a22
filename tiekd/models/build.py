"""Builds a depth network from the `network` node of a recipe."""

from tiekd.config.build import build
from tiekd.config.schema import check_keys, check_value
from tiekd.errors import RecipeError
from tiekd.models import canonical
from tiekd.models.contract import check_decoder, check_encoder, check_head, check_neck
from tiekd.models.network import Network

PARTS = ("encoder", "neck", "decoder", "head", "min_depth", "max_depth", *canonical.KEYS)

_OPTIONAL = ("neck", *canonical.KEYS)


def build_network(node: dict, where: str = "network") -> Network:
    """Builds a network from a recipe: encoder, optional neck, decoder and head.

    Args:
        node: the recipe's node `network`, with the keys encoder, neck (optional), decoder, head,
            and min_depth and max_depth in metres; optionally canonical_focal in pixels and
            canonical_factors, see tiekd/models/canonical.py.
        where: path of the node in the recipe, for error messages.

    Returns:
        The network in training mode, which maps images (B, 3, H, W) to a `Prediction` of depth. Its
        weights are initialised randomly.

    Raises:
        RecipeError: a key, a component or one of its arguments is unknown, missing or invalid.
    """
    # Check the node's keys and the depth range.
    if not node:
        raise RecipeError(
            f"{where}: the recipe has none; take one from model_configs/_base_/networks by _base_"
        )
    check_keys(node, PARTS, where)
    missing = [part for part in PARTS if part not in node and part not in _OPTIONAL]
    if missing:
        raise RecipeError(f"{where}: needs {', '.join(missing)}")
    min_depth, max_depth = node["min_depth"], node["max_depth"]
    for name in ("min_depth", "max_depth"):
        check_value(node[name], float, f"{where}.{name}")
    if not 1e-6 <= min_depth < max_depth <= 1e6:
        raise RecipeError(
            f"{where}: min_depth {min_depth} and max_depth {max_depth} must be metres "
            "with 0 < min < max, 1e-6 to 1e6"
        )
    # With `canonical_focal` F, decoder and head predict depth times F / f, where f is the image's
    # focal length. Multiply the ends of the depth range by the smallest and the largest F / f of
    # the training images.
    camera = canonical.of_node(node, where)
    low, high = min_depth, max_depth
    if camera is not None:
        low, high = min_depth * camera.smallest, max_depth * camera.largest
    # Build the components in order, since each needs the channels and strides of the one before.
    encoder = build(node["encoder"], "tiekd.models.encoders", f"{where}.encoder")
    check_encoder(encoder, _place(node, "encoder", where))
    channels = encoder.channels
    neck = None
    if "neck" in node:
        neck = build(node["neck"], "tiekd.models.necks", f"{where}.neck", encoder_channels=channels)
        check_neck(neck, channels, _place(node, "neck", where))
        channels = neck.channels
    decoder = build(
        node["decoder"],
        "tiekd.models.decoders",
        f"{where}.decoder",
        encoder_channels=channels,
        encoder_strides=encoder.strides,
        max_depth=high,
    )
    check_decoder(decoder, _place(node, "decoder", where))
    head = build(
        node["head"],
        "tiekd.models.heads",
        f"{where}.head",
        in_channels=decoder.channels,
        stride=decoder.stride,
        min_depth=low,
        max_depth=high,
    )
    check_head(head, _place(node, "head", where))
    return Network(encoder, decoder, head, min_depth, max_depth, neck=neck, canonical=camera)


def _place(node: dict, part: str, where: str) -> str:
    """Returns a component's key in the recipe and its name as one text, for error messages.

    An example is "network.encoder (resnet)".

    Args:
        node: the recipe's network node.
        part: key of the component in the node, e.g. "encoder".
        where: path of the node in the recipe.
    """
    return f"{where}.{part} ({node[part]['name']})"
