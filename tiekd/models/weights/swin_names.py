"""Translates the names of Swin's ImageNet weights, from its authors' or torchvision's to ours.

The authors' networks merge four tokens in another order than the published depth networks, so two
tensors of each merging layer are reordered. Left out: the classifier, and buffers that are computed
from the sizes (masks, index tables).
"""

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = (
    # (authors' name, our name); torchvision's names are first translated to the authors'.
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
    """Returns True if a state dict has the names of Swin's authors or of torchvision."""
    return "layers.0.blocks.0.attn.qkv.weight" in state or "features.1.0.attn.qkv.weight" in state


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a `Swin` under our names.

    The norms at the taps are missing, because a classifier doesn't have them.
    """
    ours = {}
    for theirs, tensor in state.items():
        name = _our_name(re.sub(r"features\.(\d+)\.(.+)", _authors_name, theirs))
        if name is not None:
            ours[name] = _reordered(tensor) if name.startswith("merges.") else tensor
    return ours


def _authors_name(match: re.Match) -> str:
    """Translates torchvision's name, which numbers stem, stages and merging layers consecutively.

    0 is the stem, 1, 3, 5 and 7 are the stages, and 2, 4 and 6 the merging layers between them.
    """
    index = int(match[1])
    rest = match[2]
    if index == 0:
        return re.sub(r"^2\.", "patch_embed.norm.", re.sub(r"^0\.", "patch_embed.proj.", rest))
    return f"layers.{(index - 1) // 2}.{'blocks' if index % 2 else 'downsample'}.{rest}"


def _our_name(name: str) -> str | None:
    """Returns our name for an authors' name; None if we have no such tensor."""
    for pattern, ours in _NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return None


def _reordered(tensor: Tensor) -> Tensor:
    """Reorders four tokens' channels from (column, row, channel) to (channel, row, column)."""
    return tensor.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)
