"""Resumes a run from its newest complete checkpoint: the body of bin/resume."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tiekd import console
from tiekd.config import provenance
from tiekd.distributed import hostfile
from tiekd.errors import LaunchError, RecipeError
from tiekd.tools.arguments import recipe_from_arguments, with_visible_devices
from tiekd.workdir import launch_record


def run(given: Sequence[str], rest: Sequence[str], args: argparse.Namespace, program: str) -> int:
    """Runs bin/resume. The process that the user starts runs the launcher; a rank trains.

    A run on one rank that was started without the launcher is resumed without it, unless `given`
    has options.

    Args:
        given: the options for the launcher on the command line.
        rest: the other arguments of the command line.
        args: the parsed `rest`.
        program: the path of bin/resume, which the launcher runs on each rank.

    Returns:
        The exit code.

    Raises:
        UserError: there is no run, or it can't be resumed with these options.
    """
    if args.restarts < 0:
        raise LaunchError(f"--restarts {args.restarts}: give how often, from 0")
    record = launch_record.read(args.work_dir)
    if is_finished(args):
        return 0
    starts = "RANK" not in os.environ and (
        given or record.launcher == "deepspeed" or record.world_size > 1
    )
    # Check the launcher's options first, so that a mistake in them is reported before any process
    # starts.
    options = record.launcher_options(given, args.work_dir) if starts else []
    if starts:
        hostfile.check_options(options)
    # A number of GPUs on the command line means devices of CUDA_VISIBLE_DEVICES; without one the
    # devices are those of the last launch.
    on_devices = options
    if starts and any(option.startswith("--num_gpus=") for option in given):
        on_devices = with_visible_devices(options, takes_first=True)
    if given and "RANK" in os.environ:
        raise LaunchError(
            f"{given[0]}: a launcher has started this already; give its options before "
            f"{console.command('resume')}"
        )
    # Start the launcher if this process isn't a rank: with --restarts as a child process that is
    # restarted after a crash, otherwise in place of this process.
    if args.restarts > 0:
        if "RANK" in os.environ:
            raise LaunchError(
                f"--restarts starts the launcher itself; call {console.command('resume')} without "
                "deepspeed or srun before it"
            )
        from tiekd.tools.supervise import supervise

        return supervise(
            [sys.executable, program, *without_restarts(sys.argv[1:])], args.work_dir, args.restarts
        )
    if starts:
        if on_devices != options:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        launch_record.replace_by_launcher(on_devices, program, rest)

    if "RANK" not in os.environ:
        _select_devices(record.visible_devices)
    # Train, since this process is a rank. Use the recipe and the engine config that the run saved,
    # and the current folder of the run's first start.
    from tiekd.engine.config import read_engine_config, reset_recipe_values
    from tiekd.training import run as training

    # Resolve the path before the current folder changes.
    recipe_path = (args.work_dir / "config.yaml").resolve()
    recipe = recipe_from_arguments(recipe_path, args)
    recipe["work_dir"] = str(args.work_dir.resolve())
    saved_config = args.work_dir / "ds_config.json"
    if not args.deepspeed_config and not saved_config.exists():
        raise LaunchError(
            f"{saved_config}: the run's engine config is missing; put it back, or give one with "
            "--deepspeed_config"
        )
    engine_config = read_engine_config(args.deepspeed_config or saved_config)
    if not args.deepspeed_config:
        other_batch = any(override.startswith("train.batch_size=") for override in args.overrides)
        engine_config = reset_recipe_values(
            engine_config, int(os.environ.get("WORLD_SIZE", 1)), other_batch
        )
    try:
        os.chdir(record.folder)
    except OSError as error:
        raise LaunchError(
            f"{record.folder}, where the run was started and its relative paths begin, can't be "
            f"entered ({error.strerror}); make it, or change folder in "
            f"{args.work_dir / launch_record.RECORD}"
        ) from None
    try:
        training.run(recipe, Path(record.recipe), engine_config, "auto", args.accept_changes)
    except RecipeError as error:
        raise provenance.with_origins(error, recipe_path, args.overrides) from error
    return 0


def _select_devices(visible: str | None) -> None:
    """Selects the GPU of a run without a launcher: that of its last start, unless the user says.

    Args:
        visible: The value of CUDA_VISIBLE_DEVICES at that start; None if it was not set.

    Raises:
        LaunchError: This machine has no such GPU. Without the error the run would use the CPU.
    """
    if visible is None or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    if visible.startswith("MIG-"):
        return  # start_rank refuses one that isn't there
    try:
        with_visible_devices(["--num_gpus=1"], takes_first=True)
    except LaunchError as error:
        raise LaunchError(
            f"{error}; the run was started with it, so set CUDA_VISIBLE_DEVICES to what is here"
        ) from None


def is_finished(args: argparse.Namespace) -> bool:
    """Returns True if the run in the work dir is complete, and then prints this on rank 0.

    A run is complete if it has finished, or if the hook early_stop has stopped it.

    With overrides (--set) the result is False, since the changed recipe may train longer.

    Args:
        args: the parsed command line of bin/resume.
    """
    from tiekd.workdir.workdir import STOPPED_EARLY, read_outcome

    outcome = read_outcome(args.work_dir)
    finished = outcome is not None and outcome.is_complete and not args.overrides
    if finished and os.environ.get("RANK", "0") == "0":
        done = f"{outcome.iteration} of {outcome.total_iterations} iterations, {outcome.time}"
        told = f"is {outcome.outcome} ({done}); to train longer, --set train.epochs=N or "
        told += "train.iterations=N"
        if outcome.outcome == STOPPED_EARLY:
            told = f"was stopped early ({done}): {outcome.reason}; to train on, give all hooks of "
            told += "the recipe with a larger patience, as in "
            told += "--set 'hooks=[{name: early_stop, patience: N}]'"
        print(f"{args.work_dir} {told}")
    return finished


def without_restarts(arguments: list[str]) -> list[str]:
    """Returns command-line arguments without the option --restarts and its value.

    Args:
        arguments: the arguments of bin/resume, without the program's name.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--restarts")
    return parser.parse_known_args(arguments)[1]
