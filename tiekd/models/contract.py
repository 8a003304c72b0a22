"""Checks that a network's parts keep what they state: channels and strides, and features to match.

Parts from outside the project are written by hand, and a wrong size would otherwise end in an
unrelated error of a later part, or in none. Costs nothing but Python: shapes are known without
waiting for the device. Left out: the values of features, and decoders and heads, whose output is
resized to the image.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from tiekd.errors import RecipeError


def check_encoder(encoder: nn.Module, where: str) -> None:
    """Refuses an encoder that doesn't state its features' channels and strides.

    Args:
        encoder: What the encoder's `build` returned.
        where: The encoder's place in the recipe and its name, for the error.

    Raises:
        RecipeError: It isn't a module; or `channels` and `strides` are missing, aren't whole
            numbers from 1, differ in length, or the strides decrease.
    """
    _check_module(encoder, where)
    channels = _stated(encoder, "channels", where)
    strides = _stated(encoder, "strides", where)
    if len(channels) != len(strides):
        raise RecipeError(
            f"{where}: states {len(channels)} channels {channels} and {len(strides)} strides "
            f"{strides}; give one of each for each feature"
        )
    if sorted(strides) != strides:
        raise RecipeError(
            f"{where}: states the strides {strides}; they must not decrease, for features come "
            "fine to coarse"
        )


def check_neck(neck: nn.Module, channels: Sequence[int], where: str) -> None:
    """Refuses a neck that doesn't state one number of channels for each of the encoder's.

    Args:
        neck: What the neck's `build` returned.
        channels: The encoder's.
        where: The neck's place in the recipe and its name, for the error.

    Raises:
        RecipeError: It isn't a module, or `channels` is missing or of another length.
    """
    _check_module(neck, where)
    stated = _stated(neck, "channels", where)
    if len(stated) != len(channels):
        raise RecipeError(
            f"{where}: states {len(stated)} channels {stated} for {len(channels)} features of the "
            "encoder; a neck returns as many features as it is given"
        )


def check_features(
    part: nn.Module, kind: str, features, image: Tensor, strides: Sequence[int]
) -> None:
    """Refuses features that aren't what the part states.

    Args:
        part: The encoder or neck, which states its `channels`.
        kind: "encoder" or "neck".
        features: What it returned.
        image: The network's input, (B, 3, H, W).
        strides: The encoder's.

    Raises:
        RecipeError: They aren't a list of one tensor (B, channels[i], ceil(H / strides[i]),
            ceil(W / strides[i])) for each stride.
    """
    where = f"{kind} ({type(part).__module__}.{type(part).__name__})"
    if not isinstance(features, list | tuple):
        raise RecipeError(
            f"{where}: returned {_described(features)}; it must be a list of {len(strides)} "
            "features, fine to coarse"
        )
    if len(features) != len(strides):
        raise RecipeError(
            f"{where}: returned {len(features)} features; it states {len(strides)}, at strides "
            f"{list(strides)}"
        )
    count, _, height, width = image.shape
    for level, (feature, channels, stride) in enumerate(
        zip(features, part.channels, strides, strict=True)
    ):
        wanted = (count, channels, -(-height // stride), -(-width // stride))
        if not isinstance(feature, Tensor) or tuple(feature.shape) != wanted:
            raise RecipeError(
                f"{where}: feature {level} is {_described(feature)}; it must be {wanted}, for it "
                f"states {channels} channels at stride {stride} of an image of {height}x{width} "
                "(sizes are rounded up)"
            )


def _check_module(part, where: str) -> None:
    if not isinstance(part, nn.Module):
        raise RecipeError(
            f"{where}: build made a {type(part).__name__}; it must be a torch.nn.Module"
        )


def _stated(part: nn.Module, name: str, where: str) -> list[int]:
    """Returns the whole numbers in an attribute of a part. Raises RecipeError."""
    values = getattr(part, name, None)
    if (
        not isinstance(values, list | tuple)
        or not values
        or not all(isinstance(value, int) and value > 0 for value in values)
    ):
        got = "isn't there" if values is None else f"is {values!r:.80}"
        raise RecipeError(
            f"{where}: its attribute {name} {got}; it must be a tuple of whole numbers from 1, one "
            "for each feature, fine to coarse"
        )
    return list(values)


def _described(value) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
