#!/usr/bin/env python3
"""Distils a student from a folder of images and a teacher: one command, from images to an export.

    bin/distill.py IMAGES --teacher TEACHER --epochs 20 --out DIR
    bin/distill.py IMAGES --teacher TEACHER --hours 6 --max-latency 20ms --on cpu --out DIR
    bin/distill.py IMAGES --teacher TEACHER --epochs 20 --out DIR --dry-run

TEACHER is a recipe of a network of tiekd, a folder of a transformers model, an exported .onnx or
.pt2 file, `stereo`, or a YAML file with a node `teacher:`; --teacher-set gives its options.

Stages: data, audit, cache, student, train, evaluate, calibrate, export, report. Each runs a program
of its own, whose command is printed. A killed command continues where it was when it is given
again. DIR/plan.yaml has every choice, DIR/recipe.yaml the recipe of the training. The exit code is
0 if all is done, 1 if the teacher's audit found something, 2 for a mistake, 75 if it was stopped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import paths  # noqa: E402
from tiekd.distributed import entrypoint  # noqa: E402
from tiekd.tools import arguments  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; `launcher` are the options of DeepSpeed's launcher in it."""
    launcher, rest = arguments.split_launcher_options()
    parser = arguments.new_parser(__doc__)
    add = parser.add_argument
    add("images", type=paths.path_argument, help="folder of images and videos, or a list of them")
    add("--teacher", metavar="TEACHER", type=paths.path_text_argument, help="from whom to learn")
    add(
        "--teacher-set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="options of the teacher, such as output=metres",
    )
    add("--out", metavar="DIR", type=paths.path_argument, required=True, help="folder of all files")
    add("--hours", type=float, metavar="H", help="how long to train, with its evaluations")
    add("--epochs", type=int, metavar="N", help="how often to see each image; or --hours")
    add("--size", metavar="HxW", help="working resolution; default: from the images")
    add("--max-depth", type=float, metavar="M", help="largest depth in metres, default 80")
    add("--student", metavar="NAME", help="which of the family of students, default lite0")
    add(
        "--max-latency",
        metavar="20ms",
        help="take the largest student whose exported file is as fast on this machine",
    )
    add("--on", choices=("cpu", "cuda"), help="where --max-latency holds, default cpu")
    add("--threads", type=int, metavar="N", help="threads of the exported file, default 1")
    add(
        "--intrinsics",
        metavar="FX,FY,CX,CY|FILE|exif",
        type=paths.path_text_argument,
        help="cameras, for teachers that need a focal length",
    )
    add("--depth", metavar="DIR", type=paths.path_argument, help="measured depth, where there is")
    add("--depth-unit", type=float, metavar="N", help="levels a metre in its PNG, default 1000")
    add(
        "--init",
        metavar="WEIGHTS",
        type=paths.path_text_argument,
        help="weights to start from; random: without weights of ImageNet",
    )
    add("--frame-rate", type=float, metavar="FPS", help="frames a second of videos, default 2")
    add("--batch-size", type=int, metavar="N", help="images an iteration, default 16")
    add("--seed", type=int, help="seed of the training, default 0")
    add("--patience", type=int, metavar="N", help="stop after N evaluations that aren't better")
    add("--accept-audit", action="store_true", default=None, help="go on whatever the audit says")
    add("--until", metavar="STAGE", help="the last stage to run")
    add("--dry-run", action="store_true", help="print time, memory and disk of every stage")
    args = parser.parse_args(rest)
    args.launcher = launcher
    return args


def main() -> int:
    """Runs the stages; returns the exit code."""
    args = parse_arguments()
    # A mistake in the options is told before torch is imported.
    from tiekd.tools.distill import options

    options.check(args)
    from tiekd.tools.distill import program

    return program.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
