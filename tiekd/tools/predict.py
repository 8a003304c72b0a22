"""Predicts the depth of images and videos: the body of bin/predict.py."""

import argparse
import sys

from tiekd import files
from tiekd.config import data_sets
from tiekd.config.recipe import load_recipe
from tiekd.config.teacher_node import TeacherList
from tiekd.data import learned_from, read_folders
from tiekd.data.resize import parse_size
from tiekd.errors import CheckpointError, DataError, RecipeError
from tiekd.inference import student
from tiekd.inference.predict import cameras, inputs, outputs
from tiekd.inference.predict.prediction import predict_all
from tiekd.inference.predict.predictor import Predictor
from tiekd.models import confidence, load


def run(args: argparse.Namespace) -> None:
    """Runs bin/predict.py: predicts the depth of images and videos, and writes it to --out.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: the recipe, the checkpoint or an option is invalid, or an input can't be
            predicted.
    """
    recipe = load_recipe(args.recipe, args.overrides)
    # If the recipe has several data sets, use only the settings that they share: a unit of depth,
    # for example, isn't defined for an image that belongs to none of them.
    data = recipe.get("data", {})
    data = data_sets.shared_of(data) if data_sets.is_list(recipe) else data
    has_checkpoint = len(args.words) > 1 and not inputs.looks_like_input(args.words[0])
    # Find the inputs first, so that errors in them are reported before the network is built.
    found = inputs.find(args.words[has_checkpoint:], args.out)
    given = parse_size(args.size)
    camera = cameras.parse_intrinsics(args.intrinsics, args.focal)
    known = cameras.Cameras(camera, data) if args.points else None
    device = student.pick_device(args.device)
    try:
        checkpoint = args.words[0] if has_checkpoint else None
        network, weights, resize = load.load_network(args.recipe, checkpoint, args.overrides)
    except CheckpointError as error:
        read_as = ""
        if has_checkpoint:
            read_as = f"; of several words after RECIPE the first, {args.words[0]}, is CHECKPOINT"
        raise CheckpointError(f"{error}{read_as}") from None
    # Set up the student, and then the outputs.
    resize = resize if given is None else given
    calibration = confidence.read(weights)
    model = student.Student(network, device, args.readout, resize, calibration)
    if model.needs_focal:
        known = cameras.Cameras(camera, data, "network.canonical_focal", reads_exif=True)
    elif args.focal is not None and not args.points:
        raise RecipeError(
            "--focal: this network was trained without network.canonical_focal and doesn't use it; "
            "leave it out"
        )
    if args.confidence:
        student.check_readout(network, "local", "confidence")
    units = outputs.parse_units(args.depth_unit, data, network.max_depth)
    written = outputs.Outputs(
        args.out, units, network.max_depth, args.raw, args.points, args.confidence
    )
    maps = TeacherList.of(recipe).maps
    for path in written.of("any").values():
        read_folders.refuse("--out", path.parent, (path.suffix,), data, maps)
    written.check(found, args.overwrite)
    files.check_output("--out", args.out, None)
    print(f"Weights: {weights}; readout {args.readout}, on {device}")
    for line in learned_from.lines(learned_from.read(weights)):
        print(line)
    if args.confidence:
        print(confidence.line(calibration))
    print(f"Working resolution: {resize}")
    print(f"Depth: {args.out / 'depth'}, {outputs.in_words(units, network.max_depth)}")
    batch_size = args.batch_size or (1 if device.type == "cpu" else 4)
    failed = predict_all(
        Predictor(model, written, batch_size, known), found, sys.stdout, sys.stderr
    )
    if known is not None and known.approximate:
        print(f"Focal length from EXIF, approximate: {known.approximate} image(s)")
    if failed:
        raise DataError(
            f"{failed} of {len(found)} could not be predicted, see above; what could is in "
            f"{args.out}"
        )
