"""Measures latency and size of a run's exported files on this machine.

A latency is the median over up to RUNS runs of one image, after one run that isn't counted. There
are fewer runs if they take longer than RUNS_S seconds. ONNX files run in ONNX Runtime if it is
installed. Without an exported file the network itself is timed, in torch. All run on the CPU with
torch's number of threads. Not covered: other processors, and accuracy, which bin/export.py has
compared.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.resize import Resize
from tiekd.inference.export import onnx_format, program_format
from tiekd.inference.export.onnx_format import FileInput
from tiekd.inference.student import Student
from tiekd.models.network import Network

RUNS = 20
RUNS_S = 10.0
_LEAST = 3  # smallest number of timed runs, however long they take
_FOCAL = 500.0  # pixels; a latency doesn't depend on the focal length


class Timing(NamedTuple):
    """The size and latency of one exported file, or of the network itself.

    Attributes:
        name: The file's name; "the network" without a file.
        runtime: Name and version of the package that runs the file, such as "ONNX Runtime 1.20".
        num_bytes: The file's size; of the network that of its weights in float32.
        size: (height, width) of the image in pixels; None if it wasn't timed.
        median_ms: The median latency in ms; None if it wasn't timed.
        runs: Number of timed runs.
        threads: Number of CPU threads.
        problem: Why the file wasn't timed; None if it was.
        options: The options of bin/export.py with which the file was made, as far as they can be
            seen in the file.
    """

    name: str
    runtime: str
    num_bytes: int
    size: tuple[int, int] | None = None
    median_ms: float | None = None
    runs: int = 0
    threads: int = 0
    problem: str | None = None
    options: tuple[str, ...] = ()


def of_file(path: Path, size: tuple[int, int]) -> Timing:
    """Measures size and latency of an exported file.

    Args:
        path: A .onnx or .pt2 file.
        size: (height, width) of the image in pixels, if the file takes images of any size.

    Returns:
        The measurements; if the file can't be run, its size and the reason.

    Raises:
        OSError: The file can't be accessed.
    """
    num_bytes = path.stat().st_size
    is_onnx = path.suffix.lower() == ".onnx"
    package = "onnxruntime" if is_onnx else "torch"
    if util.find_spec(package) is None:
        return Timing(path.name, package, num_bytes, problem=f"{package} is not installed")
    runtime = f"{'ONNX Runtime' if is_onnx else 'torch'} {metadata.version(package)}"
    load = onnx_format.load_described if is_onnx else program_format.load_described
    # Catch every exception, since a file that another program made may fail in any way.
    try:
        run, inputs, facts = load(path)
        given = _trial_inputs(inputs, size)
        median_ms, runs = measure_median(lambda: run(*given))
    except Exception as error:  # noqa: BLE001 - runtimes raise many types of exceptions
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
        return Timing(path.name, runtime, num_bytes, problem=f"it can't be run ({told})")
    shown = tuple(given[0].shape[-2:])
    timing = Timing(path.name, runtime, num_bytes, shown, median_ms, runs, torch.get_num_threads())
    return timing._replace(options=_options(inputs, facts))


def of_network(network: Network, resize: Resize, size: tuple[int, int]) -> Timing:
    """Measures the network's latency in torch, with the resizing that an exported file includes.

    Args:
        network: The network, which is moved to the CPU.
        resize: How images are resized to the network's input size.
        size: (height, width) of the image in pixels.

    Returns:
        The latency, and as size that of the weights in float32.
    """
    student = Student(network, "cpu", resize=resize)
    image = torch.zeros(1, 3, *size, dtype=torch.uint8)
    focal = _FOCAL if student.needs_focal else None
    median_ms, runs = measure_median(lambda: student.predict(image, focal=focal))
    num_bytes = sum(4 * each.numel() for each in network.parameters())
    runtime = f"torch {metadata.version('torch')}"
    threads = torch.get_num_threads()
    return Timing("the network", runtime, num_bytes, size, median_ms, runs, threads)


def measure_median(run: Callable[[], object]) -> tuple[float, int]:
    """Returns the median duration of a call in ms, and the number of calls that were timed.

    Args:
        run: The call. The first one isn't counted.
    """
    run()
    times = []
    while len(times) < RUNS and (len(times) < _LEAST or sum(times) < RUNS_S):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times), len(times)


def _options(inputs: Sequence[FileInput], facts: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the options of bin/export.py with which a file was exported, such as ("--dynamic",).

    Only options that can be seen in the file are returned.

    Args:
        inputs: The file's inputs.
        facts: The file's metadata, name -> text.
    """
    image, *others = inputs
    height, width = image.shape[2:]
    found = ["--dynamic"] if None in (height, width) else ["--size", f"{height}x{width}"]
    if image.dtype == torch.float32:
        found += ["--input", "float"]
    if facts.get("readout", "mean") != "mean":
        found += ["--readout", facts["readout"]]
    if "confidence" in facts:
        found.append("--confidence")
    constant = facts.get("focal", "").partition(" pixels")[0]
    if others:
        found.append("--focal-input")
    elif constant:
        found += ["--focal", constant]
    return tuple(found)


def _trial_inputs(inputs: Sequence[FileInput], size: tuple[int, int]) -> list[Tensor]:
    """Returns inputs for a trial run of an exported file.

    Args:
        inputs: The file's inputs.
        size: (height, width) of the image in pixels, if the file doesn't fix it.

    Returns:
        A black image (B, 3, height, width) of the file's dtype, where B is the file's batch size or
        1; and a focal length (B,) in pixels if the file takes one.

    Raises:
        ValueError: The file has other inputs than one RGB image and a focal length.
    """
    image, *others = inputs
    is_image = len(image.shape) == 4 and image.shape[1] == 3 and image.dtype is not None
    if not is_image or len(others) > 1 or any(len(other.shape) != 1 for other in others):
        raise ValueError(f"it takes {[each.shape for each in inputs]}, not one RGB image")
    sides = [own or side for own, side in zip(image.shape[2:], size, strict=True)]
    trial = torch.zeros(image.shape[0] or 1, 3, *sides, dtype=image.dtype)
    return [trial, *(torch.full((len(trial),), _FOCAL) for _ in others)]
