#!/usr/bin/env python3
"""Reads all frames of a recipe once and reports faults in them.

    bin/check_data.py RECIPE [--split train]

Finds files that are missing, truncated, or of wrong depth, size or unit; ground truth without a
valid pixel; duplicate images; and training frames that are, or nearly are, validation frames
(tiekd/data/checks.py has the rules). Reports how depth files are read, which depth values are
suspiciously frequent, which images EXIF rotates, which files have no partner, how many frames have
intrinsics and of which focal lengths, and where the images' EXIF contradicts these.

Prints a table, and writes report.txt, report.json and cleaned split files into --out, where it
never replaces existing files. The exit code is 0 if nothing is found, 1 if something is, 2 for an
error in the arguments.
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
    arguments.add_recipe(parser)
    arguments.add_frames(parser)
    parser.add_argument(
        "--out", metavar="DIR", type=paths.path_argument, help="default work_dirs/check_<recipe>"
    )
    parser.add_argument(
        "--neighbours",
        metavar="N",
        type=int,
        default=10,
        help="report training frames this near a validation frame of the same video, "
        "default 10 (0: none)",
    )
    parser.add_argument(
        "--drop",
        metavar="KIND",
        nargs="+",
        choices=("duplicate", "shared", "neighbour"),
        default=[],
        help="also leave these training frames out of the cleaned split",
    )
    arguments.add_data_set(parser)
    arguments.add_overrides(parser)
    args = parser.parse_args()
    if args.workers < 0 or args.neighbours < 0:
        parser.error("--workers and --neighbours must be 0 or more")
    return args


def main() -> int:
    """Checks the frames and writes the report; returns the exit code."""
    args = parse_arguments()
    from tiekd.tools import check_data

    return check_data.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
