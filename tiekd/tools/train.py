"""Trains a recipe, or with --dry-run measures what the run will need: the body of bin/train.py."""

import argparse
from pathlib import Path

from tiekd.config import provenance
from tiekd.errors import RecipeError
from tiekd.tools.arguments import recipe_from_arguments


def run(args: argparse.Namespace) -> None:
    """Runs bin/train.py: trains, or with --dry-run reports the time, memory and disk that it needs.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: the recipe or an option is invalid, or the run fails for another reason that the
            user can fix.
    """
    try:
        _run(args)
    except RecipeError as error:
        raise provenance.with_origins(error, args.recipe, args.overrides) from error


def _run(args: argparse.Namespace) -> None:
    recipe = recipe_from_arguments(args.recipe, args)
    path = Path(args.recipe).resolve()
    # Import torch, which takes seconds, only now, so that errors in the recipe are reported without
    # delay.
    from tiekd.engine.config import read_engine_config

    engine_config = read_engine_config(args.deepspeed_config)
    if not args.dry_run:
        from tiekd.training import run as training

        training.run(recipe, path, engine_config, args.resume_from, args.accept_changes)
        return
    from tiekd.distributed import comm
    from tiekd.tools import dry_run, micro_batch

    if args.find_micro_batch:
        lines = micro_batch.find(recipe, engine_config, args.memory)
    else:
        lines = dry_run.dry_run(recipe, path, engine_config)
    if comm.is_main():
        print("\n".join(lines))
