"""Prints a recipe and where its values come from: the body of bin/print_config.py."""

import argparse

from tiekd.config.provenance import annotated


def run(args: argparse.Namespace) -> None:
    """Runs bin/print_config.py with its arguments; prints, and raises RecipeError."""
    print(annotated(args.recipe, args.overrides), end="")
