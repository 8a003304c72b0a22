#!/usr/bin/env python3
"""Evaluates networks side by side: `bin/evaluate.py RECIPE [CHECKPOINT] [--against RECIPE ...] [--mean-map]`.

Without CHECKPOINT the best weights of the recipe's work dir are taken, else the newest, and it says which. All are
evaluated on the first recipe's validation frames, as its `evaluation` section says. Runs on one or many ranks.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import launch  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("checkpoint", nargs="?", help="weights of ours or published ones")
    parser.add_argument("--against", metavar="RECIPE", nargs="+", default=[], help="networks to compare with")
    parser.add_argument("--mean-map", action="store_true", help="also the per-pixel mean of the training depths")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which frames, default val")
    parser.add_argument("--out", metavar="JSON", type=Path, help="write the figures to a file")
    parser.add_argument("--panel", metavar="PNG", type=Path, help="a picture: image, ground truth, networks, error")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], dest="overrides")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    import tiekd
    from tiekd import distributed, evaluation, reports
    from tiekd.config import settings
    from tiekd.run import build_dataset, loading_of

    recipe = tiekd.load_recipe(args.recipe, args.overrides)
    device = launch.start_rank()
    options = settings(recipe, "evaluation", evaluation.EvaluationSettings)
    on_ground_truth, loading = {**recipe, "teacher": None}, loading_of(recipe)
    frames = build_dataset(on_ground_truth, args.split, as_evaluated=True)
    min_depth, max_depth = recipe["network"]["min_depth"], recipe["network"]["max_depth"]
    candidates = {}
    if args.mean_map:
        training = build_dataset(on_ground_truth, "train", as_evaluated=True)
        mean_map = evaluation.mean_depth_map(training).to(device)
        candidates["mean map"] = lambda image: mean_map.expand(len(image), -1, -1, -1)
    for path, checkpoint in [*((path, None) for path in args.against), (args.recipe, args.checkpoint)]:
        network, weights = reports.load_network(path, checkpoint, args.overrides if path == args.recipe else ())
        name = Path(path).stem if Path(path).stem not in candidates else path
        candidates[name] = partial(evaluation.predict, network.to(device).eval(), flip=options.flip)
        if distributed.is_main():
            print(f"{name}: {weights}")
    figures = {
        name: evaluation.evaluate(
            candidate, frames, options, min_depth, max_depth, device, loading.workers, loading.timeout_s
        )
        for name, candidate in candidates.items()
    }
    if not distributed.is_main():
        return
    print(f"{len(frames)} {args.split} frames; {reports.protocol(options, min_depth, max_depth)}")
    print(reports.comparison_table(figures))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    if args.panel:
        candidates.pop("mean map", None)
        reports.write_panel(args.panel, frames, candidates, max_depth, device)
        print(f"Picture: {args.panel}")


if __name__ == "__main__":
    sys.exit(launch.run(main))
