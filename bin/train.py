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
    add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    from tiekd.engine import read_engine_config
    from tiekd.options import recipe_from_arguments
    from tiekd.run import run

    recipe = recipe_from_arguments(args.recipe, args)
    run(recipe, Path(args.recipe).resolve(), read_engine_config(args.deepspeed_config), args.resume_from)


if __name__ == "__main__":
    sys.exit(launch.run(main))
