#!/usr/bin/env python3
"""Prints a recipe with its bases and overrides merged, and the origin of each value.

    bin/print_config.py RECIPE [--set KEY=VALUE ...]

The output is itself a recipe with the same values, in one file.
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
    arguments.add_overrides(parser)
    return parser.parse_args()


def main() -> None:
    """Prints the resolved recipe."""
    args = parse_arguments()
    from tiekd.tools import print_config

    print_config.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
