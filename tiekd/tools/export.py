"""Exports a student to one file: the body of bin/export.py."""

import argparse
import json
import sys
from pathlib import Path

from tiekd.config.recipe import load_recipe
from tiekd.data import learned_from
from tiekd.errors import ExportError
from tiekd.inference.export import export, trial_images
from tiekd.models import confidence, load


def run(args: argparse.Namespace, version: str) -> None:
    """Runs bin/export.py: exports a student to the file of --out, and compares it with the network.

    Args:
        args: the program's parsed command line.
        version: tiekd's version, which is stored in the file.

    Raises:
        UserError: the recipe, the checkpoint or an option is invalid, or the file's outputs differ
            from the network's.
    """
    if args.out.exists() and not args.overwrite:
        raise ExportError(
            f"--out {args.out}: exists; give another one, or --overwrite to replace it"
        )
    recipe = load_recipe(args.recipe, args.overrides)
    network, weights, resize = load.load_network(args.recipe, args.checkpoint, args.overrides)
    print(f"{Path(args.recipe).stem}: {weights}")
    teachers = learned_from.read(weights)
    for line in learned_from.lines(teachers):
        print(line)
    # Choose the image size: that of --size, or else that of the recipe's frames.
    frames, origin = trial_images.frames(recipe)
    size = tuple(map(int, args.size.split("x"))) if args.size else tuple(frames[0].shape[1:])
    settings = export.Settings(
        size=size,
        format=args.format or export.format_of(args.out),
        input=args.input,
        dynamic=args.dynamic,
        half=args.half,
        confidence=args.confidence,
        readout=args.readout,
        resize=resize,
        focal=args.focal,
        focal_input=args.focal_input,
        calibration=confidence.read(weights),
    )
    export.check(network, settings, args.out)
    print(f"Working resolution: {export.working_resolution(settings)}")
    if settings.confidence:
        print(confidence.describe(settings.calibration))
    print(f"Tried on: {len(frames)} of {origin}")
    # Write the file and compare it with the network on a few images.
    least = export.least_side(network, settings) if settings.dynamic else None
    images = trial_images.batches(frames, size, least)
    facts = {"tiekd": version, "recipe": Path(args.recipe).stem, "checkpoint": weights.name}
    if teachers is not None:
        facts[learned_from.KEY] = json.dumps(teachers)
    node = recipe["network"]
    if network.canonical is not None:
        node = node | {"canonical_factors": list(network.canonical[1:])}
    done = export.write(args.out, network.eval(), node, settings, images, facts, sys.stdout)
    if done.file_ms is not None:
        print(
            f"An image takes {done.file_ms:.1f} ms from the file, {done.torch_ms:.1f} ms in torch "
            "(CPU)"
        )
    notice = learned_from.licence_notice(teachers)
    if notice is not None:
        print(notice)
    print(f"written: {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")
