"""The command line's options about a run, and the recipe that they change.

Every option of bin/train.py that affects what is learned becomes a value of the recipe, so that the
saved recipe has it.
"""

import argparse
from pathlib import Path

from tiekd import paths
from tiekd.config.recipe import load_recipe, merge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that bin/train.py and bin/resume share."""
    parser.add_argument(
        "--deepspeed_config",
        metavar="JSON",
        type=paths.path_argument,
        help="engine config; default ds_configs/fp32.json",
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], dest="overrides"
    )
    parser.add_argument(
        "--no-validate", action="store_true", help="no evaluation, so no best checkpoint either"
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="resume though data or teacher have changed"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="MINUTES",
        help="how long to wait for a lost rank, default 30",
    )
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")


def recipe_from_arguments(path: str | Path, args: argparse.Namespace) -> dict:
    """Loads a recipe and applies the command line's options to it.

    Args:
        path: the recipe's file.
        args: the parsed options of bin/train.py or bin/resume.

    Returns:
        The recipe, with `work_dir` filled in.

    Raises:
        RecipeError: a value isn't allowed, or the work dir's path has an unknown `$NAME`.
    """
    recipe = load_recipe(path, args.overrides)
    train_options = {
        "seed": getattr(args, "seed", None),
        "deterministic": getattr(args, "deterministic", None) or None,
    }
    train_options["timeout_minutes"] = args.timeout
    if args.no_validate:
        train_options["validate"] = False
    # An option that isn't given leaves the recipe's value.
    given = {"train": {key: value for key, value in train_options.items() if value is not None}}
    if getattr(args, "load_from", None):
        given["load"] = {"checkpoint": str(Path(args.load_from).resolve())}
    if getattr(args, "work_dir", None):
        given["work_dir"] = str(args.work_dir)
    recipe = merge(recipe, given)
    if "work_dir" not in recipe:
        from tiekd.config.recipe import work_dir_of  # imports torch, which --help doesn't need

        recipe["work_dir"] = str(work_dir_of(path))
    paths.refuse_unfilled(recipe["work_dir"], "work_dir")
    return recipe
