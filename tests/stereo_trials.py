#!/usr/bin/env python3
"""Measures the stereo teacher's depth and sigma against ground truth, by range of depth.

    python tests/stereo_trials.py --root FOLDER --baseline 0.5327 --right left/ right/ --plot x.png

FOLDER has KITTI's layout, with the pairs' left images in --split. Prints a row for each range and
one for all: the share of measured pixels with a depth, the mean relative error and bias, the error
of disparities (the 68 % quantile of its absolute value), and the share of errors below sigma and
below two sigma. With --without-every 3 every third pair is left out, so that the settings can be
chosen on those. Intervals are 95 %, from 1000 bootstraps over pairs, whose pixels aren't
independent. The plot needs matplotlib (extra `plot`) and shows no image.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd.data.datasets import kitti  # noqa: E402
from tiekd.files import replace_bytes  # noqa: E402
from tiekd.teachers.stereo import Options, StereoTeacher  # noqa: E402
from tiekd.visualization import figures  # noqa: E402

MAX_DEPTH_M = 80.0
RANGES = {"near, < 10 m": (0, 10), "mid, 10-25 m": (10, 25), "far, 25-80 m": (25, 80)}
ALL = "all, < 80 m"
EDGES = np.array([5, 7, 10, 14, 19, 25, 33, 43, 57, 80])  # of the plot's ranges, metres
BOOTSTRAPS = 1000
COLOURS = ("#1f77b4", "#d66814", "#777777")


def measure(teacher: StereoTeacher, frames) -> tuple[np.ndarray, float, float]:
    """Compares the teacher's depth with the ground truth of frames.

    Returns:
        (N, 5): the pair's number, truth, depth (0 where there is none), sigma, and the error of the
        disparity in pixels, of each measured pixel; the mean share of all pixels with a depth; and
        the mean CPU time of a pair in seconds.
    """
    rows, shares, seconds = [], [], []
    for number, frame in enumerate(frames):
        begun = time.process_time()
        found = teacher.estimate(frame)
        seconds.append(time.process_time() - begun)
        truth = kitti.read_measured_levels(Path(frame.depth))[0].numpy() / kitti.UNITS_PER_M
        known = (truth > 0) & (truth < MAX_DEPTH_M)
        true, depth, sigma = (values[known] for values in (truth, found.depth, found.sigma))
        scale = frame.camera.focal_x * teacher.baseline_m
        error = scale / np.where(depth > 0, depth, np.inf) - scale / true
        rows.append(np.stack([np.full(true.shape, number), true, depth, sigma, error], axis=1))
        shares.append((found.depth > 0).mean())
    return np.concatenate(rows), float(np.mean(shares)), float(np.mean(seconds))


def figures_of(rows: np.ndarray) -> dict[str, float]:
    """Returns the figures of measured pixels, (N, 5) as `measure` returns them."""
    has = rows[:, 2] > 0
    _, true, depth, sigma, error = rows[has].T
    ratio = (depth - true) / true
    below = np.abs(depth - true) / sigma
    return {
        "coverage": has.mean(),
        "abs_rel": np.abs(ratio).mean(),
        "bias": ratio.mean(),
        "median_bias": np.median(ratio),
        "disparity_error_px": np.quantile(np.abs(error), 0.6827),
        "median_disparity_error_px": np.median(error),
        "within_sigma": (below < 1).mean(),
        "within_2_sigma": (below < 2).mean(),
    }


def intervals_of(rows: np.ndarray, keys: tuple[str, ...]) -> dict[str, list[float]]:
    """Returns the 95 % intervals of mean figures, from bootstraps over pairs."""
    numbers = np.unique(rows[:, 0])
    sums = []
    for number in numbers:
        own = rows[rows[:, 0] == number]
        found, count = figures_of(own), (own[:, 2] > 0).sum()
        sums.append([count, *(found[key] * count for key in keys)])
    sums, draw = np.array(sums), np.random.default_rng(0)
    chosen = draw.integers(0, len(numbers), (BOOTSTRAPS, len(numbers)))
    totals = sums[chosen].sum(1)
    low, high = np.quantile(totals[:, 1:] / totals[:, :1], (0.025, 0.975), axis=0)
    return {key: [low[i], high[i]] for i, key in enumerate(keys)}


def within(rows: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns the rows whose true depth is in [low, high)."""
    return rows[(rows[:, 1] >= low) & (rows[:, 1] < high)]


def draw(rows: np.ndarray) -> bytes:
    """Draws error, reliability of sigma, and coverage against depth; returns a PNG."""
    figure = figures.new_figure(1080, 330)
    bias, sigma, cover = figure.subplots(1, 3)
    parts = [within(rows, low, high) for low, high in zip(EDGES[:-1], EDGES[1:], strict=True)]
    found = [figures_of(part) for part in parts]
    middles = np.sqrt(EDGES[:-1] * EDGES[1:])
    panels = (
        (bias, ("abs_rel", "median_bias"), ("mean |error|", "median error"), "error / depth"),
        (
            sigma,
            ("within_sigma", "within_2_sigma"),
            ("1 sigma", "2 sigma"),
            "share of errors below",
        ),
        (cover, ("coverage",), ("with a depth",), "share of measured pixels"),
    )
    for axes, keys, names, label in panels:
        for key, name, colour in zip(keys, names, COLOURS, strict=False):
            axes.plot(middles, [each[key] for each in found], "o-", color=colour, label=name, ms=4)
        axes.set_xscale("log")
        axes.set_xticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
        axes.minorticks_off()
        axes.set_xlabel("depth, m")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    for share in (0.6827, 0.9545):  # those of a Gaussian
        sigma.axhline(share, color=COLOURS[2], linestyle=":", linewidth=1)
    sigma.set_ylim(0, 1)
    cover.set_ylim(0, 1)
    bias.axhline(0, color=COLOURS[2], linestyle=":", linewidth=1)
    return figures.png_of(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="train.txt", help="default train.txt")
    parser.add_argument("--baseline", type=float, required=True, help="metres")
    parser.add_argument("--right", nargs=2, metavar=("TEXT", "REPLACEMENT"))
    parser.add_argument("--offset", type=float, default=0.0, help="pixels, default 0")
    parser.add_argument("--without-every", type=int, metavar="N")
    parser.add_argument("--out", type=Path, metavar="JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    # Frames without a right image by the rule are left out: their list may have others, too.
    options = kitti.KittiOptions(str(args.root), train_split=args.split)
    frames = kitti.build(options, "train", MAX_DEPTH_M).frames
    frames = [frame for frame in frames if args.right is None or args.right[0] in frame.image]
    right = None if args.right is None else tuple(args.right)
    teacher = StereoTeacher(Options(baseline=args.baseline, right=right, offset=args.offset))
    print(*teacher.check_frames(frames), sep="\n")
    if args.without_every is not None:
        frames = [frame for i, frame in enumerate(frames) if i % args.without_every]
    rows, share, seconds = measure(teacher, frames)
    result = {name: figures_of(within(rows, *limits)) for name, limits in RANGES.items()}
    result[ALL] = figures_of(rows)
    ranges = intervals_of(rows, ("abs_rel", "bias", "within_sigma", "within_2_sigma"))
    print(f"{len(frames)} pairs, depth on {share:.3f} of all pixels, {seconds:.2f} s CPU a pair")
    print("| range | " + " | ".join(result[ALL]) + " |")
    for name, row in result.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |")
    print("95 %:", {key: [round(float(v), 3) for v in pair] for key, pair in ranges.items()})
    if args.out is not None:
        told = {"pairs": len(frames), "valid": share, "figures": result, "intervals": ranges}
        replace_bytes(args.out, json.dumps(told, indent=1, default=float).encode())
    if args.plot is not None:
        replace_bytes(args.plot, draw(rows))


if __name__ == "__main__":
    main()
