"""Evaluates one or more networks on the same frames: the body of bin/evaluate.py."""

import argparse
import json
import sys
from dataclasses import replace

import torch
from torch.utils.data import Dataset, Subset

from tiekd import files
from tiekd.config.recipe import is_overridden, load_recipe
from tiekd.config.teacher_node import TeacherList
from tiekd.data import learned_from, least_size, read_folders
from tiekd.data.build import build_dataset
from tiekd.data.depth_values import check_range
from tiekd.data.frame_table import spaced
from tiekd.data.rank_consistency import check_same
from tiekd.distributed import comm, process_group
from tiekd.errors import LaunchError
from tiekd.evaluation import compare, floors, per_frame, report
from tiekd.evaluation.agreement import Reference
from tiekd.teaching import build_teachers, with_checkpoints
from tiekd.training.canonical import require_focals
from tiekd.training.reference import reference_of
from tiekd.training.settings import Recipe
from tiekd.visualization import frame_pictures, panel

# Largest number of training frames whose depth is read for --floors, and largest number of them on
# which a teacher is run.
_MAX_FLOOR_FRAMES, _MAX_RUN_FRAMES = 4096, 64


def run(args: argparse.Namespace) -> None:
    """Runs bin/evaluate.py: evaluates networks on the same frames, and prints a report.

    It also writes the files that options name, such as the metrics as JSON (--out).

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: a recipe, a checkpoint or an option is invalid, or frames can't be read.
    """
    # Load the networks, and build the frames and the evaluation protocol of `args.recipe`.
    recipe = _of_one_set(Recipe(load_recipe(args.recipe, args.overrides)), args)
    flip = recipe.evaluation.flip
    device = process_group.start_rank()
    named = [*map(compare.recipe_and_checkpoint, args.against), (args.recipe, args.checkpoint)]
    networks = compare.load_networks(named, args.overrides, flip, device)
    # Read the teacher's maps instead of requiring ground truth if evaluations compare with the
    # teacher.
    scores_teacher = recipe.scores_teacher
    data = recipe.dataset if scores_teacher else recipe.without_teacher().dataset
    loading = recipe.loading
    frames = build_dataset(data, args.split, as_evaluated=True)
    check_same({"evaluation": frames})
    for name, network in networks.items():
        key = f"data.resize of {name}"
        least_size.check_frames(frames, network.resize, network.least_side, key)
        if network.needs_focal:
            require_focals(frames, network.resize, args.split)
    # Refuse validation frames that one of the networks was trained on before the networks run.
    seen = compare.overlaps(networks, frames)
    if args.split == "val" and not args.on_trained:
        compare.refuse_trained_on(seen, networks)
    remarks = [*(f"Warning: {note}" for note in getattr(frames, "notes", ())), *check_range(frames)]
    remarks += getattr(frames, "camera_notes", ())
    for option, suffix in (
        ("out", ".json"),
        ("per_image", ".csv"),
        ("panel", ".png"),
        ("show_dir", None),
    ):
        files.check_output(f"--{option.replace('_', '-')}", getattr(args, option), suffix)
    pictures = {"--panel": args.panel and args.panel.parent, "--show-dir": args.show_dir}
    for option, folder in pictures.items():
        if folder is not None:
            maps = recipe.dataset.maps
            read_folders.refuse(option, folder, (".png",), recipe.data, maps)
    protocol = recipe.protocol(args.split)
    if scores_teacher:
        _refuse_what_needs_truth(args)
        protocol = replace(protocol, reference=teacher_reference(recipe, frames, device))
    if comm.is_main():
        told = []
        for name, network in networks.items():
            told.append(f"{name}: {network.weights}")
            told += learned_from.lines(network.teachers)
        told += [
            f"{name} sees images at {each.resize}"
            for name, each in networks.items()
            if each.resize.mode
        ]
        print("\n".join(told + remarks), flush=True)

    def training() -> Dataset:
        return build_dataset(data, "train", as_evaluated=True)

    *others, last = networks
    predictors = {name: networks[name] for name in others}
    if args.mean_map:
        predictors = {"mean map": compare.mean_map(training(), device, sys.stderr), **predictors}
    if args.floors:

        def reference_in_training(seen: Subset) -> Reference:
            return teacher_reference(recipe, seen.dataset, device)

        # Count all frames as of one scene, so that the best constant minimises the mean over
        # frames, and its memory doesn't grow with them.
        found = floors.build(
            lambda: _some(training(), protocol.reference),
            frames,
            protocol,
            lambda _: "",
            device,
            sys.stderr if comm.is_main() else None,
            reference_in_training if scores_teacher else None,
            skips_errors=loading.on_error == "skip",
        )
        predictors |= found.predictors
        if comm.is_main():
            for name, reason in found.left_out.items():
                print(f"Left out: {name}: {reason}", flush=True)
    predictors[last] = networks[last]
    # Evaluate each network; with --show-dir, write images of the last network's predictions.
    results = {}
    for name, predictor in predictors.items():
        shown = args.show_dir is not None and name == list(predictors)[-1]
        watcher = frame_pictures.FramePictures(
            args.show_dir,
            len(frames),
            protocol.max_depth,
            predictor.resize,
            "teacher" if scores_teacher else "ground truth",
        )
        watchers = [watcher] if shown else []
        result = compare.evaluate(
            predictor, frames, protocol, device, loading, sys.stderr, watchers
        )
        results[name] = result._replace(overlap=seen.get(name))
    # Print and write the report on rank 0.
    if not comm.is_main():
        return
    print("\n\n".join(report.report_texts(results, protocol)))
    if args.out:
        files.replace_text(
            args.out, json.dumps(compare.as_json(results, protocol), indent=1) + "\n"
        )
    if args.per_image:
        tables = {name: result.frames for name, result in results.items()}
        label = protocol.reference.label if scores_teacher else ""
        per_frame.write_csv(args.per_image, tables, label)
    if args.panel:
        depth_functions = {name: network.depth_of for name, network in networks.items()}
        panel.write_panel(args.panel, frames, depth_functions, protocol.max_depth, device)
    for path in filter(None, (args.out, args.per_image, args.panel, args.show_dir)):
        print(f"Written: {path}")


def _some(frames: Dataset, reference: Reference | None) -> Subset:
    """Returns evenly spaced frames of a dataset, from which floors are computed.

    They are at most _MAX_FLOOR_FRAMES, or _MAX_RUN_FRAMES if a teacher is run on them.

    Args:
        frames: the dataset.
        reference: the teacher of the evaluation; None for ground truth.
    """
    is_run = reference is not None and reference.is_run
    count = _MAX_RUN_FRAMES if is_run else _MAX_FLOOR_FRAMES
    return Subset(frames, spaced(len(frames), count).tolist())


def _of_one_set(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """Returns a recipe whose only data set is the one to evaluate.

    If the recipe has several data sets, --data-set must name one. Values of the command line, such
    as --cap or --set evaluation.cap, replace those in the data set's `evaluation` section.

    Args:
        recipe: the recipe.
        args: the program's parsed command line.

    Raises:
        LaunchError: the recipe has several data sets, and --data-set isn't given.
    """
    own = recipe.one_set(args.data_set).recipe
    if not recipe.is_mixed:
        return own
    evaluation, whole = own.section("evaluation"), recipe.section("evaluation")
    for key in ("crop", "cap"):
        # --crop and --cap are overrides, too.
        if is_overridden(("evaluation", key), recipe.node, args.overrides):
            evaluation = {name: value for name, value in evaluation.items() if name != key}
            evaluation |= {key: whole[key]} if key in whole else {}
    return Recipe(own.node | {"evaluation": evaluation})


def _refuse_what_needs_truth(args: argparse.Namespace) -> None:
    """Raises LaunchError for --mean-map and --panel, which need ground truth.

    It is called if the evaluation compares with the teacher, when ground truth isn't read.

    Args:
        args: the program's parsed command line.
    """
    for option, given in (("--mean-map", args.mean_map), ("--panel", args.panel)):
        if given:
            raise LaunchError(
                f"{option}: needs ground truth, and evaluation.against is teacher; leave it out, "
                "or --set evaluation.against=ground_truth (--show-dir draws the teacher's depth, "
                "--floors compares with maps of it that ignore the image)"
            )


def teacher_reference(recipe: Recipe, frames: Dataset, device: torch.device) -> Reference:
    """Builds the recipe's teacher as a Reference, with which predictions are compared.

    Args:
        recipe: the recipe, with a teacher.
        frames: the dataset of evaluation frames.
        device: this rank's device.
    """
    node = with_checkpoints(recipe.node)
    teacher = build_teachers(node, device, recipe.max_depth_m)
    return reference_of(teacher, TeacherList.of(node), frames)
