"""What the command line and `recipe["train"]` say about a run.

Every option of bin/train.py that says what is learned becomes a value of the recipe, so that the saved recipe has it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiekd import paths
from tiekd.config import load_recipe, merge
from tiekd.errors import RecipeError


@dataclass(frozen=True)
class TrainSettings:
    """`recipe["train"]`. batch_size is global; epochs or iterations; clip_norm is L2, 0 for none.

    max_bad_iterations: so many in a row whose loss or gradient isn't finite end the run, 0: none do. timeout_minutes:
    how long ranks wait for one that doesn't come.
    """

    batch_size: int = 16
    epochs: int | None = None
    iterations: int | None = None
    clip_norm: float = 35.0
    seed: int = 0
    lr_scaling: str = "none"
    deterministic: bool = False
    validate: bool = True
    max_bad_iterations: int = 50
    timeout_minutes: float = 30.0

    def __post_init__(self):
        for name in ("batch_size", "epochs", "iterations"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise RecipeError(f"train.{name}: got {value!r}; it must be a whole number from 1")
        if self.batch_size > 65536:
            raise RecipeError(f"train.batch_size: got {self.batch_size}; it must be at most 65536 pictures")
        if not isinstance(self.max_bad_iterations, int) or self.max_bad_iterations < 0:
            raise RecipeError(
                f"train.max_bad_iterations: got {self.max_bad_iterations!r}; it must be a whole number, 0 for no end"
            )
        if not 0 < self.timeout_minutes <= 1e6:
            raise RecipeError(f"train.timeout_minutes: got {self.timeout_minutes}; it must be above 0, at most 1e6")
        if self.seed < 0:
            raise RecipeError(f"train.seed: got {self.seed}; it must be a whole number from 0")
        if (self.epochs is None) == (self.iterations is None):
            raise RecipeError("train: give either epochs or iterations")


@dataclass(frozen=True)
class LoadSettings:
    """`recipe["load"]`: weights to start from (a file, checkpoint or work dir), and patterns of what may not fit."""

    checkpoint: str | None = None
    ignore: Sequence[str] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that bin/train.py and bin/resume share."""
    parser.add_argument(
        "--deepspeed_config",
        metavar="JSON",
        type=paths.option,
        help="engine config; default ds_configs/fp32.json",
    )
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], dest="overrides")
    parser.add_argument("--no-validate", action="store_true", help="no evaluation, so no best checkpoint either")
    parser.add_argument(
        "--accept-changes", action="store_true", help="resume though data or teacher have changed"
    )
    parser.add_argument("--timeout", type=float, metavar="MINUTES", help="how long to wait for a lost rank, default 30")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")


def recipe_from_arguments(path: str | Path, args: argparse.Namespace) -> dict:
    """The recipe with everything that the command line says about it; the work dir is filled in."""
    recipe = load_recipe(path, args.overrides)
    train_options = {"seed": getattr(args, "seed", None), "deterministic": getattr(args, "deterministic", None) or None}
    train_options["timeout_minutes"] = args.timeout
    if args.no_validate:
        train_options["validate"] = False
    given = {"train": {key: value for key, value in train_options.items() if value is not None}}
    if getattr(args, "load_from", None):
        given["load"] = {"checkpoint": str(Path(args.load_from).resolve())}
    if getattr(args, "work_dir", None):
        given["work_dir"] = str(args.work_dir)
    recipe = merge(recipe, given)
    if "work_dir" not in recipe:
        from tiekd import checkpoint  # with torch, which no --help needs

        recipe["work_dir"] = str(checkpoint.work_dir_of(path))
    paths.refuse_unfilled(recipe["work_dir"], "work_dir")
    return recipe
