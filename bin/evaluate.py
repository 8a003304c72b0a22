#!/usr/bin/env python3
"""Evaluates one network, or several side by side.

    bin/evaluate.py RECIPE [CHECKPOINT] [--against RECIPE[:CHECKPOINT] ...]
    deepspeed --num_gpus 4 bin/evaluate.py ...        the same figures, on four ranks

CHECKPOINT is a weights file (ours or a published one), a work dir, or a checkpoint in one. Without
it the best weights of the recipe's work dir are taken, else the newest, and the program says which.
Networks may be students or teachers. All of them are evaluated on the first recipe's validation
frames, with the protocol of its `evaluation` section.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import paths  # noqa: E402
from tiekd.distributed import entrypoint, process_group  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=paths.option, help="YAML below model_configs/, or your own")
    parser.add_argument(
        "checkpoint",
        type=paths.option,
        nargs="?",
        help="weights file (ours or published), work dir, or checkpoint",
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
        "--out", metavar="JSON", type=paths.option, help="write all figures to a file"
    )
    parser.add_argument(
        "--per-image", metavar="CSV", type=paths.option, help="write each frame's figures to a file"
    )
    parser.add_argument(
        "--show-dir",
        metavar="DIR",
        type=paths.option,
        help="write an image of each frame into a folder",
    )
    parser.add_argument(
        "--panel",
        metavar="PNG",
        type=paths.option,
        help="write one image: input, ground truth, depth of each network, error",
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
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    args = parser.parse_args()
    for option, value in (
        ("crop", args.crop),
        ("cap", args.cap),
        ("flip", "false" if args.no_flip else None),
    ):
        args.overrides += [] if value is None else [f"evaluation.{option}={value}"]
    return args


def main() -> None:
    args = parse_arguments()
    import tiekd
    from tiekd import files
    from tiekd.config.build import settings
    from tiekd.data.agreement import check_same
    from tiekd.data.build import build_dataset, loading_of
    from tiekd.data.depth_values import check_range
    from tiekd.distributed import comm
    from tiekd.evaluation import compare, evaluate, per_frame, report
    from tiekd.visualization import frame_pictures, panel

    recipe = tiekd.load_recipe(args.recipe, args.overrides)
    options = settings(recipe, "evaluation", evaluate.EvaluationSettings)
    device = process_group.start_rank()
    named = [*map(compare.recipe_and_checkpoint, args.against), (args.recipe, args.checkpoint)]
    networks = compare.entrants(named, args.overrides, options.flip, device)
    on_ground_truth, loading = {**recipe, "teacher": None}, loading_of(recipe)
    frames = build_dataset(on_ground_truth, args.split, as_evaluated=True)
    check_same({"evaluation": frames})
    seen = compare.overlaps(networks, frames)
    if args.split == "val" and not args.on_trained:
        compare.refuse_trained_on(seen, networks)
    remarks = [*(f"Warning: {note}" for note in getattr(frames, "notes", ())), *check_range(frames)]
    for option, suffix in (("out", ".json"), ("per_image", ".csv"), ("panel", ".png"), ("show_dir", None)):
        files.check_output(f"--{option.replace('_', '-')}", getattr(args, option), suffix)
    protocol = compare.Protocol(args.split, options, recipe["network"]["min_depth"], recipe["network"]["max_depth"])
    if comm.is_main():
        told = [f"{name}: {entrant.weights}" for name, entrant in networks.items()]
        told += [f"{name} sees pictures at {each.resize}" for name, each in networks.items() if each.resize.mode]
        print("\n".join(told + remarks), flush=True)
    entrants = dict(networks)
    if args.mean_map:
        training = build_dataset(on_ground_truth, "train", as_evaluated=True)
        entrants = {"mean map": compare.mean_map(training, device, sys.stderr), **networks}
    results = {}
    for name, entrant in entrants.items():
        shown = args.show_dir is not None and name == list(entrants)[-1]
        watcher = frame_pictures.FramePictures(args.show_dir, len(frames), protocol.max_depth, entrant.resize)
        pictures = [watcher] if shown else []
        watched = device, loading, sys.stderr, pictures
        result = compare.evaluate(entrant, frames, protocol, *watched)
        results[name] = result._replace(overlap=seen.get(name))
    if not comm.is_main():
        return
    print("\n\n".join(report.everything(results, protocol)))
    if args.out:
        files.replace_text(args.out, json.dumps(compare.as_json(results, protocol), indent=1) + "\n")
    if args.per_image:
        per_frame.write_csv(args.per_image, {name: result.frames for name, result in results.items()})
    if args.panel:
        predictors = {name: entrant.depth_of for name, entrant in networks.items()}
        panel.write_panel(args.panel, frames, predictors, protocol.max_depth, device)
    for path in filter(None, (args.out, args.per_image, args.panel, args.show_dir)):
        print(f"Written: {path}")


if __name__ == "__main__":
    entrypoint.program(main)
