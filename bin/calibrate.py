#!/usr/bin/env python3
"""Calibrates a student's confidence on validation frames, and reports how reliable it is.

    bin/calibrate.py work_dirs/NAME

Fits one temperature for the distributions of a DPM student on one half of the run's validation
frames, and writes it into the best weights of the work dir. Depth stays the same bit for bit;
confidence and sigma of bin/predict.py, bin/export.py and load_student change. The figures before
and after are those of the other half, which shares no folder with the first, unless one folder has
more than four fifths of the frames.
They are compared with ground truth or, with evaluation.against=teacher, with the teacher.
Writes confidence.json and confidence.png into the work dir.
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
    parser.add_argument("work_dir", type=paths.path_argument, help="the run's folder")
    parser.add_argument(
        "checkpoint",
        type=paths.path_argument,
        nargs="?",
        help="weights file, or checkpoint; default: the work dir's best weights",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.pth",
        type=paths.path_argument,
        help="write the weights with the temperature to another file, as for a checkpoint's",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument("--on-trained", action="store_true", help="also on trained frames")
    arguments.add_evaluated_set(parser)
    arguments.add_overrides(parser)
    return parser.parse_args()


def main() -> None:
    """Calibrates the student."""
    args = parse_arguments()
    from tiekd.tools import calibrate

    calibrate.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
