#!/usr/bin/env python3
"""Trains the network of a recipe.

    deepspeed --num_gpus 2 bin/train.py model_configs/students/tiekd_light_bts_kitti.yaml
    python bin/train.py RECIPE        one process

The work dir is --work-dir, else the recipe's `work_dir`, else work_dirs/<recipe stem>.
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
    arguments.add_recipe(parser)
    parser.add_argument(
        "--work-dir", type=paths.path_argument, help="folder for logs and checkpoints"
    )
    parser.add_argument(
        "--resume-from",
        metavar="CHECKPOINT|auto",
        type=paths.checkpoint_argument,
        help="resume from it; auto: from the newest, or start a new run if there is none",
    )
    parser.add_argument(
        "--load-from",
        metavar="CHECKPOINT",
        type=paths.path_argument,
        help="load only the weights, start at iteration 0",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="use only deterministic algorithms"
    )
    parser.add_argument("--seed", type=int, help="default: the recipe's train.seed")
    foreseen = "start, report time, memory and disk, write nothing, and end"
    parser.add_argument("--dry-run", action="store_true", help=foreseen)
    parser.add_argument(
        "--find-micro-batch", action="store_true", help="with --dry-run: find the largest that fits"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="memory of a rank, for --find-micro-batch"
    )
    arguments.add_arguments(parser)
    args = parser.parse_args()
    if args.dry_run and args.resume_from:
        parser.error("--dry-run starts at iteration 0 and writes nothing; leave --resume-from out")
    if args.accept_changes and not args.resume_from:
        parser.error("--accept-changes is for a run that is resumed; it needs --resume-from")
    if (
        args.find_micro_batch
        and not args.dry_run
        or args.memory is not None
        and not args.find_micro_batch
    ):
        parser.error("--memory needs --find-micro-batch, and that needs --dry-run")
    if args.memory is not None and not args.memory > 0:
        parser.error(f"--memory: got {args.memory}; it must be GB above 0")
    return args


def main() -> None:
    """Trains, or prints the report of a dry run."""
    args = parse_arguments()
    from tiekd.tools import train

    train.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
