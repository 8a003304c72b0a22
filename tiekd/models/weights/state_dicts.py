"""Reads checkpoint files, translates published names, and loads tensors into a network.

The table of published names is in `published_names`. Not covered: optimizer states, and reshaping
of tensors that don't fit.
"""

import errno
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tiekd.errors import CheckpointError
from tiekd.files import check_readable
from tiekd.models.weights.published_names import (
    CLASSIFIERS,
    FIELDS,
    LEFTOVER_BINS,
    NAMES,
    PREFIXES,
    TABLES,
    VIT,
)

LISTED = 4  # maximum number of tensors that an error message names
COUNTERS = "*num_batches_tracked"  # batch counters of norms; they may be missing, as in old files
# Types that a checkpoint file may contain. Published checkpoints of the best evaluation contain the
# metric's value as a NumPy number, which is pickled under NumPy's old or new module name.
_NUMPY_NUMBER = np.float64(0).__reduce__()[0]
_PLAIN_TYPES = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8")),
    *((_NUMPY_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


class Report(NamedTuple):
    """The result of comparing a state dict with a network: four sorted lists of tensor names.

    Attributes:
        matched: tensors whose name and shape are those of the network.
        missing: tensors of the network that are not in the state dict.
        unexpected: tensors of the state dict that are not in the network.
        misfit: tensors whose name is in the network, but with another shape.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    misfit: list[str]


def read_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint file to the CPU, and never runs code that the file contains.

    Args:
        path: a file that `torch.save` wrote.

    Returns:
        The file's content: a dict of tensors by name, or a dict with such a dict in its entry
        `state_dict`.

    Raises:
        CheckpointError: the file is missing, truncated or not a torch file, or contains other
            objects than tensors and plain values.
    """
    path = Path(path)
    check_readable(path, "checkpoint", CheckpointError)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; give a checkpoint file, such as a work dir's best_abs_rel.pth"
        )
    # Read with `weights_only`, which builds nothing but tensors and plain values, so that a file
    # can't run code.
    try:
        with torch.serialization.safe_globals(_PLAIN_TYPES):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        # Report a truncated file: torch then seeks to a negative position, which raises EINVAL.
        if error.errno == errno.EINVAL:
            raise CheckpointError(
                f"{path}: truncated, or not a torch file (cut at {path.stat().st_size} bytes); "
                "copy or save it again"
            ) from None
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    except Exception as error:  # noqa: BLE001 - a truncated pickle raises any type
        foreign = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values ({foreign[1]}); "
                "save its state dict alone"
            ) from None
        raise CheckpointError(
            f"{path}: truncated, or not a torch file ({type(error).__name__}); copy or save it "
            "again"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: holds a {type(state).__name__}; it must be a dict of tensors"
        )
    # Check that the content is a dict of tensors, or has such a dict in its entry `state_dict`.
    tensors = state.get("state_dict", state)
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(
            f"{path}: holds no tensors by name; save the network's state_dict() in it"
        )
    return state


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a network's tensors from a checkpoint file.

    Args:
        path: a checkpoint of this project, or a published one (mmcv's layout).

    Returns:
        The tensors by this project's names, on the CPU.

    Raises:
        CheckpointError: the file can't be read, see `read_checkpoint`.
    """
    return named_tensors(read_checkpoint(path))


def named_tensors(state: Mapping) -> dict[str, Tensor]:
    """Returns the tensors in a checkpoint's content by this project's names.

    Args:
        state: the content of a checkpoint file, as `read_checkpoint` returns it. If its tensors
            have published names, they are renamed as by `from_published`.
    """
    tensors = state.get("state_dict", state)
    if any(name.removeprefix("module.").startswith(PREFIXES[:2]) for name in tensors):
        return from_published(state)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def from_published(state: Mapping, head: str | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a published (mmcv layout) checkpoint under this project's names.

    Tensors that this project's network doesn't have are left out; `dropped` lists them.

    Args:
        state: a state dict, or a checkpoint with an entry `state_dict`. Names may have the prefix
            `module.`. If no name has the prefix `backbone.` or `decode_head.`, the tensors are
            taken to be those of an encoder.
        head: "dpm" or "sigmoid": which of the two output convolutions of a published head the
            network uses. None infers the head from the number of bins, which is wrong only for a
            DPM head with exactly 256 bins. AdaBins is recognised by its other names and uses "dpm".

    Raises:
        CheckpointError: none of the names is known.
    """
    ours = _translated(state, head)
    if not ours:
        names = ", ".join(list(_without_prefix(state))[:LISTED]) or "nothing"
        raise CheckpointError(
            f"not a published checkpoint: it holds {names}; names like {NAMES[-1][0]} are expected"
        )
    return {name: tensor for name, tensor in ours.values()}


def dropped(state: Mapping, head: str | None = None) -> list[str]:
    """Returns the names of the tensors that `from_published` leaves out, sorted.

    Left out are tensors that the published network doesn't use, tensors of a classifier, and
    tensors whose names match no row of the table `published_names`.

    Args:
        state: a published checkpoint: a state dict, or a dict with an entry `state_dict`.
        head: "dpm" or "sigmoid", the kind of the head; None infers it, as in `from_published`.
    """
    tensors = _without_prefix(state)
    return sorted(set(tensors) - set(_translated(state, head)))


def unknown(state: Mapping) -> list[str]:
    """Returns the tensor names that match no row of the table `published_names`, sorted.

    `dropped` lists them, too, beside the names of tensors that the published network doesn't use.

    Args:
        state: a published checkpoint: a state dict, or a dict with an entry `state_dict`.
    """
    return sorted(
        name for name in _without_prefix(state) if _renamed(name, _FROM_PUBLISHED) is None
    )


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a network's tensors to the names that published (mmcv) checkpoints have for them.

    This is the inverse of `from_published`, except for the tensors that `from_published` leaves
    out.

    Args:
        state: the tensors by this project's names.

    Raises:
        CheckpointError: a tensor has no published name.
    """
    published = {}
    for name, tensor in state.items():
        match = _renamed(name, _FROM_OURS)
        if match is None:
            table = "tiekd.models.weights.published_names.NAMES"
            raise CheckpointError(f"{name}: has no published name; the table is {table}")
        published[match] = tensor
    return published


def compare(network: nn.Module, state: Mapping[str, Tensor]) -> Report:
    """Compares the names and shapes of a state dict's tensors with those of a network.

    Args:
        network: the network; it may be on the meta device, i.e. without memory for its tensors.
        state: the tensors by this project's names.

    Returns:
        A `Report` of the names that match, are missing, are unexpected, or differ in shape.
    """
    own = network.state_dict()
    matched = sorted(name for name in own if name in state and state[name].shape == own[name].shape)
    misfit = sorted(name for name in own if name in state and state[name].shape != own[name].shape)
    return Report(
        matched, sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys()), misfit
    )


def load_into(
    network: nn.Module, state: Mapping[str, Tensor], ignore: Sequence[str] = ()
) -> Report:
    """Copies tensors into a network by name, cast to its dtypes, and returns a `Report`.

    If an error is raised, the network is unchanged. The norms' batch counters may be missing.

    Args:
        network: the network, changed in place.
        state: the tensors under this project's names.
        ignore: glob patterns of names ("head.*") whose tensors may be missing, unexpected or of
            another shape.

    Raises:
        CheckpointError: a tensor that isn't ignored is missing, unexpected or of another shape, or
            a tensor to copy isn't dense or has a non-finite value.
    """
    # Collect all tensors that don't fit before any is copied.
    own = network.state_dict()
    report = compare(network, state)
    complaints = [
        f"{name} (got {_shape(state[name])}, wanted {_shape(own[name])})"
        for name in _not_matching(report.misfit, ignore)
    ]
    complaints += [
        f"{name} ({flaw})" for name in report.matched if (flaw := _flaw(state[name], own[name]))
    ]
    complaints += [
        f"{name} (missing)" for name in _not_matching(report.missing, [*ignore, COUNTERS])
    ]
    complaints += [
        f"{name} (not in the network)" for name in _not_matching(report.unexpected, ignore)
    ]
    if complaints:
        more = f" and {len(complaints) - LISTED} more" if len(complaints) > LISTED else ""
        raise CheckpointError(
            f"{len(complaints)} of {len(own)} tensors don't fit: "
            f"{', '.join(complaints[:LISTED])}{more}; "
            "use the recipe that the checkpoint was made with, or another checkpoint"
        )
    network.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    return report


def _flaw(tensor: Tensor, own: Tensor) -> str | None:
    """Returns the reason why a tensor can't be copied into a network, or None if it can.

    Args:
        tensor: the tensor to copy.
        own: the network's tensor, of the same shape.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "sparse, quantised or without data, wanted plain numbers"
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"got {tensor.dtype}, wanted {own.dtype}".replace("torch.", "")
    return None if tensor.isfinite().all() else "holds NaN or infinite numbers"


def _without_prefix(state: Mapping) -> dict[str, Tensor]:
    """Returns a published checkpoint's tensors by name, after removing the prefix `module.`.

    If the checkpoint contains an encoder only, so that no name begins with `backbone.` or
    `decode_head.`, the prefix `backbone.` is added to all names.

    Args:
        state: a state dict, or a checkpoint with an entry `state_dict`.
    """
    state = state.get("state_dict", state)
    tensors = {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if any(name.startswith(PREFIXES) for name in tensors):
        return tensors
    # Prefix an EfficientNet's names with the additional component `original_model`, as published
    # checkpoints do.
    prefix = "backbone.original_model." if "conv_stem.weight" in tensors else "backbone."
    return {prefix + name: value for name, value in tensors.items()}


def _translated(state: Mapping, head: str | None) -> dict[str, tuple[str, Tensor]]:
    """Translates the names of those tensors of a published checkpoint that its network uses.

    Args:
        state: a published checkpoint: a state dict, or a dict with an entry `state_dict`.
        head: "dpm" or "sigmoid", the kind of the head; None infers it, as in `from_published`.

    Returns:
        published name -> (this project's name, tensor). Unknown names are left out.
    """
    assert head in (None, "dpm", "sigmoid"), head
    tensors = _without_prefix(state)
    bins = tensors.get("decode_head.conv_out.0.weight")
    if head is None:
        # Recognise AdaBins by its transformer. Its number of bins doesn't decide: a published
        # sigmoid head has an unused layer with as many channels.
        adaptive = any(name.startswith(VIT) for name in tensors)
        has_bins = bins is not None and bins.shape[0] != LEFTOVER_BINS
        head = "dpm" if adaptive or has_bins else "sigmoid"

    # Collect the prefixes of tensors that the published network doesn't use.
    unused = ["decode_head.conv_depth." if head == "dpm" else "decode_head.conv_out.", *CLASSIFIERS]
    if "decode_head.conv_list.4.convA.conv.weight" in tensors:
        # The decoder has a fifth level, so the finest feature has stride 2. One upsampling block
        # then reaches the image's size, so the second one, upsample_custom2, isn't used.
        unused.append("decode_head.upsample_custom2.")
    used = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(tuple(unused)) and not name.endswith(TABLES)
    }
    renamed = {name: _renamed(name, _FROM_PUBLISHED) for name in used}
    return {
        name: (renamed[name], tensor) for name, tensor in used.items() if renamed[name] is not None
    }


def _renamed(name: str, rules: list[tuple[re.Pattern, str]]) -> str | None:
    """Translates a tensor's name by the first rule that matches it; None if no rule does.

    Args:
        name: the tensor's full name.
        rules: (pattern of the full name, template of the translated name).
    """
    for pattern, template in rules:
        match = pattern.fullmatch(name)
        if match:
            return template.format(**match.groupdict())
    return None


def _pattern(template: str) -> re.Pattern:
    """Returns a regular expression for a template of names, such as `neck.{rest}`.

    Each field, such as {rest}, becomes a named group, which matches the text that
    `published_names` allows for it. A repeated field must match the same text.
    """
    seen = set()
    parts = []
    for literal, field in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal))
        if field:
            parts.append(f"(?P={field})" if field in seen else f"(?P<{field}>{FIELDS[field]})")
            seen.add(field)
    return re.compile("".join(parts))


def _not_matching(names: list[str], patterns: Sequence[str]) -> list[str]:
    """Returns those of `names` that match none of the glob `patterns`, in the same order."""
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


_FROM_PUBLISHED = [(_pattern(published), ours) for published, ours in NAMES]
_FROM_OURS = [(_pattern(ours), published) for published, ours in NAMES]
