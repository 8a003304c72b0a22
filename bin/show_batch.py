#!/usr/bin/env python3
"""Draws the samples that a run trained on in one iteration.

    bin/show_batch.py WORK_DIR --iteration N [--rank R] [--out DIR]

Makes the global batch of that iteration again, from the recipe, the seed and the ranks of the work
dir (as the run was last started). Prints each sample with its augmentation, value ranges and share
of finite values, and draws image, ground truth and teacher into one PNG each. The log names the
iterations whose loss or gradient was not finite.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import paths  # noqa: E402
from tiekd.distributed import entrypoint  # noqa: E402
from tiekd.workdir import launch_record  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work_dir", type=paths.option, help="of the run")
    parser.add_argument(
        "--iteration", type=int, required=True, metavar="N", help="counted from 1, as in the log"
    )
    parser.add_argument("--rank", type=int, metavar="R", help="only this rank's samples")
    parser.add_argument(
        "--out",
        type=paths.option,
        metavar="DIR",
        help="folder for the PNGs; default WORK_DIR/batches",
    )
    parser.add_argument(
        "--no-teacher", action="store_true", help="don't compute the teacher's depth"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="values that override the recipe's",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    import torch

    from tiekd.config.build import settings
    from tiekd.config.recipe import load_recipe
    from tiekd.data import resize as resizes
    from tiekd.data.augment.augment import Augment
    from tiekd.data.build import build_dataset, loading_of
    from tiekd.data.image_io import write_image
    from tiekd.errors import LaunchError
    from tiekd.teaching import build_teacher
    from tiekd.tools.show_batch import describe, global_batch
    from tiekd.training import inputs
    from tiekd.training.settings import TrainSettings
    from tiekd.visualization import pictures

    record = launch_record.read(args.work_dir)
    recipe = load_recipe(args.work_dir / "config.yaml", args.overrides)
    engine = json.loads((args.work_dir / "ds_config.json").read_text(encoding="utf-8"))
    out = (args.out or args.work_dir / "batches").resolve()
    options = settings(recipe, "train", TrainSettings)
    if args.iteration < 1:
        raise LaunchError(f"--iteration {args.iteration}: iterations count from 1")
    if args.rank is not None and not 0 <= args.rank < record.world_size:
        raise LaunchError(f"--rank {args.rank}: the run had ranks 0 to {record.world_size - 1}")
    work_dir = args.work_dir.resolve()
    os.chdir(record.folder)
    has_teacher = recipe.get("teacher") is not None and not args.no_teacher
    teacher = build_teacher(recipe["teacher"], torch.device("cpu")) if has_teacher else None
    dealt = global_batch(
        build_dataset(recipe, "train", held_out=inputs.held_out(inputs.read(work_dir), recipe)),
        settings({"data.augment": recipe["data"].get("augment", {})}, "data.augment", Augment),
        loading_of(recipe),
        options.seed,
        options.batch_size,
        engine["gradient_accumulation_steps"],
        record.world_size,
        args.iteration,
        resizes.of_data(recipe["data"]),
    )
    max_depth = recipe["network"]["max_depth"]
    out.mkdir(parents=True, exist_ok=True)
    for part in dealt:
        if args.rank not in (None, part.rank):
            continue
        depths = {"ground truth": part.batch.depth} | ({"teacher": teacher(part.batch)} if has_teacher else {})
        for sample in range(len(part.batch.names)):
            print(describe(part, sample, depths.get("teacher")))
            row = [pictures.denormalise(part.batch.image[sample].numpy())]
            row += [pictures.colourise(depth[sample, 0].numpy(), max_depth) for depth in depths.values()]
            name = f"iteration_{args.iteration}_rank_{part.rank}_micro_{part.micro_batch}_sample_{sample}.png"
            write_image(out / name, pictures.panel([row], ["image", *depths], max_depth))
    print(f"Pictures: {out}")


if __name__ == "__main__":
    entrypoint.program(main)
