"""Encoders from the package timm, such as `{name: timm, model: resnet34d}` in a recipe.

timm is installed with the extra `timm`. Any of timm's backbones that returns feature maps at
several strides can be used. Strides and channels are those of timm. An encoder's input is
normalised with ImageNet's mean and standard deviation; for a backbone with other values it is
converted, with buffers that are saved with the weights. 2d batch norms are replaced by this
project's `BatchNorm2d`, whose statistics cover all ranks' images. Cost: timm's import (2 s), and
one or two forward passes of a small image at construction. Not covered: a model's own options (drop
rates, dilations), backbones of one stride (ViT), backbones that accept images of one size only, and
backbones whose features aren't (channels, height, width).
"""

import difflib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tiekd.errors import CheckpointError, RecipeError
from tiekd.files import check_readable
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.normalisation import Normalisation
from tiekd.models.weights import state_dicts

HUB = "hub"


class Timm(nn.Module):
    """An encoder that wraps a backbone of timm.

    A feature's size is the image's size divided by the stride, rounded up. If the backbone computes
    other sizes, images whose sides aren't multiples of the largest stride are padded at the right
    and the bottom with 0, which is the backbone's mean colour.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.
        strides: stride of each returned feature relative to the image, fine to coarse.
        pretrained: the value of the argument `pretrained`.
        collection: "hub", the value of `pretrained` that stands for the weights that timm offers
            for download.

    Args:
        model: timm's name, with or without a tag of weights ("resnet50" or "resnet50.a1_in1k").
        taps: indices of the returned features in increasing order, counted from 0 as in timm's
            option `out_indices`; None for all features that timm returns by default.
        pretrained: "hub", which downloads timm's weights; a file of weights with timm's names (.pth
            or .safetensors); or None for random weights. The weights aren't read here, but by
            `tiekd.models.weights.pretrained.load`.
    """

    collection = HUB

    def __init__(
        self, model: str, taps: Sequence[int] | None = None, pretrained: str | None = None
    ):
        super().__init__()
        _check_name(model)
        if taps is not None and (
            not taps or list(taps) != sorted(set(taps)) or not all(_is_index(tap) for tap in taps)
        ):
            raise RecipeError(f"taps: got {list(taps)}; whole numbers from 0, increasing")
        self.model = model
        self.taps = None if taps is None else tuple(taps)
        self.pretrained = pretrained
        backbone = _create(model, self.taps)
        self.strides = tuple(backbone.feature_info.reduction())
        self.channels = tuple(backbone.feature_info.channels())
        _check_strides(model, self.strides)
        self.is_padded = _needs_padding(model, backbone, self.strides, self.channels)
        self.normalisation = Normalisation(
            backbone.pretrained_cfg["mean"], backbone.pretrained_cfg["std"]
        )
        self.backbone = _with_own_norms(backbone)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the features of an image as a list, fine to coarse.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            One tensor (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) for each i.
        """
        height, width = image.shape[2:]
        image = self.normalisation(image)
        right, bottom = -width % self.strides[-1], -height % self.strides[-1]
        if not self.is_padded or not (right or bottom):
            return self.backbone(image)
        features = self.backbone(pad(image, (0, right, 0, bottom)))
        return [
            feature[:, :, : -(-height // stride), : -(-width // stride)]
            for feature, stride in zip(features, self.strides, strict=True)
        ]

    def read_pretrained(self, source: str) -> tuple[dict[str, Tensor], str]:
        """Reads weights for this encoder, without changing it or torch's random number generator.

        Args:
            source: "hub" or the path of a file, as in the class's argument `pretrained`.

        Returns:
            The encoder's tensors by name, and a description of the weights for the log.

        Raises:
            CheckpointError: the weights can't be read or downloaded, or don't fit.
        """
        with torch.random.fork_rng(devices=[]):
            overlay = {}
            what = f"timm's hub for {self.model}"
            if source != HUB:
                overlay["state_dict"], dropped = _read_file(Path(source), self.model)
                what = source
                if dropped:
                    what += f", without its classifier ({', '.join(dropped)})"
            try:
                backbone = _create(
                    self.model, self.taps, pretrained=True, pretrained_cfg_overlay=overlay
                )
            except RecipeError as error:
                raise CheckpointError(
                    f"{source}: timm can't load weights of {self.model} ({error}); download them "
                    "on another machine and give the file"
                ) from None
        tensors = _with_own_norms(backbone).state_dict()
        return {f"backbone.{name}": tensor for name, tensor in tensors.items()}, what


def _check_name(model: str) -> None:
    """Checks that timm is installed and has the model.

    Args:
        model: timm's name, with or without a tag of weights.

    Raises:
        RecipeError: timm isn't installed, or has no such model; the message lists similar names.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise RecipeError(
            "model: encoders of the name timm need the package timm, which is not installed; "
            "pip install 'tiekd[timm]'"
        ) from None
    name, _, tag = model.partition(".")
    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0)
        raise RecipeError(
            f"model: timm {timm.__version__} has no {model!r}; nearest: {', '.join(near)}"
        )
    tags = timm.list_pretrained(f"{name}.*")
    if tag and model not in tags:
        raise RecipeError(
            f"model: timm {timm.__version__} has no weights {model!r}; there are: "
            f"{', '.join(tags) or 'none of this model'}"
        )


def _create(model: str, taps: tuple[int, ...] | None, **options) -> nn.Module:
    """Returns timm's feature extractor for a model, an nn.Module with random weights.

    Args:
        model: timm's name of the model.
        taps: indices of the returned features; None for timm's default.
        **options: further arguments of timm's `create_model`.

    Raises:
        RecipeError: timm has no feature extractor for this model, or doesn't have these features.
    """
    import timm

    indices = {} if taps is None else {"out_indices": taps}
    try:
        return timm.create_model(model, features_only=True, **indices, **options)
    except Exception as error:  # noqa: BLE001 - each model refuses in its own way
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if options:
        raise RecipeError(text)
    # Find out what is wrong: if the model can be created with timm's default features, the given
    # indices are invalid. Otherwise this call raises the error for the model.
    if taps is not None:
        strides = _create(model, None).feature_info.reduction()
        raise RecipeError(
            f"taps: got {list(taps)}; {model} has 0 to {len(strides) - 1}, at strides {strides}"
        )
    raise RecipeError(f"model: timm's {model} gives no features (features_only; {text})")


def _check_strides(model: str, strides: tuple[int, ...]) -> None:
    """Checks that the features' strides are increasing powers of two, as decoders need them.

    Args:
        model: timm's name of the model, for the error message.
        strides: stride of each feature relative to the image.

    Raises:
        RecipeError: the strides aren't increasing powers of two.
    """
    powers = [1 << k for k in range(10)]
    if list(strides) != sorted(set(strides) & set(powers)):
        raise RecipeError(
            f"model: {model} has features at strides {list(strides)}; a decoder needs increasing "
            "powers of two: choose others by taps, or another model"
        )


@torch.no_grad()
def _needs_padding(
    model: str, backbone: nn.Module, strides: tuple[int, ...], channels: tuple[int, ...]
) -> bool:
    """Returns True if the backbone needs images whose sides are multiples of the largest stride.

    The function runs the backbone on an image whose sides aren't multiples of the largest stride.
    The backbone needs no padding if the size of each feature is then the image's size divided by
    the feature's stride, rounded up.

    Args:
        model: timm's name of the model, for the error message.
        backbone: timm's feature extractor.
        strides: stride of each feature.
        channels: number of channels of each feature.

    Raises:
        RecipeError: even for an image whose sides are multiples of the largest stride, the backbone
            raises an error, or a feature doesn't have the size or the number of channels that
            `strides` and `channels` imply.
    """
    backbone.eval()
    for side in (2 * strides[-1] + 1, 2 * strides[-1]):
        sizes = [-(-side // stride) for stride in strides]
        expected = [(c, size, size) for c, size in zip(channels, sizes, strict=True)]
        try:
            shapes = [tuple(f.shape[1:]) for f in backbone(torch.zeros(1, 3, side, side))]
            text = f"features of {shapes}, not {expected}"
        except Exception as error:  # noqa: BLE001 - each model refuses in its own way
            shapes = None
            text = " ".join(str(error).split())[:200]
        if shapes == expected:
            backbone.train()
            return side == 2 * strides[-1]
    raise RecipeError(f"model: {model} doesn't work on an image of {side}x{side} ({text})")


def _with_own_norms(module: nn.Module) -> nn.Module:
    """Replaces all batch norms among the submodules of `module` by `BatchNorm2d`, in place.

    `module` itself is returned. The new norms are of this project's class `BatchNorm2d`, whose
    statistics cover all ranks' images. Parameters and statistics are copied. A norm of timm that
    includes an activation becomes a norm followed by the activation. Norms without parameters or
    without running statistics aren't replaced.
    """
    from timm.layers import BatchNormAct2d

    for name, child in module.named_children():
        if type(child) not in (nn.BatchNorm2d, BatchNormAct2d):
            _with_own_norms(child)
            continue
        if not (child.affine and child.track_running_stats):
            continue
        norm = BatchNorm2d(child.num_features, child.eps, child.momentum)
        state = child.state_dict()
        norm.load_state_dict({key: state[key] for key in norm.state_dict()})
        if isinstance(child, BatchNormAct2d):
            norm = nn.Sequential(OrderedDict(norm=norm, drop=child.drop, act=child.act))
        setattr(module, name, norm)
    return module


def _read_file(path: Path, model: str) -> tuple[dict[str, Tensor], list[str]]:
    """Reads a file of weights with timm's names.

    Args:
        path: the file, .safetensors or a torch checkpoint.
        model: timm's name of the model.

    Returns:
        (tensors, classifier): the tensors by timm's names, without those of the classifier; and the
        names of the classifier's tensors.

    Raises:
        CheckpointError: the file can't be read; or tensors are missing, unexpected or of another
            shape.
    """
    import timm

    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        state = state_dicts.read_checkpoint(path)
        state = state.get("state_dict", state.get("model", state))
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}

    # Create timm's whole model, with its classifier, since weights files have the tensors of the
    # whole model. The tensors of the feature extractor may have other names.
    whole = timm.create_model(model)
    classifiers = whole.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    prefixes = tuple(f"{name}." for name in classifiers)
    dropped = [name for name in state if name.startswith(prefixes)]
    kept = {name: tensor for name, tensor in state.items() if name not in dropped}
    report = state_dicts.compare(whole, kept)
    missing = [
        name
        for name in report.missing
        if not name.startswith(prefixes) and not name.endswith("num_batches_tracked")
    ]
    wrong = [
        f"{len(names)} {kind} ({', '.join(names[: state_dicts.LISTED])}"
        f"{', ...' if len(names) > state_dicts.LISTED else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", report.unexpected),
            ("of another shape", report.misfit),
        )
        if names
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: doesn't fit timm's {model}: {', '.join(wrong)}; give a state dict of this "
            "model with timm's own names"
        )
    return kept, dropped


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_readable(path, "checkpoint", CheckpointError)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: can't be read ({text}); copy or save it again") from None


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


build = Timm
