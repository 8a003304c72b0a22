#!/usr/bin/env python3
"""Writes the frames of a recipe into tar shards.

    bin/make_shards.py RECIPE --out FOLDER

Images and depth maps are copied as they are, and known cameras are written beside them, into
train-000000.tar, val-000000.tar and so on. The same files give the same bytes. Train from them with
`data: {name: shards, root: FOLDER, val_shards: val-*.tar, ...}` and the units of the recipe.
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
    parser.add_argument(
        "--out", required=True, type=paths.path_argument, help="folder of the shards"
    )
    parser.add_argument("--split", choices=("train", "val", "both"), default="both")
    parser.add_argument(
        "--frames-per-shard", type=int, default=1000, metavar="N", help="default: 1000"
    )
    parser.add_argument(
        "--shuffle", type=int, metavar="SEED", help="write in a random order, not in the recipe's"
    )
    arguments.add_overrides(parser)
    args = parser.parse_args()
    if args.frames_per_shard < 1:
        parser.error("--frames-per-shard must be 1 or more")
    if args.shuffle is not None and args.shuffle < 0:
        parser.error("--shuffle must be 0 or more")
    return args


def main() -> None:
    """Writes the shards."""
    args = parse_arguments()
    from tiekd.tools import make_shards

    make_shards.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
