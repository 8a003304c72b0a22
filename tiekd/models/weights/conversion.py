"""Converts published checkpoint files to this project's and back, with a report on every tensor.

The tensors' names and shapes are compared with a network on the meta device, whose tensors take no
memory, so a conversion takes as much memory as the file, and a second or two. A file is written
under a temporary name and renamed, so that no partial file is left. Not covered: optimizer states,
and parameters that the published networks contain but don't use.
"""

import io
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.errors import CheckpointError
from tiekd.files import cause_of, sync
from tiekd.models.build import build_network
from tiekd.models.weights import state_dicts
from tiekd.models.weights.state_dicts import COUNTERS, LISTED, Report

_HEADS = ("dpm", "sigmoid")


class Conversion(NamedTuple):
    """The result of converting a checkpoint file between the published names and this project's.

    Attributes:
        tensors: the converted tensors by their new names.
        report: the comparison of the tensors with the recipe's network, by this project's names.
            Missing batch counters of norms aren't listed; an entry of `misfit` states both shapes.
        unused: names of tensors that the published file contains but the published network doesn't
            use.
    """

    tensors: dict[str, Tensor]
    report: Report
    unused: list[str]


def from_published(source: str | Path, network_node: dict) -> Conversion:
    """Converts a published checkpoint file (mmcv's layout) for the network of a recipe.

    Args:
        source: path of the file, which is only read.
        network_node: `recipe["network"]`.

    Returns:
        A `Conversion`: the tensors by this project's names, and their comparison with the network.

    Raises:
        CheckpointError: the file can't be read as a published one.
    """
    state = state_dicts.read_checkpoint(source)
    # A published head has two output convolutions; the recipe's head determines which one is used.
    head = network_node.get("head", {}).get("name")
    head = head if head in _HEADS else None
    try:
        ours = state_dicts.from_published(state, head)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    unknown = state_dicts.unknown(state)
    unused = [name for name in state_dicts.dropped(state, head) if name not in unknown]
    report = _report(ours, network_node)
    return Conversion(ours, report._replace(unexpected=report.unexpected + unknown), unused)


def to_published(source: str | Path, network_node: dict) -> Conversion:
    """Converts a weights file of this project to the names of published (mmcv) checkpoints.

    Args:
        source: path of the file, which is only read.
        network_node: `recipe["network"]`.

    Returns:
        A `Conversion`: the tensors by their published names, and their comparison with the network.

    Raises:
        CheckpointError: a tensor has no published name.
    """
    ours = state_dicts.read_weights(source)
    return Conversion(state_dicts.to_published(ours), _report(ours, network_node), [])


def check(conversion: Conversion, source: str | Path, recipe_path: str | Path) -> None:
    """Checks that the converted tensors fit the recipe's network.

    Args:
        conversion: the result of a conversion.
        source: the file that was converted, for the error message.
        recipe_path: the recipe's file, for the error message.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; the message counts and
            names them.
    """
    wrong = [
        f"{len(names)} {kind} ({_listed(names)})"
        for kind, names in _kinds(conversion.report).items()
        if names
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: doesn't fit the network of {recipe_path}: {', '.join(wrong)}; nothing is "
            "written; give the recipe of this network, or its overrides by --set"
        )


def summary(conversion: Conversion) -> str:
    """Returns a text of several lines about a conversion.

    It states how many tensors match the network, are missing, unexpected or of another shape, and
    names all but the matching ones.

    Args:
        conversion: the result of `from_published` or `to_published`.
    """
    lines = [f"matched: {len(conversion.report.matched)}"]
    for kind, names in _kinds(conversion.report).items():
        lines += [f"{kind}: {len(names)}", *(f"  {name}" for name in names)]
    if conversion.unused:
        lines += [f"unused by the published network, left out: {len(conversion.unused)}"]
        lines += [f"  {name}" for name in conversion.unused]
    return "\n".join(lines)


def write(path: Path, content: Mapping) -> None:
    """Writes a checkpoint file that loads with `weights_only=True`, atomically.

    Args:
        path: the file, which is replaced if it exists; its folder is created.
        content: the file's content, of tensors and plain values only.

    Raises:
        CheckpointError: the file can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Serialise in memory first: if the disk is full, torch's own writer raises a RuntimeError
        # instead of an OSError.
        file = io.BytesIO()
        torch.save(dict(content), file)
        partial.write_bytes(file.getbuffer())
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be written ({cause_of(error)}); give another --out"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _report(ours: Mapping[str, Tensor], network_node: dict) -> Report:
    """Compares tensors with a network, which is built on the meta device, without memory.

    Args:
        ours: the tensors by this project's names.
        network_node: `recipe["network"]`, the network to build.

    Returns:
        The comparison, without missing batch counters of norms; an entry of `misfit` states both
        shapes.
    """
    with torch.device("meta"):
        network = build_network(network_node)
    report = state_dicts.compare(network, ours)
    own = network.state_dict()
    return report._replace(
        missing=[name for name in report.missing if not fnmatchcase(name, COUNTERS)],
        misfit=[
            f"{name} (got {list(ours[name].shape)}, wanted {list(own[name].shape)})"
            for name in report.misfit
        ],
    )


def _kinds(report: Report) -> dict[str, list[str]]:
    return {
        "missing": report.missing,
        "unexpected": report.unexpected,
        "of another shape": report.misfit,
    }


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
