"""Prints a recipe and the files that its values come from: the body of bin/print_config.py."""

import argparse

from tiekd.config.provenance import annotated


def run(args: argparse.Namespace) -> None:
    """Runs bin/print_config.py: prints a recipe as YAML, with the file that sets each value.

    Args:
        args: the program's parsed command line.

    Raises:
        RecipeError: the recipe is invalid.
    """
    print(annotated(args.recipe, args.overrides), end="")
