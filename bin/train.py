#!/usr/bin/env python3
"""Trains a recipe: `deepspeed --num_gpus 2 bin/train.py model_configs/students/light_kitti.yaml`.

Also runs as plain `python bin/train.py RECIPE` (one process). Work dir: --work-dir, else the recipe's `work_dir`, else
work_dirs/<recipe stem>.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import launch  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    from tiekd.options import add_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML below model_configs/, or your own")
    parser.add_argument("--work-dir", help="where logs and checkpoints go")
    parser.add_argument("--resume-from", metavar="CHECKPOINT|auto", help="go on from this folder, or the newest")
    parser.add_argument("--load-from", metavar="CHECKPOINT", help="take only the weights, start at iteration 0")
    parser.add_argument("--deterministic", action="store_true", help="only algorithms that repeat bit for bit")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--dry-run", action="store_true", help="begin, tell times, memory and disk, write nothing, end")
    add_arguments(parser)
    args = parser.parse_args()
    if args.dry_run and args.resume_from:
        parser.error("--dry-run begins at iteration 0 and writes nothing; leave --resume-from out")
    return args


def main() -> None:
    args = parse_arguments()
    from tiekd.engine import read_engine_config
    from tiekd.options import recipe_from_arguments

    recipe, path = recipe_from_arguments(args.recipe, args), Path(args.recipe).resolve()
    engine_config = read_engine_config(args.deepspeed_config)
    if args.dry_run:
        from tiekd.distributed import is_main
        from tiekd.dry_run import dry_run

        lines = dry_run(recipe, path, engine_config)
        if is_main():
            print("\n".join(lines))
    else:
        from tiekd.run import run

        run(recipe, path, engine_config, args.resume_from)


if __name__ == "__main__":
    sys.exit(launch.run(main))
