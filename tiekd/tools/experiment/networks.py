"""Counts the parameters and multiply-adds of the rows' networks, and measures their latency.

The counts follow from the recipe, so they are in the table. Latencies depend on the machine and on
what else runs there, so they are measured only on request (`--report --latency`), in this process,
and kept in a file of their own, latency.json in the experiment's work dir:

    {"machine": {...}, "threads": N, "sets": {SET: {ROW: {"ms": MILLISECONDS, "network": {...}}}}}

`network` is the size of the measured network (`counts`); a latency is ignored if the row has
another network now.

It costs a forward pass for each different network, and for latencies some seconds each. Not
covered: sizes of networks that see images of several sizes.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from tiekd.config.recipe import load_recipe
from tiekd.data.resize import Resize
from tiekd.files import replace_text
from tiekd.models import canonical
from tiekd.models.build import build_network
from tiekd.models.network import Network
from tiekd.tools.benchmarks.student import multiply_adds
from tiekd.tools.benchmarks.training import make_plain
from tiekd.tools.experiment.runs import Job
from tiekd.training.settings import Recipe
from tiekd.workdir.environment import environment

LATENCY_FILE = "latency.json"
_ROUNDS = 15
_WARM_UP = 2


def counts(job: Job) -> dict:
    """Returns the size of the network of a run.

    Args:
        job: the run.

    Returns:
        "parameters", their number; "input", [height, width] of the network's input, None if its
        images have several sizes; "gmac", billions of multiply-adds per image of the plain network,
        which computes each operator as published, None without `input`.
    """
    node, size = _network_of(job)
    return dict(_counts(json.dumps(node), size))


def measure_latency(runs: Sequence[Job], folder: Path, print_line: Callable[[str], None]) -> None:
    """Measures the latency of each row's network on each set, and writes latency.json.

    It is the median over forward passes of one image without gradients, in fp32 on the CPU, as
    bin/evaluate.py computes them. The networks take turns, so that a change of the machine's speed
    meets all of them.

    Args:
        runs: the runs; those of a row and set have the same network.
        folder: the experiment's work dir.
        print_line: function that prints a line.
    """
    by_network: dict[tuple, list[Job]] = {}
    for job in {(job.set, job.row): job for job in runs}.values():
        node, size = _network_of(job)
        if size is None:
            print_line(f"{job.set}/{job.row}: no latency, because its images have several sizes")
            continue
        by_network.setdefault((json.dumps(node), size), []).append(job)
    found: dict[str, dict[str, dict]] = {}
    milliseconds = _medians([(_build(node), size) for node, size in by_network])
    for jobs, median in zip(by_network.values(), milliseconds, strict=True):
        for job in jobs:
            found.setdefault(job.set, {})[job.row] = {"ms": median, "network": counts(job)}
            print_line(f"{job.set}/{job.row}: {median:.2f} ms")
    content = {"machine": environment(), "threads": torch.get_num_threads(), "sets": found}
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / LATENCY_FILE, json.dumps(content, indent=1) + "\n")


def read_latency(folder: Path) -> dict[str, dict[str, dict]]:
    """Returns the latencies in latency.json: set -> row -> {"ms": milliseconds, "network": size}.

    It is an empty dict if there is no such file, or it is damaged.

    Args:
        folder: the experiment's work dir.
    """
    try:
        content = json.loads((folder / LATENCY_FILE).read_text(encoding="utf-8"))
        for rows in content["sets"].values():
            for each in rows.values():
                _ = each["ms"] + 0.0, each["network"]
        return content["sets"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _network_of(job: Job) -> tuple[dict, tuple[int, int] | None]:
    """Returns the recipe's section `network` without initial weights, and the input's size."""
    recipe = Recipe(load_recipe(job.recipe, job.overrides))
    # A canonical camera needs the frames' focal lengths, and changes no layer.
    node = {key: value for key, value in recipe.network.items() if key not in canonical.KEYS}
    encoder = {key: value for key, value in node["encoder"].items() if key != "pretrained"}
    return node | {"encoder": encoder}, _input_size(recipe.resize)


def _input_size(resize: Resize) -> tuple[int, int] | None:
    # Of the other modes the size depends on the image.
    if resize.mode in ("stretch", "contain"):
        return resize.height, resize.width
    return resize.at_most


@functools.cache
def _counts(network: str, size: tuple[int, int] | None) -> Mapping:
    built = _build(network)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    found = {"parameters": parameters, "input": None, "gmac": None}
    if size is not None:
        gmac = multiply_adds(make_plain(built), torch.zeros(1, 3, *size)) / 1e9
        found |= {"input": list(size), "gmac": gmac}
    return found


def _build(network: str) -> Network:
    return build_network(json.loads(network)).eval()


@torch.no_grad()
def _medians(networks: Sequence[tuple[Network, tuple[int, int]]]) -> list[float]:
    """Returns each network's median time of a forward pass, in milliseconds.

    Args:
        networks: networks with the (height, width) of their input.
    """
    taken: list[list[float]] = [[] for _ in networks]
    images = [torch.rand(1, 3, *size) for _, size in networks]
    for each in range(_WARM_UP + _ROUNDS):
        for times, (network, _), image in zip(taken, networks, images, strict=True):
            started = time.perf_counter()
            network(image)
            if each >= _WARM_UP:
                times.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(times) for times in taken]
