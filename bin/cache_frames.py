#!/usr/bin/env python3
"""Decodes all frames of a recipe into memory-mapped files.

    bin/cache_frames.py RECIPE

Decodes images, depth maps and cached teacher maps into the folder `data.decoded`, by default
<data.root>/decoded. Before it writes, it prints the required and the free disk space. An
interrupted job resumes where it stopped. A repeated job decodes only changed files; with --verify
also those whose cached values are wrong. Training reads the cache with --set data.decoded=FOLDER.
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
    arguments.add_data_set(parser)
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
