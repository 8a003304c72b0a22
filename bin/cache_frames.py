#!/usr/bin/env python3
"""Decodes all frames of a recipe into memory-mapped files.

    bin/cache_frames.py RECIPE

Decodes images, depth maps and cached teacher maps into `data.decoded`, else <data.root>/decoded.
Prints the space that they need and the space that is free before it writes. An interrupted job
resumes where it stopped. A second job decodes what has changed; with --verify also what holds wrong
values. Training then reads them with --set data.decoded=FOLDER.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd.distributed import entrypoint  # noqa: E402
from tiekd.tools import arguments  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = arguments.new_parser(__doc__)
    arguments.add_recipe(parser)
    arguments.add_frames(parser)
    parser.add_argument(
        "--verify", action="store_true", help="also compare checksums of existing files"
    )
    arguments.add_overrides(parser)
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
