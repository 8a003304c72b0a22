#!/usr/bin/env python3
"""Writes a teacher's depth maps for all frames of a split.

    deepspeed --num_gpus 4 bin/cache_teacher.py RECIPE

RECIPE is a student's recipe, whose `teacher` predicts the maps, or a teacher's own recipe, whose
best weights (or --checkpoint) are used. Students then learn from `teacher: {maps: FOLDER}` and need
no teacher in memory.

Maps have the published format: 16-bit PNG of depth / max_depth * 65535, named by the image's path.
Maps of images in tar shards are tar shards, too. If the teacher sees farther than the student,
max_depth is the teacher's, which the manifest says. A network of tiekd predicts with flip averaging
unless --set teacher.flip=false is given; a model of another kind only with teacher.flip=true. Runs
on one or many ranks. An interrupted job resumes where it stopped. Each of several teachers gets a
folder of its own, and a teacher's maps of sigma are in the folder sigma beside those of depth. Of
several data sets those with a teacher are taken in turn, or the one of --data-set.
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
        "--split", choices=("train", "val"), default="train", help="which frames, default train"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=paths.path_argument,
        help="default <data.root>/gt_kd_<teacher>[_val][_<set>]; of several teachers the folder "
        "around",
    )
    parser.add_argument(
        "--checkpoint",
        type=paths.path_argument,
        help="weights file of the teacher, of tiekd or published; default: the recipe's",
    )
    arguments.add_data_set(parser)
    arguments.add_overrides(parser)
    arguments.add_local_rank(parser)
    return parser.parse_args()


def main() -> None:
    """Writes the teacher's maps."""
    args = parse_arguments()
    from tiekd.tools import cache_teacher

    cache_teacher.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
