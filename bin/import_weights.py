#!/usr/bin/env python3
"""Converts a published checkpoint to a tiekd weights file, or back.

    bin/import_weights.py SOURCE.pth RECIPE --out OUT.pth

Prints for every tensor whether it fits the recipe's network. If a tensor is missing or unexpected,
nothing is written. --load-from, teacher.checkpoint and bin/evaluate.py also accept published files
without conversion; this program shows beforehand whether they fit.

With --to-published, the tensors of a tiekd weights file (such as a work dir's best_*.pth) get the
names that the published code uses. The published networks have unused parameters, which tiekd's
networks and therefore the written file lack, so load the file there with strict=False.
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
    parser.add_argument("source", type=paths.path_argument, help="checkpoint to convert")
    parser.add_argument(
        "recipe",
        type=arguments.recipe_argument,
        help="recipe of its network (of a teacher: the teacher's own recipe)",
    )
    parser.add_argument("--out", type=paths.path_argument, required=True, help="the file to write")
    parser.add_argument(
        "--to-published", action="store_true", help="convert tiekd's names to the published ones"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    arguments.add_overrides(parser)
    return parser.parse_args()


def main() -> None:
    """Converts the checkpoint."""
    args = parse_arguments()
    from tiekd.tools import import_weights

    import_weights.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
