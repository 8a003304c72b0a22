"""Measures how a training step's time and memory grow with batch, crop, bins and ranks.

It prints a table, writes a plot, and reports nonlinear growth. Each of the four quantities is
varied alone, with the others at their smallest size. A straight line is fitted to the measured
times, and another to the peak memory. Measurements that deviate by more than a tenth from the line
that is fitted to them are reported. For ranks, the step uses DeepSpeed and the batch size per rank
is fixed, so the time should stay constant and the total memory should be proportional to the world
size. `time_ratio` is the largest deviation of a time from the line's value, as time / value;
`memory_ratio` is the same for memory. Not covered: several machines.
"""

import argparse

import torch

from tiekd.config.recipe import load_recipe, merge
from tiekd.engine.execution import Execution, memory_format
from tiekd.files import replace_bytes
from tiekd.tools.benchmarks import measure, ranks
from tiekd.tools.benchmarks.line_plot import draw
from tiekd.tools.benchmarks.training import DTYPES, BatchShape, TrainingStep, device_of
from tiekd.visualization import figures

TOLERANCE = 0.1
UNITS = {
    "batch": "images",
    "crop": "pixels of an image",
    "bins": "bins of the head",
    "ranks": "ranks",
}


def run(args: argparse.Namespace) -> dict:
    """Measures time and memory of a training step at several sizes of each quantity.

    The quantities are the batch size, the crop, the head's number of bins and the number of ranks.
    With --plot it also writes the plot.

    Args:
        args: the command-line options that `arguments.of_growth` defines.

    Returns:
        "table", the measurements as text; "time_ratio" and "memory_ratio", the largest deviations
        of all measurements from their line, as measured value / line's value; "batch", "crop",
        "bins" and "ranks", a dict for each quantity as `compare_with_line` returns it; "compared",
        a description; and settings of the benchmark.

    Raises:
        LaunchError: a plot is asked for, and matplotlib isn't installed.
    """
    if args.plot is not None:
        figures.check_installed()
    recipe = load_recipe(args.recipe)
    # Vary batch size, crop width and number of bins one at a time, with the others at their
    # smallest.
    curves = {
        "batch": _curve(args, recipe, [(n, {"batch": n}) for n in args.batches]),
        "crop": _curve(
            args,
            recipe,
            [(n * args.height * args.width, {"width": n * args.width}) for n in args.crops],
        ),
        "bins": _curve(args, recipe, [(n, {"bins": n}) for n in args.bins]),
    }
    # Measure several ranks in separate processes, each with a batch of its own.
    if args.ranks:
        curves["ranks"] = _of_ranks(args)
    if args.plot is not None:
        replace_bytes(args.plot, draw(curves, UNITS))
    return {
        "table": "\n" + table(curves),
        "compared": "time and memory of a step / value of the line fitted to all sizes, within "
        f"{TOLERANCE:.0%}",
        "time_ratio": _farthest(curves, "time_by_line"),
        "memory_ratio": _farthest(curves, "memory_by_line"),
        **curves,
        "recipe": args.recipe,
        "smallest": f"batch {args.batches[0]}, {args.height}x{args.width}, {args.dtype}",
    }


def _farthest(curves: dict[str, dict], key: str) -> float:
    """Returns the ratio farthest from 1 among all measurements of all quantities.

    Args:
        curves: for each quantity, such as the batch size, a dict that has under `key` a list of
            ratios, measured value / the fitted line's value.
        key: "time_by_line" or "memory_by_line".
    """
    ratios = [ratio for curve in curves.values() for ratio in curve[key]]
    return max(ratios, key=lambda ratio: abs(ratio - 1))


def _curve(args: argparse.Namespace, recipe: dict, points: list[tuple[int, dict]]) -> dict:
    device = device_of(args.device)
    sizes = []
    times = []
    peaks = []
    # Use the time of the fastest round at each size, because other processes slow down some rounds.
    for size, change in points:
        step = _step(args, recipe, device, **change)
        peaks.append((measure.peak_bytes(step, device) + step.state_bytes()) / 1e6)
        times.append(
            min(measure.interleaved({"step": step}, args.rounds, device, warm_up=False)["step"])
        )
        sizes.append(size)
        del step  # free its memory, so that it isn't counted at the next size
    return compare_with_line(sizes, times, peaks)


def _step(
    args: argparse.Namespace,
    recipe: dict,
    device: torch.device,
    batch: int | None = None,
    width: int | None = None,
    bins: int | None = None,
) -> TrainingStep:
    # Change the number of bins. The standard deviation sigma of the head's Gaussian target must be
    # at least half of a bin's width, so raise it if bins are wider.
    if bins is not None:
        recipe = merge(
            recipe, {"network": {"head": {"num_bins": bins, "sigma": max(0.8, 80.0 / bins)}}}
        )
    dtype = DTYPES[args.dtype]
    layout = memory_format(Execution(), dtype is not None)
    shape = BatchShape(batch or args.batches[0], args.height, width or args.width)
    return TrainingStep(recipe, device, shape, dtype, layout)


def _of_ranks(args: argparse.Namespace) -> dict:
    shape = BatchShape(args.batches[0], args.height, args.width)
    rows = [
        ranks.measure_step(n, args.recipe, shape, args.dtype, args.rounds, args.device)
        for n in args.ranks
    ]
    times, peaks = (list(column) for column in zip(*rows, strict=True))
    # Divide the measurements for several ranks by the values expected from the first number of
    # ranks, instead of fitting a line: the same time, and memory proportional to the number of
    # ranks.
    by_one = (
        [time / times[0] for time in times],
        [peak / peaks[0] * args.ranks[0] / n for n, peak in zip(args.ranks, peaks, strict=True)],
    )
    return compare_with_line(args.ranks, times, peaks, by_one)


def table(curves: dict[str, dict]) -> str:
    """Formats the measurements as a table with one line per measured size.

    Args:
        curves: for each quantity ("batch", "crop", "bins", "ranks") the dict that
            `compare_with_line` returns: sizes, times, peak memory and their ratios to a straight
            line.

    Returns:
        The table's lines, joined by newlines.
    """
    lines = ["what     size          time        by line   memory        by line"]
    for name, curve in curves.items():
        columns = (
            curve[key] for key in ("sizes", "time_s", "time_by_line", "peak_mb", "memory_by_line")
        )
        for size, time, time_ratio, peak, peak_ratio in zip(*columns, strict=True):
            lines.append(
                f"{name:8} {size:<13} {time:<9.4g} s {time_ratio:<9.3f} {peak:<9.5g} MB  "
                f"{peak_ratio:.3f}"
            )
        lines.append(f"{'':8} {curve['says']}")
    return "\n".join(lines)


def compare_with_line(
    sizes: list[int],
    times: list[float],
    peaks_mb: list[float],
    by_line: tuple[list[float], list[float]] | None = None,
) -> dict:
    """Compares the measured times and memory of one quantity with a straight line.

    Args:
        sizes: the quantity's value at each measurement.
        times: seconds per step at each size.
        peaks_mb: peak memory at each size, MB.
        by_line: (ratios of the times, ratios of the memory) to expected values, if these are known;
            None to fit a line to each quantity and compute the ratios to the line.

    Returns:
        The first three arguments as "sizes", "time_s" and "peak_mb"; the ratios as "time_by_line"
        and "memory_by_line"; and as "says" a text that states for time and memory if they are
        linear, i.e. if all ratios are within TOLERANCE of 1.
    """
    by_line = by_line or (_ratios_to_line(sizes, times), _ratios_to_line(sizes, peaks_mb))
    by_line = dict(zip(("time", "memory"), by_line, strict=True))
    says = []
    for name, ratios in by_line.items():
        off = [
            f"{r - 1:+.0%} at {size}"
            for size, r in zip(sizes, ratios, strict=True)
            if abs(r - 1) > TOLERANCE
        ]
        says.append(f"{name}: not linear, {', '.join(off)}" if off else f"{name}: near linear")
    return {
        "sizes": sizes,
        "time_s": times,
        "peak_mb": peaks_mb,
        **{f"{name}_by_line": ratios for name, ratios in by_line.items()},
        "says": "; ".join(says),
    }


def _ratios_to_line(sizes: list[int], values: list[float]) -> list[float]:
    """Fits a straight line to measurements, and returns each measured value / the line's value.

    The fit minimises the squares of the relative errors. With one or two measurements all ratios
    are 1, since the line passes through them.

    Args:
        sizes: the x coordinates of the measurements.
        values: the y coordinates, above 0.
    """
    if len(sizes) < 3:
        return [1.0] * len(sizes)
    x = torch.tensor(sizes).double()
    y = torch.tensor(values).double()
    # Set up the equations intercept + slope * x = y, each divided by its y, so that least squares
    # minimises relative errors.
    matrix = torch.stack((torch.ones_like(x), x), 1) / y[:, None]
    line = torch.linalg.lstsq(matrix, torch.ones_like(y)[:, None]).solution[:, 0]
    return (y / (line[0] + line[1] * x)).tolist()
