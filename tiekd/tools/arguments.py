"""Defines command-line options that several programs share, and applies them to a run's recipe.

Every option of bin/train.py that affects what is learned is written into the recipe, so that the
recipe that a run saves is complete.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tiekd import console, paths
from tiekd.config import shipped
from tiekd.config.recipe import load_recipe, merge, work_dir_of
from tiekd.distributed import visible_devices
from tiekd.errors import LaunchError

_LAUNCHER_OPTIONS = (
    "num_gpus",
    "num_nodes",
    "include",
    "exclude",
    "hostfile",
    "master_port",
    "master_addr",
    "launcher",
)


def new_parser(description: str, usage: str | None = None) -> argparse.ArgumentParser:
    """Returns a command-line parser whose help begins with a description.

    Args:
        description: the description. Its line breaks are kept. Commands in it are written in the
            form `bin/train.py`; in an installed tiekd the help shows them in the form `tiekd
            train`.
        usage: the usage line; None for the one that argparse generates.
    """
    return argparse.ArgumentParser(
        usage=usage,
        description=console.respelled(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def split_launcher_options(words: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Splits a command line into options of DeepSpeed's launcher and all other words.

    Args:
        words: the command line without the program's name; None for that of this process.

    Returns:
        Two lists: the launcher's options, each as one word such as `--num_gpus=2`; and the other
        words, unchanged and in order.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in _LAUNCHER_OPTIONS:
        parser.add_argument(f"--{name}", type=paths.path_argument if name == "hostfile" else str)
    found, rest = parser.parse_known_args(words)
    given = [f"--{name}={value}" for name, value in vars(found).items() if value is not None]
    return given, rest


def with_visible_devices(options: Sequence[str], takes_first: bool = False) -> list[str]:
    """Returns options of DeepSpeed's launcher with the devices of CUDA_VISIBLE_DEVICES in them.

    The launcher ignores this variable if it is given a number of GPUs. Other variables that the
    devices need are set in this process's environment; this one stays.

    Args:
        options: The launcher's options, each as `--name=value`.
        takes_first: True to use the first of the variable's devices if it lists more than there are
            ranks; False to refuse this.

    Raises:
        LaunchError: The variable doesn't agree with the number of GPUs, or names no device.
    """
    try:
        found, changes = visible_devices.in_options(options, os.environ, takes_first)
    except visible_devices.Refused as error:
        raise LaunchError(str(error)) from None
    os.environ.update(changes)
    return found


def recipe_argument(text: str) -> Path:
    """Converts a recipe's path or name from the command line; used as `type` of argparse arguments.

    Args:
        text: a path, in which a leading `~` is expanded, or the name of a recipe that comes with
            tiekd.

    Returns:
        The path of the recipe's file. If there is no such file, the path that the user gave.

    Raises:
        argparse.ArgumentTypeError: the text is empty, begins with an unknown `~name`, or contains
            `$NAME`, which isn't expanded, and there is no such file.
    """
    return shipped.find(shipped.RECIPES, paths.path_argument(text))


def experiment_argument(text: str) -> Path:
    """Converts the path or name of an experiment's YAML file; used as `type` of argparse arguments.

    Args:
        text: a path, in which a leading `~` is expanded, or the name of an experiment that comes
            with tiekd.

    Returns:
        The path of the YAML file. If there is no such file, the path that the user gave.

    Raises:
        argparse.ArgumentTypeError: the text is empty, begins with an unknown `~name`, or contains
            `$NAME`, which isn't expanded, and there is no such file.
    """
    return shipped.find(shipped.EXPERIMENTS, paths.path_argument(text))


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument `recipe`, a recipe's path or name, to a program's parser.

    Args:
        parser: the program's parser.
    """
    parser.add_argument(
        "recipe", type=recipe_argument, help="a YAML file, or a recipe of tiekd by its name"
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--set KEY=VALUE [KEY=VALUE ...]`, which may be repeated.

    The parsed option is `overrides`, the list of all its values as text, such as "train.epochs=3".

    Args:
        parser: the program's parser.
    """
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="values that override the recipe's",
    )


def add_frames(parser: argparse.ArgumentParser) -> None:
    """Adds the options `--split` and `--workers` of programs that read all frames of a split.

    `--split` is "train", "val" or "both", which is the default. `--workers` is the number of
    processes that read frames; the default is one per CPU core.

    Args:
        parser: the program's parser.
    """
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


def add_data_set(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--data-set NAME`, for recipes that have several data sets.

    It makes the program use only the data set of this name. Without the option, the program uses
    all data sets, one after the other.

    Args:
        parser: the program's parser.
    """
    parser.add_argument(
        "--data-set",
        metavar="NAME",
        help="use only this one of the recipe's data sets, by its name or number from 0; default "
        "each in turn",
    )


def add_evaluated_set(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--data-set NAME` of a program that takes one of several data sets.

    Args:
        parser: the program's parser.
    """
    parser.add_argument(
        "--data-set",
        metavar="NAME",
        help="the one of the recipe's data sets that is evaluated, by its name or number from 0",
    )


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--local_rank`, which DeepSpeed's launcher passes to each rank.

    Its value isn't used, but without the option the parser would refuse it.

    Args:
        parser: the program's parser.
    """
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that bin/train.py and bin/resume share, such as `--set` and `--no-validate`.

    Args:
        parser: the program's parser.
    """
    parser.add_argument(
        "--deepspeed_config",
        metavar="JSON",
        type=paths.path_argument,
        help="engine config: your file, or one of tiekd by its name; default fp32",
    )
    add_overrides(parser)
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
    add_local_rank(parser)


def recipe_from_arguments(path: str | Path, args: argparse.Namespace) -> dict:
    """Loads a recipe and applies the command line's options to it.

    Args:
        path: the recipe's file.
        args: the parsed options of bin/train.py or bin/resume.

    Returns:
        The recipe. Its `work_dir` is the command line's, else the recipe file's; if neither gives
        one, it is derived from the file's name.

    Raises:
        RecipeError: a value isn't allowed, or the work dir's path contains `$NAME`, which isn't
            expanded.
    """
    recipe = load_recipe(path, args.overrides)
    train_options = {
        "seed": getattr(args, "seed", None),
        "deterministic": getattr(args, "deterministic", None) or None,
    }
    train_options["timeout_minutes"] = args.timeout
    if args.no_validate:
        train_options["validate"] = False
    # Leave out options that aren't given, which are None, so that the recipe's values are kept.
    given = {"train": {key: value for key, value in train_options.items() if value is not None}}
    if getattr(args, "load_from", None):
        given["load"] = {"checkpoint": str(Path(args.load_from).resolve())}
    if getattr(args, "work_dir", None):
        given["work_dir"] = str(args.work_dir)
    recipe = merge(recipe, given)
    if "work_dir" not in recipe:
        recipe["work_dir"] = str(work_dir_of(path))
    paths.refuse_unfilled(recipe["work_dir"], "work_dir")
    return recipe
