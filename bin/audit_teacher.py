#!/usr/bin/env python3
"""Audits a teacher on some frames, before a student learns from it.

    bin/audit_teacher.py RECIPE [--frames 32] [--out DIR]

RECIPE is a student's recipe, whose `teacher` is audited: a network, a module of yours or cached
maps; or a teacher's own recipe, as for bin/cache_teacher.py. Compares the maps with ground truth
where frames have it; otherwise with their images, and with what depth looks like. Names the likely
cause: another unit, inverse or affine depth, mirrored maps, BGR, maps of other frames, a wrong
focal length, 8-bit maps. tiekd/tools/TEACHER_AUDIT.md says how often it finds them.

--sigma measures, on frames with ground truth, if the teacher's sources of a sigma per pixel order
its errors, and writes their calibrations to sigma.json, for teacher.sigma.calibration, and
sigma.png, their sparsification curves. The page TEACHERS.md says what the figures mean.

Prints a table; writes audit.json and audit.png (the worst and the median frame) into --out, and
never over existing files. Ends with code 0 if nothing is above its limit, 1 if something is, 2 for
a mistake in the call.
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
        "--frames", type=int, default=32, metavar="N", help="how many, default 32, from 8"
    )
    parser.add_argument(
        "--checkpoint",
        type=paths.path_argument,
        help="weights file of the teacher, ours or published; default: the recipe's",
    )
    parser.add_argument(
        "--focal",
        type=float,
        metavar="PIXELS",
        help="the camera's true focal length in the images' own pixels, to check the listed one",
    )
    parser.add_argument(
        "--no-truth", action="store_true", help="judge as if there were no ground truth"
    )
    parser.add_argument(
        "--sigma", action="store_true", help="also measure the teacher's sources of sigma"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=paths.path_argument, help="default work_dirs/audit_<recipe>"
    )
    arguments.add_data_set(parser)
    arguments.add_overrides(parser)
    args = parser.parse_args()
    if args.frames < 8:
        parser.error(f"--frames: got {args.frames}; it must be 8 or more")
    if args.sigma and args.no_truth:
        parser.error("--sigma: needs ground truth; leave --no-truth out")
    if args.focal is not None and not 0 < args.focal < 1e6:
        parser.error(f"--focal: got {args.focal}; it must be pixels above 0, below 1e6")
    return args


def main() -> int:
    """Audits the teacher and writes the report; returns the exit code."""
    args = parse_arguments()
    from tiekd.tools import audit_teacher

    return audit_teacher.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
