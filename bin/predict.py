#!/usr/bin/env python3
"""Predicts depth: `bin/predict.py RECIPE [CHECKPOINT] INPUT... --out DIR`.

INPUT is a picture, a folder (all pictures in and below it), a quoted pattern such as 'rides/**/*.jpg', or a video. With
several words after RECIPE the first is the CHECKPOINT, unless it looks like a picture, a video or a pattern; without
one, the best weights of the recipe's work dir are taken, else the newest, and it says which.

Writes, each with the tree of the input: DIR/depth, 16-bit PNG in the data set's unit (KITTI metres * 256, NYU * 1000,
a folder's depth_unit); DIR/colour, with a scale in metres; and what is asked for. The depth has the picture's own size,
upright. The network sees each picture at the working resolution that the weights were trained at, which it says, or at
that of --size, and its depth is brought back to the picture's size. Without any in weights and recipe that is the
picture's own size; where the recipe's frames have one size (kb_crop, height and width, NYU) a picture with more than
1.5 times their pixels is shrunk to as many.
A video gives its frames' depth, colours as a video of its rate, DIR/times with each frame's time, and a flicker figure;
an animated GIF is one.

A picture that can't be read is told in a line, and the others are predicted; the exit code is then 2. So it is for a
video that breaks off or is damaged: the frames up to there are predicted.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import launch, paths  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s RECIPE [CHECKPOINT] INPUT... --out DIR [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("recipe", type=paths.option)
    add("words", metavar="INPUT", nargs="+", help="what to predict; before it the weights, ours or published ones")
    add("--out", metavar="DIR", type=paths.option, required=True, help="where the files go")
    add("--overwrite", action="store_true", help="replace files that are there, but never an input")
    add("--readout", default="mean", help="mean, mode or local; of dpm heads: local keeps edges sharp")
    add("--raw", action="store_true", help="also NPY, float32 metres")
    add("--points", action="store_true", help="also PLY, coloured points in metres")
    add("--intrinsics", metavar="FX,FY,CX,CY", help="for points, in pixels of the picture; default the data set's")
    add("--confidence", action="store_true", help="also how sure the network is, 0 to 1; of dpm heads")
    add("--size", metavar="HxW|full", help="fit each picture in HxW for the network, or let all keep their size")
    add("--depth-unit", metavar="N", help="levels of depth/ that make a metre")
    add("--batch-size", metavar="N", type=int, help="pictures of one size at once, default 1, on a GPU 4")
    add("--device", help="default cuda where there is one, else cpu")
    add("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], dest="overrides")
    args = parser.parse_args()
    args.words = [paths.expanded(word) for word in args.words]
    if args.batch_size is not None and args.batch_size < 1:
        parser.error("--batch-size must be 1 or more")
    return args


def main() -> None:
    args = parse_arguments()
    import tiekd
    from tiekd import student, trained
    from tiekd.data.resize import parse_size
    from tiekd.errors import CheckpointError, DataError
    from tiekd.predicting import cameras, inputs, outputs
    from tiekd.predicting.prediction import predict_all
    from tiekd.predicting.predictor import Predictor

    recipe = tiekd.load_recipe(args.recipe, args.overrides)
    data = recipe.get("data", {})
    has_checkpoint = len(args.words) > 1 and not inputs.looks_like_input(args.words[0])
    found = inputs.find(args.words[has_checkpoint:], args.out)
    given = parse_size(args.size)
    known = cameras.Cameras(cameras.parse_intrinsics(args.intrinsics), data) if args.points else None
    device = student.pick_device(args.device)
    try:
        checkpoint = args.words[0] if has_checkpoint else None
        network, weights, resize = trained.load_network(args.recipe, checkpoint, args.overrides)
    except CheckpointError as error:
        read_as = f"; of several words after RECIPE the first, {args.words[0]}, is CHECKPOINT" if has_checkpoint else ""
        raise CheckpointError(f"{error}{read_as}") from None
    resize = resize if given is None else given
    model = student.Student(network, device, args.readout, resize)
    if args.confidence:
        student.check_readout(network, "local", "confidence")
    units = outputs.parse_units(args.depth_unit, data, network.max_depth)
    written = outputs.Outputs(args.out, units, network.max_depth, args.raw, args.points, args.confidence)
    written.check(found, args.overwrite)
    print(f"Weights: {weights}; readout {args.readout}, on {device}")
    print(f"Working resolution: {resize}")
    print(f"Depth: {args.out / 'depth'}, {outputs.in_words(units, network.max_depth)}")
    batch_size = args.batch_size or (1 if device.type == "cpu" else 4)
    failed = predict_all(Predictor(model, written, batch_size, known), found, sys.stdout, sys.stderr)
    if failed:
        raise DataError(f"{failed} of {len(found)} could not be predicted, see above; what could is in {args.out}")


if __name__ == "__main__":
    launch.program(main)
