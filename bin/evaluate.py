#!/usr/bin/env python3
"""Evaluates one network, or several side by side.

    bin/evaluate.py RECIPE [CHECKPOINT] [--against RECIPE[:CHECKPOINT] ...]
    deepspeed --num_gpus 4 bin/evaluate.py ...        the same figures, on four ranks

CHECKPOINT is a weights file (of tiekd or published), a work dir, or a checkpoint in one. Without
it the best weights of the recipe's work dir are used, else the newest; the program prints which.
Networks may be students or teachers. All of them are evaluated on the first recipe's validation
frames, with the protocol of its `evaluation` section.
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
        "checkpoint",
        type=paths.path_argument,
        nargs="?",
        help="weights file (of tiekd or published), work dir, or checkpoint",
    )
    parser.add_argument(
        "--against",
        metavar="RECIPE[:CHECKPOINT]",
        nargs="+",
        action="extend",
        default=[],
        help="networks to compare with",
    )
    parser.add_argument(
        "--mean-map", action="store_true", help="compare with the mean training depth"
    )
    parser.add_argument(
        "--floors",
        action="store_true",
        help="compare with depth that ignores the image: best constant, median, median map",
    )
    trained = "evaluate although all validation frames were trained on"
    parser.add_argument("--on-trained", action="store_true", help=trained)
    parser.add_argument(
        "--split", choices=("val", "train"), default="val", help="which frames, default val"
    )
    parser.add_argument(
        "--crop", choices=("garg", "eigen", "none", "nyu_eigen"), help="default: evaluation.crop"
    )
    parser.add_argument(
        "--cap", metavar="M", help="largest ground truth that counts; default: evaluation.cap"
    )
    parser.add_argument("--no-flip", action="store_true", help="no flip averaging")
    parser.add_argument(
        "--out", metavar="JSON", type=paths.path_argument, help="write all figures to a file"
    )
    parser.add_argument(
        "--per-image",
        metavar="CSV",
        type=paths.path_argument,
        help="write each frame's figures to a file",
    )
    parser.add_argument(
        "--show-dir",
        metavar="DIR",
        type=paths.path_argument,
        help="write an image of each frame into a folder",
    )
    parser.add_argument(
        "--panel",
        metavar="PNG",
        type=paths.path_argument,
        help="write one image: input, ground truth, depth of each network, error",
    )
    arguments.add_evaluated_set(parser)
    arguments.add_overrides(parser)
    arguments.add_local_rank(parser)
    args = parser.parse_args()
    for option, value in (
        ("crop", args.crop),
        ("cap", args.cap),
        ("flip", "false" if args.no_flip else None),
    ):
        args.overrides += [] if value is None else [f"evaluation.{option}={value}"]
    return args


def main() -> None:
    """Evaluates the networks."""
    args = parse_arguments()
    from tiekd.tools import evaluate

    evaluate.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
