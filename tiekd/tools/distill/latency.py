"""Measures latencies of exported students, and finds the largest student within a limit.

A student is exported with random weights, since its speed doesn't depend on them. The exported file
runs on an image of noise that has the size of most of the user's images. On a CPU it is an ONNX
file in ONNX Runtime if that is installed, otherwise a file of torch.export. A latency is the median
over up to RUNS runs in one process. Other jobs on the machine aren't accounted for; they make every
student slower.
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

RUNS = 50  # largest number of timed runs; fewer if they take longer than _LONGEST_MS
_LONGEST_MS = 10_000.0
_WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """The latency of a student's exported file.

    Attributes:
        ms: The median over the timed runs, in milliseconds.
        runs: Number of timed runs.
    """

    ms: float
    runs: int

    def __str__(self) -> str:
        return f"{self.ms:.1f} ms (median of {self.runs} runs)"


@dataclass(frozen=True)
class Choice:
    """The largest student whose latency is within a limit.

    Attributes:
        student: The student's name.
        measured: Name of each student that was measured -> its latency.
        larger: Name of the next larger student, whose latency is above the limit; None if `student`
            is the largest of the family.
    """

    student: str
    measured: dict[str, Latency]
    larger: str | None


def choose(names: list[str], budget_ms: float, measure: Callable[[str], Latency]) -> Choice:
    """Finds the largest student whose latency is within a limit, by bisection.

    Args:
        names: Names of the students, from small to large.
        budget_ms: The limit, i.e. the largest allowed latency, in milliseconds.
        measure: Function from a student's name to its latency.

    Returns:
        The largest student within the limit, with the measured latencies.

    Raises:
        LaunchError: The smallest student's latency is above the limit.
    """
    measured: dict[str, Latency] = {}
    # Students up to index `fits` are within the limit, those from index `misses` on are above it.
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
    """Returns the file format in which students are exported to measure their latency.

    Args:
        on: The device, "cpu" or "cuda".

    Returns:
        "onnx" on a CPU if the packages onnx, onnxscript and onnxruntime are installed; otherwise
        "torch_export".
    """
    packages = ("onnx", "onnxscript", "onnxruntime")
    has_onnx = all(importlib.util.find_spec(package) for package in packages)
    return "onnx" if on == "cpu" and has_onnx else "torch_export"


def check_device(on: str) -> None:
    """Raises LaunchError if the device is a GPU and none is visible on this machine.

    Args:
        on: "cpu" or "cuda".
    """
    if on == "cuda" and not torch.cuda.is_available():
        raise LaunchError("--on cuda: no GPU is visible on this machine; give --on cpu")


def of_network(node: dict, settings: export.Settings, on: str, threads: int) -> Latency:
    """Exports a network with random weights to a temporary file, and measures the file's latency.

    Args:
        node: The recipe's section `network`.
        settings: The export's settings: file format and image size, among others.
        on: The device, "cpu" or "cuda".
        threads: Number of threads on a CPU.

    Returns:
        The latency for one image of noise.
    """
    before = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    try:
        # Don't load weights of ImageNet: latency doesn't depend on them, and they may not be
        # installed.
        plain = node | {"encoder": node["encoder"] | {"pretrained": None}}
        network = build_network(plain).eval()
        images = torch.randint(0, 256, (1, 3, *settings.size), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"student{export.SUFFIXES[settings.format]}"
            export.write(path, network, plain, settings, [images], {}, io.StringIO())
            return measure_median(load_exported(path, settings.format, on), images.to(on))
    finally:
        torch.set_num_threads(before)


def load_exported(path: Path, kind: str, on: str) -> Callable:
    """Loads an exported file, and returns a function that runs it.

    Args:
        path: The exported file.
        kind: Its format, "onnx" or "torch_export".
        on: The device, "cpu" or "cuda".

    Returns:
        Function from an image, (1, 3, H, W) uint8, to the file's outputs. It returns when the
        device has finished.
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


def measure_median(run: Callable, image) -> Latency:
    """Measures the median duration of a call of a function, after three calls that aren't timed.

    Calls are timed until there are RUNS of them or 10 s have passed.

    Args:
        run: The function.
        image: The function's argument.

    Returns:
        The median in milliseconds, and the number of timed calls.
    """
    for _ in range(_WARM_UP):
        run(image)
    times: list[float] = []
    while len(times) < RUNS and sum(times) < _LONGEST_MS:
        started = time.perf_counter()
        run(image)
        times.append(1000 * (time.perf_counter() - started))
    return Latency(statistics.median(times), len(times))
