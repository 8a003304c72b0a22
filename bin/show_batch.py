#!/usr/bin/env python3
"""Draws the samples that a run trained on in one iteration.

    bin/show_batch.py WORK_DIR --iteration N [--rank R] [--out DIR]

Reproduces the global batch of that iteration from the recipe, the seed and the world size that the
work dir records for the last launch. Prints each sample with its augmentation, value ranges and
fraction of finite values, and draws its image, ground truth and teacher into one PNG per sample.
The log names the iterations whose loss or gradient was not finite.
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
    parser.add_argument("work_dir", type=paths.path_argument, help="work dir of the run")
    parser.add_argument(
        "--iteration", type=int, required=True, metavar="N", help="counted from 1, as in the log"
    )
    parser.add_argument("--rank", type=int, metavar="R", help="only this rank's samples")
    parser.add_argument(
        "--out",
        type=paths.path_argument,
        metavar="DIR",
        help="folder for the PNGs; default WORK_DIR/batches",
    )
    parser.add_argument(
        "--no-teacher", action="store_true", help="don't compute the teacher's depth"
    )
    arguments.add_overrides(parser)
    return parser.parse_args()


def main() -> None:
    """Draws the samples of one iteration's batch."""
    args = parse_arguments()
    from tiekd.tools import show_batch

    show_batch.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
