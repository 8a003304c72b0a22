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
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import paths  # noqa: E402
from tiekd.distributed import entrypoint  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=paths.option, help="YAML below model_configs/, or your own")
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
    args = parse_arguments()
    import tiekd
    from tiekd.data.decoded_cache import folder_of
    from tiekd.tools import cache_frames

    recipe = tiekd.load_recipe(args.recipe, args.overrides)
    validates = recipe.get("train", {}).get("validate", True)
    both = ("train", "val") if validates else ("train",)
    sources = cache_frames.sources_of(recipe, both if args.split == "both" else (args.split,), sys.stdout)
    folder = folder_of(recipe["data"], default="decoded")
    paths.refuse_unfilled(folder, "data.decoded")
    cache_frames.fill(recipe, sources, folder, args.workers, args.verify, sys.stdout)
    print(f"Read from them with --set {shlex.quote(f'data.decoded={folder.resolve()}')}")


if __name__ == "__main__":
    entrypoint.program(main)
