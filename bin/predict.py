#!/usr/bin/env python3
"""Predicts the depth of images and videos.

    bin/predict.py RECIPE [CHECKPOINT] INPUT... --out DIR
    bin/predict.py INPUT... [--out DIR]

Without RECIPE the student that comes with tiekd predicts, a demo that was trained on rendered
streets alone: it shows shape, and its metres are unreliable. DIR is then `predicted` by default,
and the first INPUT is no folder.

INPUT is an image, a folder (all images in and below it), a quoted pattern such as 'rides/**/*.jpg',
or a video. If several words follow RECIPE, the first is CHECKPOINT unless it looks like an image, a
video or a pattern. Without CHECKPOINT the best weights of the recipe's work dir are used, else the
newest; the program prints which.

Writes DIR/depth, 16-bit PNG in the data set's unit (KITTI metres * 256, NYU * 1000, a folder's
depth_unit); DIR/colour, with a scale in metres; and the outputs of other options. Each has the same
subfolders as the input. The depth has the image's own size, upright.

The network sees each image at the working resolution that the weights were trained at, which the
program prints, or at --size; its depth is then resized to the image. If neither weights nor recipe
have a working resolution, the network sees the image at its own size. If the recipe's frames have
one size (kb_crop, height and width, NYU), an image with more than 1.5 times their pixels is shrunk
to as many pixels.

With network.canonical_focal, and for --points, each image's camera is needed: from --focal or
--intrinsics, the recipe's data.intrinsics, or the data set; for the former else from EXIF.

For a video the program writes the depth of each frame, a colour video of the same frame rate, and
the time of each frame in DIR/times, and prints a measure of flicker. An animated GIF is a video.

An image that can't be read is reported in one line; the others are predicted, and the exit code is
2. The same holds for a damaged or truncated video: the frames before the fault are predicted.
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
    parser = arguments.new_parser(
        __doc__, usage="%(prog)s [RECIPE [CHECKPOINT]] INPUT... --out DIR [options]"
    )
    add = parser.add_argument
    arguments.add_recipe(parser)
    add(
        "words",
        metavar="INPUT",
        nargs="*",
        help="images, folders, patterns or videos; before them CHECKPOINT",
    )
    add("--out", metavar="DIR", type=paths.path_argument, help="folder for the files")
    add("--overwrite", action="store_true", help="replace existing files, but never an input")
    add(
        "--readout",
        default="mean",
        help="for DPM heads: mean, mode or local, which keeps edges sharp",
    )
    add("--raw", action="store_true", help="also NPY, float32 metres")
    add("--points", action="store_true", help="also PLY, coloured points in metres")
    add(
        "--intrinsics",
        metavar="FX,FY,CX,CY|FILE|exif",
        type=paths.path_text_argument,
        help="cameras, in pixels of the image; default: the data set's",
    )
    add(
        "--focal", metavar="F", help="focal length in pixels of the image, in place of --intrinsics"
    )
    add("--confidence", action="store_true", help="for DPM heads: also confidence and sigma")
    add("--size", metavar="HxW|full", help="fit images in HxW for the network, or keep their size")
    add("--depth-unit", metavar="N", help="value of one metre in the PNG of depth/")
    add(
        "--batch-size",
        metavar="N",
        type=int,
        help="images of one size at once, default 1, on a GPU 4",
    )
    add("--device", help="default cuda if there is one, else cpu")
    arguments.add_overrides(parser)
    args = parser.parse_args()
    args.words = [paths.expanded(word) for word in args.words]
    if args.batch_size is not None and args.batch_size < 1:
        parser.error("--batch-size must be 1 or more")
    return args


def main() -> None:
    """Predicts the depth of the images and videos."""
    args = parse_arguments()
    from tiekd.tools import predict

    predict.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
