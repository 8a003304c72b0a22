"""Predicts the depth of images and videos: the body of bin/predict.py."""

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

from tiekd import files
from tiekd.config import data_sets
from tiekd.config.recipe import load_recipe
from tiekd.config.teacher_node import TeacherList
from tiekd.data import learned_from, read_folders
from tiekd.data.resize import parse_size
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError
from tiekd.inference import released, student
from tiekd.inference.predict import cameras, inputs, outputs
from tiekd.inference.predict.prediction import predict_all
from tiekd.inference.predict.predictor import Predictor
from tiekd.models import confidence, load

DEFAULT_OUT = "predicted"  # the folder of the outputs without RECIPE and --out


class Request(NamedTuple):
    """A command line of bin/predict.py, whose words are told apart.

    Attributes:
        recipe: the path of the recipe.
        checkpoint: the path of the weights; None for those of the recipe's work dir.
        inputs: the images, folders, patterns and videos.
        out: the folder of the outputs.
        is_released: True for the student that comes with tiekd.
    """

    recipe: Path
    checkpoint: str | None
    inputs: list[str]
    out: Path
    is_released: bool


def request_of(args: argparse.Namespace) -> Request:
    """Tells the words of a command line apart: recipe, weights and inputs.

    If the first word is an image, a video or a pattern, there is no recipe, and the student that
    comes with tiekd predicts. A folder isn't taken for an input there, since it may be a work dir
    that was given in place of a recipe, nor is a recipe in a folder such as `runs[1]`, whose name
    would be a pattern.

    Args:
        args: the program's parsed command line.

    Raises:
        LaunchError: a word or --out is missing.
        CheckpointError: no student comes with this installation.
    """
    first, words = str(args.recipe), list(args.words)
    is_recipe = os.path.isdir(first) or Path(first).suffix.lower() in (".yaml", ".yml")
    if inputs.looks_like_input(first) and not is_recipe:
        weights = str(released.checked_weights())
        out = args.out or Path(DEFAULT_OUT)
        return Request(released.recipe_file(), weights, [first, *words], out, is_released=True)
    if not words:
        hint = "give images, folders or videos"
        if os.path.isdir(first):
            hint += f"; without a recipe, give the images in it as a pattern, '{first}/*.jpg'"
        raise LaunchError(f"INPUT is missing after {first}; {hint}")
    if args.out is None:
        raise LaunchError("--out is missing; give the folder for the files")
    has_checkpoint = len(words) > 1 and not inputs.looks_like_input(words[0])
    checkpoint = words[0] if has_checkpoint else None
    return Request(args.recipe, checkpoint, words[has_checkpoint:], args.out, is_released=False)


def run(args: argparse.Namespace) -> None:
    """Runs bin/predict.py: predicts the depth of images and videos, and writes it to --out.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: the recipe, the checkpoint or an option is invalid, or an input can't be
            predicted.
    """
    request = request_of(args)
    recipe = load_recipe(request.recipe, args.overrides)
    # If the recipe has several data sets, use only the settings that they share: a unit of depth,
    # for example, isn't defined for an image that belongs to none of them.
    data = recipe.get("data", {})
    data = data_sets.shared_of(data) if data_sets.is_list(recipe) else data
    # Find the inputs first, so that errors in them are reported before the network is built.
    found = inputs.find(request.inputs, request.out)
    given = parse_size(args.size)
    camera = cameras.parse_intrinsics(args.intrinsics, args.focal)
    known = cameras.Cameras(camera, data) if args.points else None
    device = student.pick_device(args.device)
    try:
        network, weights, resize = load.load_network(
            request.recipe, request.checkpoint, args.overrides
        )
    except CheckpointError as error:
        read_as = ""
        if request.checkpoint is not None and not request.is_released:
            read_as = f"; of several words after RECIPE the first, {args.words[0]}, is CHECKPOINT"
        raise CheckpointError(f"{error}{read_as}") from None
    # Set up the student, and then the outputs.
    resize = resize if given is None else given
    calibration = confidence.read(weights)
    model = student.Student(network, device, args.readout, resize, calibration)
    if model.needs_focal:
        known = cameras.Cameras(camera, data, "network.canonical_focal", reads_exif=True)
    elif camera is not None and not args.points:
        option = "--intrinsics" if args.focal is None else "--focal"
        raise RecipeError(
            f"{option}: this network was trained without network.canonical_focal and doesn't use "
            "it; leave it out, or give --points, too"
        )
    if args.confidence:
        student.check_readout(network, "local", "confidence")
    units = outputs.parse_units(args.depth_unit, data, network.max_depth)
    written = outputs.Outputs(
        request.out, units, network.max_depth, args.raw, args.points, args.confidence
    )
    maps = TeacherList.of(recipe).maps
    for path in written.of("any").values():
        read_folders.refuse("--out", path.parent, (path.suffix,), data, maps)
    written.check(found, args.overwrite)
    files.check_output("--out", request.out, None)
    if request.is_released:
        print(released.NOTICE)
    print(f"Weights: {weights}; readout {args.readout}, on {device}")
    for line in learned_from.lines(learned_from.read(weights)):
        print(line)
    if args.confidence:
        print(confidence.describe(calibration))
    print(f"Working resolution: {resize}")
    print(f"Depth: {request.out / 'depth'}, {outputs.in_words(units, network.max_depth)}")
    batch_size = args.batch_size or (1 if device.type == "cpu" else 4)
    failed = predict_all(
        Predictor(model, written, batch_size, known), found, sys.stdout, sys.stderr
    )
    if known is not None and known.approximate:
        print(f"Focal length from EXIF, approximate: {known.approximate} image(s)")
    if failed:
        raise DataError(
            f"{failed} of {len(found)} could not be predicted, see above; what could is in "
            f"{request.out}"
        )
