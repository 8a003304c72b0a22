"""Growth of a training step's time and memory with batch, crop, bins and ranks.

Prints a table, draws a plot, and reports nonlinear growth. Each quantity is varied alone, with the
others at their smallest size. A line is fitted to the points; points that deviate from it by more
than a tenth are reported. For ranks, the step uses DeepSpeed and the batch size per rank is fixed,
so the time should stay constant and the total memory should be proportional to the world size.
`time_ratio` is the largest deviation of a time from its line, as time / line; `memory_ratio`
likewise. Left out: several machines.
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
    """Measures all curves.

    Args:
        args: the options of `arguments.of_growth`.

    Returns:
        A table, the two ratios, and {"batch": {"sizes", "time_s", "peak_mb", "time_by_line",
        "says", ...}, ...}.

    Raises:
        LaunchError: a plot is asked for, and matplotlib isn't installed.
    """
    if args.plot is not None:
        figures.check_installed()
    recipe = load_recipe(args.recipe)
    # One option grows at a time; the others stay at their smallest.
    curves = {
        "batch": _curve(args, recipe, [(n, {"batch": n}) for n in args.batches]),
        "crop": _curve(
            args,
            recipe,
            [(n * args.height * args.width, {"width": n * args.width}) for n in args.crops],
        ),
        "bins": _curve(args, recipe, [(n, {"bins": n}) for n in args.bins]),
    }
    # Ranks are processes of their own, each with a batch of its own.
    if args.ranks:
        curves["ranks"] = _of_ranks(args)
    if args.plot is not None:
        replace_bytes(args.plot, draw(curves, UNITS))
    return {
        "table": "\n" + table(curves),
        "compared": "time and memory of a step / what a line through its sizes says, within "
        f"{TOLERANCE:.0%}",
        "time_ratio": _farthest(curves, "time_by_line"),
        "memory_ratio": _farthest(curves, "memory_by_line"),
        **curves,
        "recipe": args.recipe,
        "smallest": f"batch {args.batches[0]}, {args.height}x{args.width}, {args.dtype}",
    }


def _farthest(curves: dict[str, dict], key: str) -> float:
    """Returns the ratio that is farthest from 1."""
    ratios = [ratio for curve in curves.values() for ratio in curve[key]]
    return max(ratios, key=lambda ratio: abs(ratio - 1))


def _curve(args: argparse.Namespace, recipe: dict, points: list[tuple[int, dict]]) -> dict:
    device = device_of(args.device)
    sizes = []
    times = []
    peaks = []
    # Use the fastest round of each point, since slower ones were disturbed by other processes.
    for size, change in points:
        step = _step(args, recipe, device, **change)
        peaks.append((measure.peak_bytes(step, device) + step.state_bytes()) / 1e6)
        times.append(
            min(measure.interleaved({"step": step}, args.rounds, device, warm_up=False)["step"])
        )
        sizes.append(size)
        del step  # its memory must not count for the next point
    return judged(sizes, times, peaks)


def _step(
    args: argparse.Namespace,
    recipe: dict,
    device: torch.device,
    batch: int | None = None,
    width: int | None = None,
    bins: int | None = None,
) -> TrainingStep:
    # Fewer bins are wider, and the target's Gaussian must cover a bin.
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
    # Relative to the first point: constant time, and memory proportional to the ranks.
    by_one = (
        [time / times[0] for time in times],
        [peak / peaks[0] * args.ranks[0] / n for n, peak in zip(args.ranks, peaks, strict=True)],
    )
    return judged(args.ranks, times, peaks, by_one)


def table(curves: dict[str, dict]) -> str:
    """Formats the curves in columns, one line per measured point."""
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


def judged(
    sizes: list[int],
    times: list[float],
    peaks_mb: list[float],
    by_line: tuple[list[float], list[float]] | None = None,
) -> dict:
    """Compares measured values with a line.

    Args:
        sizes: of the points.
        times: seconds of a step.
        peaks_mb: MB at its peak.
        by_line: ratios of times and of peaks to their line; None fits a line to each.

    Returns:
        The values, their ratios to the line, and under "says" whether all are near it.
    """
    by_line = by_line or (_by_line(sizes, times), _by_line(sizes, peaks_mb))
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


def _by_line(sizes: list[int], values: list[float]) -> list[float]:
    """Returns each value divided by that of the line that fits best, by relative squares.

    1 for up to two points, which always lie on a line.
    """
    if len(sizes) < 3:
        return [1.0] * len(sizes)
    x = torch.tensor(sizes).double()
    y = torch.tensor(values).double()
    # Dividing each row by its value makes least squares minimise relative errors.
    matrix = torch.stack((torch.ones_like(x), x), 1) / y[:, None]
    line = torch.linalg.lstsq(matrix, torch.ones_like(y)[:, None]).solution[:, 0]
    return (y / (line[0] + line[1] * x)).tolist()
