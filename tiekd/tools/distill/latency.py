"""Measures the latency of exported students, and chooses the largest that meets a budget.

A student is exported with the weights that it begins with, which makes no difference to its speed,
and its file runs on noise of the size of most images: by ONNX Runtime if that is installed and the
file runs on a CPU, otherwise as a torch.export file. The figure is the median of many runs in one
process. Left out: other jobs on the machine, which make every student slower.
"""

import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tiekd.errors import LaunchError
from tiekd.inference.export import export, onnx_format, program_format
from tiekd.models.build import build_network

RUNS = 50  # at most; fewer if they take long
_LONGEST_MS = 10_000.0
_WARM_UP = 3


@dataclass(frozen=True)
class Measured:
    """The latency of a student's exported file.

    Attributes:
        ms: The median over the runs in milliseconds.
        runs: Their number.
    """

    ms: float
    runs: int

    def __str__(self) -> str:
        return f"{self.ms:.1f} ms (median of {self.runs} runs)"


@dataclass(frozen=True)
class Choice:
    """The student that meets a budget.

    Attributes:
        student: Its name.
        measured: Name of each student that was measured -> its latency.
        larger: Name of the next larger student, which misses the budget; None for the largest.
    """

    student: str
    measured: dict[str, Measured]
    larger: str | None


def choose(names: list[str], budget_ms: float, measure: Callable[[str], Measured]) -> Choice:
    """Returns the largest student that meets a budget, by bisection.

    Args:
        names: The family, from small to large.
        budget_ms: The largest latency in milliseconds.
        measure: Function from a student's name to its latency.

    Raises:
        LaunchError: The smallest student misses the budget; the message says the least latency.
    """
    measured: dict[str, Measured] = {}
    # All before `fits` meet the budget, and all from `misses` on don't.
    fits, misses = -1, len(names)
    while misses - fits > 1:
        middle = (fits + misses) // 2
        measured[names[middle]] = measure(names[middle])
        if measured[names[middle]].ms <= budget_ms:
            fits = middle
        else:
            misses = middle
    if fits < 0:
        least = min(measured.values(), key=lambda each: each.ms)
        raise LaunchError(
            f"--max-latency {budget_ms:g}ms: the smallest student, {names[0]}, takes "
            f"{measured[names[0]]}; the least that is reachable here is {least.ms:.1f} ms at this "
            "--size, so allow more, or give a smaller --size or more --threads"
        )
    return Choice(names[fits], measured, names[misses] if misses < len(names) else None)


def runtime(on: str) -> str:
    """Returns the format in which students are measured: "onnx" or "torch_export".

    Args:
        on: "cpu" or "cuda".
    """
    packages = ("onnx", "onnxscript", "onnxruntime")
    has_onnx = all(importlib.util.find_spec(package) for package in packages)
    return "onnx" if on == "cpu" and has_onnx else "torch_export"


def check_device(on: str) -> None:
    """Raises LaunchError if there is no such device on this machine.

    Args:
        on: "cpu" or "cuda".
    """
    if on == "cuda" and not torch.cuda.is_available():
        raise LaunchError("--on cuda: no GPU is visible on this machine; give --on cpu")


def of_network(node: dict, settings: export.Settings, on: str, threads: int) -> Measured:
    """Exports a network with random weights, and measures its file.

    Args:
        node: The recipe's section `network`.
        settings: How it is exported.
        on: "cpu" or "cuda".
        threads: Threads on a CPU.
    """
    before = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    try:
        # The weights of ImageNet make no difference, and may not be installed.
        plain = node | {"encoder": node["encoder"] | {"pretrained": None}}
        network = build_network(plain).eval()
        images = torch.randint(0, 256, (1, 3, *settings.size), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"student{export.SUFFIXES[settings.format]}"
            export.write(path, network, plain, settings, [images], {}, io.StringIO())
            return timed(loaded(path, settings.format, on), images.to(on))
    finally:
        torch.set_num_threads(before)


def loaded(path: Path, kind: str, on: str) -> Callable:
    """Returns an exported file as a function of an image.

    Args:
        path: The file.
        kind: Its format, "onnx" or "torch_export".
        on: "cpu" or "cuda".
    """
    if kind == "onnx":
        return onnx_format.load(path)
    if on == "cpu":
        return program_format.load(path)
    from torch.export.passes import move_to_device_pass

    module = move_to_device_pass(torch.export.load(str(path)), on).module()

    @torch.no_grad()
    def run(image):
        found = module(image)
        torch.cuda.synchronize()
        return found

    return run


def timed(run: Callable, image) -> Measured:
    """Returns the median latency of a function over RUNS runs, or as many as begin within 10 s.

    Args:
        run: The function.
        image: Its argument.
    """
    for _ in range(_WARM_UP):
        run(image)
    times: list[float] = []
    while len(times) < RUNS and sum(times) < _LONGEST_MS:
        started = time.perf_counter()
        run(image)
        times.append(1000 * (time.perf_counter() - started))
    return Measured(statistics.median(times), len(times))
