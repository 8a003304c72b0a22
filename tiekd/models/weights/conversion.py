"""Published checkpoint files into ours and back, as whole files with a reckoning of every tensor.

Only names and shapes are held against the network, which is never filled: it costs the file's size in memory, and a
second or two. Files are written beside and renamed, so they are whole or not there.
Left out: optimizer states, and parameters that the published networks carry without using them.
"""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.errors import CheckpointError
from tiekd.files import sync
from tiekd.models.build import build_network
from tiekd.models.weights import state_dicts
from tiekd.models.weights.state_dicts import COUNTERS, LISTED, Report

_HEADS = ("dpm", "sigmoid")


class Conversion(NamedTuple):
    """What a conversion gives and leaves: the tensors under their new names, how the network fits them under our
    names (norms' batch counters are not missed, shapes are told), and the published names that nothing uses."""

    tensors: dict[str, Tensor]
    report: Report
    dead: list[str]


def from_published(source: str | Path, network_node: dict) -> Conversion:
    """A published file for the network of a recipe. Raises CheckpointError where it can't be read as one."""
    state = state_dicts.read_checkpoint(source)
    head = network_node.get("head", {}).get("name")
    head = head if head in _HEADS else None
    try:
        ours = state_dicts.from_published(state, head)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    unknown = state_dicts.unknown(state)
    dead = [name for name in state_dicts.dropped(state, head) if name not in unknown]
    report = _report(ours, network_node)
    return Conversion(ours, report._replace(unexpected=report.unexpected + unknown), dead)


def to_published(source: str | Path, network_node: dict) -> Conversion:
    """Weights of ours under the published names. Raises CheckpointError where one has none."""
    ours = state_dicts.read_weights(source)
    return Conversion(state_dicts.to_published(ours), _report(ours, network_node), [])


def check(conversion: Conversion, source: str | Path, recipe_path: str | Path) -> None:
    """Raises CheckpointError that counts and names what is missing, unexpected or of another shape."""
    wrong = [
        f"{len(names)} {kind} ({_listed(names)})"
        for kind, names in _kinds(conversion.report).items()
        if names
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: doesn't fit the network of {recipe_path}: {', '.join(wrong)}; nothing is written; give the "
            "recipe of this network, or its overrides by --set"
        )


def summary(conversion: Conversion) -> str:
    """The reckoning in lines: counts, and every name that is not simply matched."""
    lines = [f"matched: {len(conversion.report.matched)}"]
    for kind, names in _kinds(conversion.report).items():
        lines += [f"{kind}: {len(names)}", *(f"  {name}" for name in names)]
    if conversion.dead:
        lines += [f"dead in the published network, left out: {len(conversion.dead)}"]
        lines += [f"  {name}" for name in conversion.dead]
    return "\n".join(lines)


def write(path: Path, content: Mapping) -> None:
    """A checkpoint file that loads with `weights_only=True`, atomically. Raises CheckpointError where it can't be."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(content), file)
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be written ({error.strerror}); give another --out"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _report(ours: Mapping[str, Tensor], network_node: dict) -> Report:
    with torch.device("meta"):
        network = build_network(network_node)
    report, own = state_dicts.compare(network, ours), network.state_dict()
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
