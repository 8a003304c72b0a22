"""Compares the time and peak memory of two functions that do the same, in one process.

Machines are noisy, so the two functions alternate. Each round, in which both are timed, gives one
ratio of their times. The median of the ratios is reported together with their range. Not covered:
energy, and the memory of other processes (data workers).
"""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from tiekd.distributed import allocator, memory
from tiekd.kernels import layouts

_MB = 1e6
# Number of calls that are timed together on a GPU, without a sync between them, because the host
# runs ahead of the GPU in training, too.
QUEUED_CALLS = 5


def compare(
    compared: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    rounds: int = 7,
    device: torch.device | str = "cpu",
    with_memory: bool = True,
    queued: int = 1,
) -> dict:
    """Compares the time and memory of tiekd's function with those of a reference.

    Args:
        compared: description of the comparison, for the report.
        ours: function without arguments, the implementation to measure.
        reference: function without arguments that does the same.
        rounds: number of times that each is timed.
        device: the device to synchronise with after each call.
        with_memory: True to measure peak memory, too.
        queued: number of calls that are timed together on a GPU (see `seconds`).

    Returns:
        "compared"; "time_ratio" (ours / reference), the median over rounds, with "time_ratio_range"
        [least, largest]; "ours_s" and "reference_s", seconds of a call, medians over rounds; and
        "rounds". If `with_memory` is True, also "memory_ratio" (ours / reference), "ours_peak_mb"
        and "reference_peak_mb", the peaks in MB above the memory held before the call.
    """
    device = torch.device(device)
    result = {"compared": compared}
    # Measure memory before time, since that also warms up both functions.
    peaks = [peak_bytes(call, device) for call in (ours, reference)] if with_memory else []
    times = interleaved(
        {"ours": ours, "reference": reference}, rounds, device, not with_memory, queued
    )
    ratios = [a / b for a, b in zip(times["ours"], times["reference"], strict=True)]
    result |= {
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
    }
    if with_memory:
        result["memory_ratio"] = peaks[0] / max(1, peaks[1])
    result |= {f"{name}_s": statistics.median(values) for name, values in times.items()}
    if with_memory:
        result |= {"ours_peak_mb": peaks[0] / _MB, "reference_peak_mb": peaks[1] / _MB}
    return result | {"rounds": rounds}


def interleaved(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warm_up: bool = True,
    queued: int = 1,
) -> dict[str, list[float]]:
    """Times several functions in turn in each round; every other round in reverse order.

    Args:
        calls: name -> function without arguments.
        rounds: number of times that each is timed.
        device: the device to synchronise with after each call.
        warm_up: True to call each function once before the first round.
        queued: number of calls that are timed together on a GPU (see `seconds`).

    Returns:
        Name -> seconds of each round.
    """
    if warm_up:
        for call in calls.values():
            seconds(call, device)
    times = {name: [] for name in calls}
    order = list(calls.items())
    for _ in range(rounds):
        for name, call in order:
            times[name].append(seconds(call, device, queued))
        order.reverse()
    return times


def seconds(call: Callable[[], object], device: torch.device, queued: int = 1) -> float:
    """Returns the seconds from a call until the device has finished the work that the call queued.

    Args:
        call: function without arguments.
        device: the device on which the call runs.
        queued: on a GPU, this many consecutive calls are timed, and the mean is returned.
    """
    calls = queued if device.type == "cuda" else 1
    memory.wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    memory.wait(device)
    return (time.perf_counter() - start) / calls


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Returns the peak memory of a call in bytes, above the memory held before the call.

    On a CPU this is the process's memory (Linux), on a GPU that of torch's allocator. The function
    is called twice and the second call is measured, so that memory that the first call keeps (such
    as compiled kernels) isn't included.

    Args:
        call: function without arguments.
        device: the device on which the call runs.
    """
    # Call the function once before, so that memory that it keeps after its first call, such as
    # compiled kernels, isn't part of its peak.
    call()
    gc.collect()
    if device.type == "cpu":
        # Return freed memory to the kernel first; a call that reuses it would seem to need none.
        allocator.give_back()
    memory.wait(device)
    memory.restart_peak(device)
    before = memory.held_bytes(device)
    call()
    memory.wait(device)
    return max(0, memory.peak_bytes(device) - before)


def hardware(device: torch.device | str = "cpu") -> dict:
    """Returns the conditions under which a measurement is made, for the report of its results.

    Args:
        device: the device of the measurement.

    Returns:
        {"device", "torch", "python", "allocator", "date"}, all text. "device" is the GPU's name, or
        the CPU's with its instruction set and the number of threads.
    """
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {layouts.isa()}, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": allocator.description(),
        "date": f"{date.today()}",
    }


def as_text(result: dict, indent: str = "") -> str:
    """Returns a benchmark's result as one text, with a line for each value.

    Args:
        result: name -> a value, a nested result of this form, or a list of nested results. Nested
            results are indented below their name.
        indent: spaces before each line.
    """
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", as_text(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{indent}{name}", *(as_text(row, indent + "  ") + "\n" for row in value)]
        else:
            lines.append(f"{indent}{name:<22} {_figure(value)}")
    return "\n".join(lines)


def _figure(value) -> str:
    if isinstance(value, list):
        return " .. ".join(_figure(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
