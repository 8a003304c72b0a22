#!/usr/bin/env python3
"""Decodes all frames of a recipe into memory-mapped files.

    bin/cache_frames.py RECIPE

Decodes images, depth maps and cached teacher maps into `data.decoded`, else <data.root>/decoded.
Prints the space that they need and the space that is free before it writes. An interrupted job
resumes where it stopped. A second job decodes what has changed; with --verify also what holds wrong
values. Training then reads them with --set data.decoded=FOLDER.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import paths  # noqa: E402
from tiekd.distributed import entrypoint  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", type=paths.path_argument, help="YAML below model_configs/, or your own"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "both"),
        default="both",
        help="which frames, default both",
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=int, default=cores, help=f"processes, default one a core ({cores})"
    )
    parser.add_argument(
        "--verify", action="store_true", help="also compare checksums of existing files"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="values that override the recipe's",
    )
    args = parser.parse_args()
    if args.workers < 0:
        parser.error("--workers must be 0 or more")
    return args


def main() -> None:
    """Fills the cache of decoded frames."""
    args = parse_arguments()
    from tiekd.tools import cache_frames

    cache_frames.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
