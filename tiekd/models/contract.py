"""Checks that the parts of a network return what they state: channels, strides and depth.

A user's own part may return tensors of a wrong size. Without the checks this would cause an
unrelated error in a later module, or wrong results without any error: a depth of two channels would
be compared with a target of one. The checks only read shapes, so they don't wait for the device.
Not covered: checks of values, and of the height and width that a decoder or head returns, which are
resized to the image.
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


def check_decoder(decoder: nn.Module, where: str) -> None:
    """Checks that a decoder states the number of channels and the stride of its feature map.

    Args:
        decoder: the object that the decoder's `build` returned.
        where: the decoder's key in the recipe and its name, for the error message.

    Raises:
        RecipeError: the decoder isn't an nn.Module, or its attribute `channels` or `stride` is
            missing or isn't a whole number from 1.
    """
    _check_module(decoder, where)
    for name in ("channels", "stride"):
        value = getattr(decoder, name, None)
        if not isinstance(value, int) or value < 1:
            got = "isn't there" if value is None else f"is {value!r:.80}"
            raise RecipeError(
                f"{where}: its attribute {name} {got}; it must be a whole number from 1, of the "
                "feature map that it returns"
            )


def check_head(head: nn.Module, where: str) -> None:
    """Raises RecipeError if a head isn't an nn.Module.

    Args:
        head: the object that the head's `build` returned.
        where: the head's key in the recipe and its name, for the error message.
    """
    _check_module(head, where)


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


def check_decoded(decoder: nn.Module, features, image: Tensor) -> None:
    """Checks that a decoder's feature map has the stated number of channels.

    Args:
        decoder: the decoder, whose attribute `channels` states their number.
        features: the feature map that `decoder` returned for `image`.
        image: the network's input, (B, 3, H, W).

    Raises:
        RecipeError: `features` isn't a tensor (B, decoder.channels, h, w).
    """
    is_right = isinstance(features, Tensor) and features.ndim == 4
    if is_right and tuple(features.shape[:2]) == (len(image), decoder.channels):
        return
    raise RecipeError(
        f"decoder ({type(decoder).__module__}.{type(decoder).__name__}): returned "
        f"{_describe(features)}; it must be ({len(image)}, {decoder.channels}, h, w), for it "
        f"states {decoder.channels} channels"
    )


def check_prediction(head: nn.Module, returned, count: int) -> None:
    """Checks that a head returned a prediction with one depth for each pixel.

    Args:
        head: the head.
        returned: the object that `head` returned.
        count: number of images.

    Raises:
        RecipeError: `returned` isn't a tuple of three like Prediction (tiekd/models/network.py), or
            its depth isn't a floating-point tensor (count, 1, h, w).
    """
    where = f"head ({type(head).__module__}.{type(head).__name__})"
    if not isinstance(returned, tuple) or len(returned) != 3:
        raise RecipeError(f"{where}: returned {_describe(returned)}; it must be a tiekd.Prediction")
    depth = returned[0]
    is_right = isinstance(depth, Tensor) and depth.ndim == 4 and depth.is_floating_point()
    if not is_right or tuple(depth.shape[:2]) != (count, 1):
        raise RecipeError(
            f"{where}: returned a depth {_describe(depth)}; it must be ({count}, 1, h, w), "
            "floating point, in metres"
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
