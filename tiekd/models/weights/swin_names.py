"""Renames the tensors of Swin's ImageNet weights, its authors' or torchvision's, to this project's.

A patch merging layer, between two stages, concatenates the channels of four tokens. The authors'
networks do so in another order than the published depth networks and this project, so the tensors
of these layers are reordered. Not covered: the classifier, and buffers that follow from the layers'
sizes (masks, index tables).
"""

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = (
    # (pattern of the name that Swin's authors use, this project's name). torchvision's names are
    # first translated to those of the authors.
    (r"patch_embed\.proj\.(\w+)", r"patches.\1"),
    (r"patch_embed\.norm\.(\w+)", r"patch_norm.\1"),
    (r"layers\.(\d)\.blocks\.(\d+)\.(norm[12]\.\w+)", r"stages.\1.\2.\3"),
    (
        r"layers\.(\d)\.blocks\.(\d+)\.attn\.((?:qkv|proj)\.\w+|\w+_bias_table)",
        r"stages.\1.\2.attention.\3",
    ),
    (r"layers\.(\d)\.blocks\.(\d+)\.mlp\.(?:fc1|0)\.(\w+)", r"stages.\1.\2.expand.\3"),
    (r"layers\.(\d)\.blocks\.(\d+)\.mlp\.(?:fc2|3)\.(\w+)", r"stages.\1.\2.project.\3"),
    (r"layers\.(\d)\.downsample\.((?:norm|reduction)\.\w+)", r"merges.\1.\2"),
)


def is_imagenet(state: Mapping[str, Tensor]) -> bool:
    """Returns True if a state dict has the tensor names of Swin's authors or of torchvision's Swin.

    Args:
        state: the tensors by name.
    """
    return "layers.0.blocks.0.attn.qkv.weight" in state or "features.1.0.attn.qkv.weight" in state


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a Swin classifier's tensors to the names in the encoder `Swin`.

    Tensors that the encoder doesn't have are left out. The result lacks the norms of the encoder's
    returned features, because a classifier has none.

    Args:
        state: the classifier's tensors, by the names of Swin's authors or torchvision.
    """
    ours = {}
    for theirs, tensor in state.items():
        name = _our_name(re.sub(r"features\.(\d+)\.(.+)", _authors_name, theirs))
        if name is not None:
            ours[name] = _reordered(tensor) if name.startswith("merges.") else tensor
    return ours


def _authors_name(match: re.Match) -> str:
    """Returns the name in the network of Swin's authors for torchvision's name of a tensor.

    torchvision numbers the modules consecutively: 0 is the stem; 1, 3, 5 and 7 are the stages; 2, 4
    and 6 are the patch merging layers between the stages.

    Args:
        match: a match of torchvision's name, whose groups are the module's number and the rest of
            the name after it.
    """
    index = int(match[1])
    rest = match[2]
    if index == 0:
        return re.sub(r"^2\.", "patch_embed.norm.", re.sub(r"^0\.", "patch_embed.proj.", rest))
    return f"layers.{(index - 1) // 2}.{'blocks' if index % 2 else 'downsample'}.{rest}"


def _our_name(name: str) -> str | None:
    """Returns a tensor's name in the encoder `Swin`; None if the encoder doesn't have the tensor.

    Args:
        name: the tensor's name in the network of Swin's authors.
    """
    for pattern, ours in _NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return None


def _reordered(tensor: Tensor) -> Tensor:
    """Reorders the last dimension of a patch merging layer's tensor as the encoder `Swin` needs it.

    The last dimension has the channels of 2 x 2 tokens. Its order changes from (column, row,
    channel) to (channel, row, column).

    Args:
        tensor: (4 * C,) or (O, 4 * C), for tokens of C channels.
    """
    return tensor.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)
