"""Converts a published checkpoint to tiekd's format, or back: the body of bin/import_weights.py."""

import argparse

from tiekd.config.recipe import load_recipe
from tiekd.data import resize as resizes
from tiekd.errors import CheckpointError, RecipeError
from tiekd.models.weights import conversion


def run(args: argparse.Namespace) -> None:
    """Runs bin/import_weights.py: converts a checkpoint, prints a summary, and writes --out.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: the recipe has no network, the weights don't fit the network, or the output file
            exists already.
    """
    recipe = load_recipe(args.recipe, args.overrides)
    node = recipe.get("network")
    if node is None:
        raise RecipeError(
            f"{args.recipe}: describes no network; give the recipe of the network in {args.source}"
        )
    if args.out.exists() and not args.overwrite:
        raise CheckpointError(
            f"{args.out}: exists; give another --out, or --overwrite to replace it"
        )
    convert = conversion.to_published if args.to_published else conversion.from_published
    converted = convert(args.source, node)
    print(f"{args.source} for {args.recipe}\n{conversion.summary(converted)}")
    # Check the weights after the summary is printed, which shows the mismatch if the check fails.
    conversion.check(converted, args.source, args.recipe)
    if args.to_published:
        conversion.write(args.out, {"meta": {}, "state_dict": converted.tensors})
    else:
        resize = resizes.of_data(recipe.get("data", {})).node()
        ours = {"state_dict": converted.tensors, "network": node, "iteration": 0, "resize": resize}
        conversion.write(args.out, ours)
    print(f"written: {args.out}")
