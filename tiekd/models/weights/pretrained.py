"""ImageNet weights for encoders: `encoder: {name: resnet, depth: 50, pretrained: imagenet}`.

A file can be given in place of `imagenet`. An encoder only stores the value of `pretrained`. `load`
loads the weights, and only a training run whose student isn't loaded from a checkpoint calls
`load`. So resuming, starting from other weights, teachers, evaluation and export need neither the
file nor a network connection.

`imagenet` means torchvision's first set of weights (IMAGENET1K_V1), with which the published depth
networks were initialised. The weights are read from the torch hub cache; rank 0 downloads them if
they aren't there. The tensors in a file may have the names of torchvision, of the published
networks, of this project or, for Swin, of its authors. An encoder with a method `read_pretrained`,
such as timm's, reads its weights itself; its attribute `collection` is the value of `pretrained`
that takes the place of `imagenet`. Not covered: other sets of weights, and encoders whose
arithmetic differs from torchvision's.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tiekd.distributed import comm
from tiekd.errors import CheckpointError, RecipeError
from tiekd.models.weights import state_dicts, swin_names

IMAGENET = "imagenet"
_OPTION = "network.encoder.pretrained"
# Number of inverted residual blocks in each stage of MobileNetV2. torchvision numbers the blocks of
# all stages consecutively, from 1.
_MOBILENET_BLOCKS = (1, 2, 3, 4, 3, 3, 1)


def load(network: nn.Module) -> str | None:
    """Loads the pretrained weights that the encoder's attribute `pretrained` names.

    Collective: rank 0 reads the weights and broadcasts them, so all ranks must call it.

    Args:
        network: a new network; the weights are loaded into its encoder in place.

    Returns:
        A message for the log about what was loaded, or None if `pretrained` is None.

    Raises:
        RecipeError: the weights can't be read or don't fit; raised on every rank.
    """
    asking = [
        module
        for module in network.encoder.modules()
        if getattr(module, "pretrained", None) is not None
    ]
    if not asking:
        return None
    # Rank 0 reads the weights. If that fails, it broadcasts the error instead, so that all ranks
    # raise it.
    encoder = asking[0]
    source = asking[0].pretrained
    state, what, problem = None, None, None
    if comm.is_main():
        try:
            state, what = _read_fitting(encoder, source)
        except RecipeError as error:
            problem = str(error)
        except CheckpointError as error:
            known = getattr(encoder, "collection", IMAGENET)
            other = "" if source == known else f" say {known}, or"
            problem = f"{_OPTION}: {error}; or{other} null for a random start"
    state, what, problem = comm.broadcast_object((state, what, problem))
    if problem:
        raise RecipeError(problem)
    encoder.load_state_dict(state, strict=False)
    return f"Encoder: {len(state)} tensors from {what}"


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames an encoder's tensors to this project's names.

    The tensors may have the names of torchvision, of the published depth networks, of Swin's
    authors, or of this project. Tensors of a classifier and tensors with unknown names are left
    out.

    Args:
        state: a state dict, or a checkpoint that contains one.

    Returns:
        The tensors, with names as in the encoder's own state dict.
    """
    state = state.get("state_dict", state.get("model", state))
    if swin_names.is_imagenet(state):
        return swin_names.to_our_names(state)
    # Rename tensors that have the names of torchvision's MobileNetV2.
    if any(name.startswith("features.") for name in state):
        renamed = {_mobilenet_name(name): tensor for name, tensor in state.items()}
        return {name: tensor for name, tensor in renamed.items() if name is not None}
    # Translate the names of published depth networks or of torchvision's ResNet, unless the names
    # are this project's, which begin with `encoder.`.
    if not any(name.startswith("encoder.") for name in state):
        state = state_dicts.from_published(state)
    ours = {
        name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")
    }
    return {name.removeprefix("swin."): tensor for name, tensor in ours.items()}


def _read_fitting(encoder: nn.Module, source: str) -> tuple[dict[str, Tensor], str]:
    """Reads pretrained weights, and returns those tensors that the encoder has.

    Args:
        encoder: the encoder, which isn't changed.
        source: "imagenet", a file, or another value that the encoder's `read_pretrained` knows.

    Returns:
        (tensors, text): the tensors by this project's names, and a description of their source for
        the log.

    Raises:
        RecipeError: ImageNet weights can't be downloaded, or the weights don't fit.
        CheckpointError: the file can't be read, or `read_pretrained` failed.
    """
    if hasattr(encoder, "read_pretrained"):
        return encoder.read_pretrained(source)
    state = _fitting(_read(encoder, source), encoder, source)
    if source == IMAGENET:
        return state, f"ImageNet weights of torchvision's {encoder.torchvision_name}"
    return state, source


def _read(encoder: nn.Module, source: str) -> dict[str, Tensor]:
    """Reads ImageNet weights, or a file, and returns the tensors by this project's names.

    Args:
        encoder: the encoder, whose attribute `torchvision_name` is torchvision's name of its
            architecture, or None if torchvision has no weights for it.
        source: "imagenet" or the path of a file.

    Raises:
        RecipeError: there are no ImageNet weights, or they can't be downloaded.
        CheckpointError: the file can't be read.
    """
    if source != IMAGENET:
        return to_our_names(state_dicts.read_checkpoint(Path(source)))
    name = encoder.torchvision_name
    if name is None:
        raise RecipeError(
            f"{_OPTION}: {IMAGENET}, but torchvision has no weights for this encoder as it is "
            "configured; give a file of weights, or null for a random start"
        )
    return to_our_names(_from_torchvision(name))


def _from_torchvision(name: str) -> dict[str, Tensor]:
    """Reads torchvision's ImageNet weights of an architecture.

    They are read from torch's hub cache, and downloaded to it if they aren't there.

    Args:
        name: torchvision's name of the architecture, e.g. "resnet50".

    Returns:
        The tensors by torchvision's names, those of the classifier included.

    Raises:
        RecipeError: the weights can't be downloaded.
        CheckpointError: the file in the cache can't be read.
    """
    from torchvision.models import get_model_weights

    entry = get_model_weights(name).IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if not file.exists():
        try:
            entry.get_state_dict(
                progress=False, check_hash=True, weights_only=True, map_location="cpu"
            )
        except (OSError, RuntimeError) as error:
            # Explain the failed download: there is no connection or no disk space, or the
            # downloaded file is corrupt.
            raise RecipeError(
                f"{_OPTION}: {IMAGENET} weights of {name} can't be downloaded "
                f"({_one_line(error)}); put {entry.url} at {file}, or anywhere and say "
                f"{_OPTION}=FILE"
            ) from None
    return state_dicts.read_checkpoint(file)


def _fitting(state: dict[str, Tensor], encoder: nn.Module, source: str) -> dict[str, Tensor]:
    """Returns those of the tensors in `state` that the encoder has, by name.

    Other tensors, e.g. of stages that the encoder doesn't build, are left out. Those of the
    encoder's tensors whose name begins with a prefix in its attribute `not_pretrained` may be
    missing in `state`.

    Args:
        state: the tensors by this project's names.
        encoder: the encoder, which isn't changed.
        source: the value of `pretrained`, for the error message.

    Raises:
        RecipeError: a tensor is missing or of another shape.
    """
    own = encoder.state_dict()
    new = getattr(encoder, "not_pretrained", ())
    # Ignore missing batch counters of norms: they aren't needed, and files from old torch versions
    # lack them.
    missing = [
        name for name in own if name not in state and not name.endswith("num_batches_tracked")
    ]
    wrong = [name for name in missing if not name.startswith(new)]
    wrong += [name for name in own if name in state and state[name].shape != own[name].shape]
    if wrong:
        raise RecipeError(
            f"{_OPTION}: {len(wrong)} of the encoder's {len(own)} tensors are not in {source} or "
            f"of another size, such as {wrong[0]}; give weights of the same architecture, depth "
            "and width"
        )
    return {name: state[name] for name in own if name in state}


def _mobilenet_name(name: str) -> str | None:
    """Returns this project's name for a tensor of torchvision's MobileNetV2.

    For example `features.4.conv.0.1.weight` is `layer3.0.conv.0.bn.weight`. The result is None for
    tensors of the classifier and of the convolution before it, which the encoder doesn't have.
    """
    match = re.fullmatch(r"features\.(\d+)\.(.+)", name)
    if match is None:
        return None
    index = int(match[1]) - 1
    rest = match[2]
    if index == -1:  # the stem; its module 0 is the convolution, its module 1 the norm
        return f"conv1.{_conv_or_norm(rest)}"
    for stage, num_blocks in enumerate(_MOBILENET_BLOCKS, 1):
        if index < num_blocks:
            return _block_name(f"layer{stage}.{index}.conv", rest, 1 if stage == 1 else 2)
        index -= num_blocks
    return None  # a tensor of the convolution before the classifier


def _block_name(block: str, rest: str, projection: int) -> str:
    """Returns this project's name for a tensor of an inverted residual of MobileNetV2.

    In torchvision's block, layers before number `projection` contain a convolution and its norm.
    Layer `projection` is the 1x1 projection's convolution, and the next one its norm.

    Args:
        block: this project's prefix of the block's tensors.
        rest: torchvision's name of the tensor within the block, e.g. "conv.1.0.weight".
        projection: number of the projection's convolution within the block.
    """
    layer, inner = rest.removeprefix("conv.").split(".", 1)
    if int(layer) < projection:
        return f"{block}.{layer}.{_conv_or_norm(inner)}"
    kind = "conv" if int(layer) == projection else "bn"
    return f"{block}.{projection}.{kind}.{inner}"


def _conv_or_norm(rest: str) -> str:
    """Translates torchvision's name of a tensor in a module that holds a convolution and its norm.

    `0.NAME`, a tensor of the convolution, becomes `conv.NAME`; `1.NAME`, of the norm, becomes
    `bn.NAME`.

    Args:
        rest: torchvision's name of the tensor within the module, e.g. "0.weight".
    """
    number, parameter = rest.split(".", 1)
    return f"{('conv', 'bn')[int(number)]}.{parameter}"


def _one_line(error: Exception) -> str:
    """Returns the error's text on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
