#!/usr/bin/env python3
"""Exports a student as one file that runs without tiekd.

    bin/export.py RECIPE [CHECKPOINT] --out F.onnx

The file's input is RGB images with values 0..255, (batch, 3, height, width), upright and at their
own size; its output is depth in metres at that size. It includes the resizing to the working
resolution that the weights were trained at. The format is given by --format or by the file name:
.onnx; .pt2 (torch.export); .pth (plain float32 weights, for tiekd and --load-from).

The exported file is compared with `tiekd.load_student` on the recipe's validation frames or,
without them, on built-in scenes. If the two disagree, nothing is written. Without CHECKPOINT the
best weights of the recipe's work dir are used, else the newest; the program prints which.
"""

import argparse
import re
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
        help="weights file, of tiekd or published",
    )
    parser.add_argument("--out", type=paths.path_argument, required=True, help="the file to write")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch_export", "weights"),
        help="default: by the name of --out",
    )
    parser.add_argument(
        "--size", metavar="HxW", help="size of the images; default: the validation frames'"
    )
    parser.add_argument(
        "--dynamic", action="store_true", help="any batch, height and width; not for all networks"
    )
    parser.add_argument(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="type of the input, default uint8; float has values 0..255, too",
    )
    parser.add_argument("--half", action="store_true", help="compute in float16, for accelerators")
    parser.add_argument(
        "--confidence", action="store_true", help="for DPM heads: outputs confidence and sigma, too"
    )
    parser.add_argument(
        "--readout",
        choices=("mean", "mode", "local"),
        default="mean",
        help="for DPM heads: how depth is read from the distribution, default mean",
    )
    parser.add_argument(
        "--focal",
        metavar="F",
        type=float,
        help="focal length of all images in pixels, for network.canonical_focal",
    )
    parser.add_argument(
        "--focal-input", action="store_true", help="the focal length as second input, (batch,)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    arguments.add_overrides(parser)
    args = parser.parse_args()
    if args.size and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", args.size):
        parser.error(f"--size {args.size}: give height x width in pixels, such as 352x1216")
    return args


def main() -> None:
    """Exports the student."""
    args = parse_arguments()
    import tiekd
    from tiekd.tools import export

    export.run(args, tiekd.__version__)


if __name__ == "__main__":
    entrypoint.program(main)
