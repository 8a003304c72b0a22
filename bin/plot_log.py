#!/usr/bin/env python3
"""Plots the logs of several runs into one image.

    bin/plot_log.py LOG.json|WORK_DIR ... --keys loss abs_rel --out x.png

Draws one chart per key, with one curve per run, which is named by its work dir. All .log.json files
of a work dir are joined, since every resume starts a new file. Keys are those in the rows of these
files: losses, lr, grad_norm, time, and metrics of evaluations.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import paths  # noqa: E402
from tiekd.distributed import entrypoint  # noqa: E402
from tiekd.tools import arguments  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument(
        "logs",
        metavar="LOG",
        nargs="+",
        type=paths.path_argument,
        help=".log.json files, or work dirs",
    )
    parser.add_argument("--keys", nargs="+", action="extend", help="keys of the rows, default loss")
    parser.add_argument("--out", metavar="PNG", type=paths.path_argument, required=True)
    parser.add_argument(
        "--by", choices=("iteration", "epoch", "time"), default="iteration", help="the x axis"
    )
    parser.add_argument(
        "--smooth", type=int, default=1, metavar="N", help="running mean over N rows"
    )
    parser.add_argument("--log-y", action="store_true", help="logarithmic y axes")
    args = parser.parse_args()
    args.keys = args.keys or ["loss"]
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out: got {args.out}; it must end in .png")
    if args.smooth < 1:
        parser.error(f"--smooth: got {args.smooth}; it must be a whole number from 1")
    return args


def main() -> None:
    """Plots the logs."""
    args = parse_arguments()
    from tiekd.tools import plot_log

    runs = plot_log.read_runs(args.logs)
    figure = plot_log.plot(runs, args.keys, args.by, args.smooth, args.log_y)
    plot_log.write(args.out, figure)
    print(f"{len(runs)} runs, {', '.join(args.keys)}: {args.out}")


if __name__ == "__main__":
    entrypoint.program(main)
