"""Checks that an encoder's or neck's features have the channels and strides that it states.

A user's own encoder or neck may return features of a wrong size. Without the checks this would
cause an unrelated error in a later module, or wrong results without any error. The checks only read
shapes, so they don't wait for the device. Not covered: checks of the features' values, and of
decoders and heads, whose output is resized to the image.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from tiekd.errors import RecipeError


def check_encoder(encoder: nn.Module, where: str) -> None:
    """Checks that an encoder states the number of channels and the stride of each of its features.

    Args:
        encoder: the object that the encoder's `build` returned.
        where: the encoder's key in the recipe and its name, for the error message.

    Raises:
        RecipeError: the encoder isn't an nn.Module; or its attributes `channels` and `strides` are
            missing, aren't sequences of whole numbers from 1, or differ in length; or the strides
            decrease.
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
    """Checks that a neck states the number of channels of each of its features.

    Args:
        neck: the object that the neck's `build` returned.
        channels: number of channels of each of the encoder's features.
        where: the neck's key in the recipe and its name, for the error message.

    Raises:
        RecipeError: the neck isn't an nn.Module, or its attribute `channels` is missing or hasn't
            one entry for each of the encoder's features.
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
    """Checks that an encoder's or neck's features have the stated channels and strides.

    Args:
        part: the encoder or neck, whose attribute `channels` states the number of channels of each
            feature.
        kind: "encoder" or "neck", for the error message.
        features: the features that `part` returned for `image`.
        image: the network's input, (B, 3, H, W).
        strides: the encoder's strides, one per feature.

    Raises:
        RecipeError: `features` isn't a list of one tensor (B, channels[i], ceil(H / strides[i]),
            ceil(W / strides[i])) for each stride.
    """
    where = f"{kind} ({type(part).__module__}.{type(part).__name__})"
    if not isinstance(features, list | tuple):
        raise RecipeError(
            f"{where}: returned {_describe(features)}; it must be a list of {len(strides)} "
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
                f"{where}: feature {level} is {_describe(feature)}; it must be {wanted}, for it "
                f"states {channels} channels at stride {stride} of an image of {height}x{width} "
                "(sizes are rounded up)"
            )


def _check_module(part, where: str) -> None:
    if not isinstance(part, nn.Module):
        raise RecipeError(
            f"{where}: build made a {type(part).__name__}; it must be a torch.nn.Module"
        )


def _stated(part: nn.Module, name: str, where: str) -> list[int]:
    """Returns the channels, or the strides, that an encoder or neck states for its features.

    Args:
        part: the encoder or neck.
        name: name of the attribute, "channels" or "strides".
        where: the module's key in the recipe and its name, for the error message.

    Returns:
        One number per feature, fine to coarse.

    Raises:
        RecipeError: the attribute is missing, or isn't a sequence of whole numbers from 1.
    """
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


def _describe(value) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
