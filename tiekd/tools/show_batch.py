"""Reproduces a run's global batch: the tensors on which its ranks trained in an iteration.

Samples and their augmentation are functions of (seed, iteration). Therefore only the recipe, the
world size and the number of accumulation steps are needed. Each sample is read twice, because its
random augmentation depends on its image's size.
"""

import argparse
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd import files
from tiekd.config.recipe import load_recipe
from tiekd.data import read_folders
from tiekd.data.augment.augment import Augment, Decisions
from tiekd.data.batch import Batch
from tiekd.data.build import build_dataset
from tiekd.data.image_io import write_image
from tiekd.data.loading.loader import Loading, Unreadable, training_batches
from tiekd.data.loading.reader import BatchReader
from tiekd.data.loading.sampler import (
    MicroBatches,
    RankShare,
    iterations_per_epoch,
    size_groups,
)
from tiekd.data.mixed import MixedFrames, sets_in
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import mean_depth
from tiekd.engine.config import read_engine_config
from tiekd.errors import DataError, LaunchError
from tiekd.teaching import build_per_set, build_teachers
from tiekd.training import inputs, mixed_data
from tiekd.training.settings import Recipe, TrainSettings
from tiekd.visualization import pictures
from tiekd.workdir import launch_record


class MicroBatch(NamedTuple):
    """One micro-batch of one rank.

    Attributes:
        rank: the rank, from 0.
        index: index of the micro-batch within the iteration, from 0.
        batch: the tensors on which the rank trained.
        keys: (epoch from 0, dataset index) of each sample.
        decisions: the random augmentation drawn for each sample.
        zooms: the zoom drawn for each sample; empty if the recipe has no zoom.
        data_sets: the name of each sample's data set, in which its index counts; empty if the
            recipe has one.
    """

    rank: int
    index: int
    batch: Batch
    keys: list[tuple[int, int]]
    decisions: list[Decisions]
    zooms: list[float]
    data_sets: tuple[str, ...] = ()


def global_batch(
    dataset: Dataset,
    augment: Augment,
    loading: Loading,
    train: TrainSettings,
    accumulation: int,
    world_size: int,
    iteration: int,
    resize: Resize = OWN_SIZE,
) -> Iterator[MicroBatch]:
    """Yields the micro-batches of an iteration on the CPU, rank by rank.

    Args:
        dataset: the run's training dataset.
        augment: the run's augmentation.
        loading: the run's loading settings.
        train: the run's seed and global batch size.
        accumulation: micro-batches per iteration and rank.
        world_size: the number of ranks.
        iteration: the iteration, from 1 as in the log.
        resize: how the run's images are resized before augmentation.
    """
    # Use the same sampler as training, positioned at this iteration.
    groups = size_groups(dataset, resize) if augment.sizes == "bucket" else None
    iterations, is_mixed = range(iteration - 1, iteration), isinstance(dataset, MixedFrames)
    for rank in range(world_size):
        share = RankShare(rank, world_size)
        if is_mixed:
            sampler = mixed_data.sampler_of(dataset, train, iterations, accumulation, share)
        else:
            sampler = MicroBatches(
                len(dataset),
                train.batch_size,
                iterations,
                seed=train.seed,
                accumulation=accumulation,
                share=share,
                groups=groups,
                order_of=getattr(dataset, "epoch_order", None),
            )
        unreadable = Unreadable(loading.max_errors) if loading.on_error == "skip" else None
        batches = training_batches(
            dataset,
            sampler,
            augment,
            torch.device("cpu"),
            unreadable=unreadable,
            resize=resize,
        )
        reader = BatchReader(dataset, augment, train.seed, resize=resize)
        for index, (keys, batch) in enumerate(zip(sampler, batches, strict=True)):
            decisions = [_draw_decisions(reader, *key) for key in keys]
            # Wrap indices around that exceed the dataset's length, as those of repeated samples in
            # a small dataset do.
            samples = [(epoch, index % len(dataset)) for epoch, index in keys]
            names = ()
            if is_mixed:
                located = [dataset.locate(index) for _, index in keys]
                names = tuple(dataset.sets[number].name for number, _ in located)
                epochs = [epoch for epoch, _ in keys]
                samples = [(e, own) for e, (_, own) in zip(epochs, located, strict=True)]
            zooms = [augment.draw_zoom(train.seed, *key) for key in keys if augment.zoom]
            yield MicroBatch(rank, index, batch, samples, decisions, zooms, names)


def check_iteration(iteration: int, dataset: Dataset, recipe: Recipe) -> None:
    """Raises LaunchError for an iteration that a run of the recipe doesn't have.

    Args:
        iteration: the iteration, from 1.
        dataset: the run's training dataset.
        recipe: the recipe, with overrides applied.
    """
    total = recipe.train.iterations
    if total is None:
        in_groups = recipe.augment.sizes == "bucket"
        groups = size_groups(dataset, recipe.resize) if in_groups else None
        batch_size = recipe.train.batch_size
        per_epoch = iterations_per_epoch(len(dataset), batch_size, groups)
        if isinstance(dataset, MixedFrames):
            per_epoch = mixed_data.iterations_per_epoch(recipe, dataset)
        total = recipe.train.epochs * per_epoch
    if not 1 <= iteration <= total:
        raise LaunchError(f"--iteration {iteration}: the run has iterations 1 to {total}")


def describe(micro_batch: MicroBatch, sample: int, teacher_depth: Tensor | None) -> str:
    """Returns three lines of text about a sample: its name, its augmentation, and its depth ranges.

    Args:
        micro_batch: the micro-batch.
        sample: index of the sample in the micro-batch.
        teacher_depth: (B, 1, H, W) float32, metres, of the whole micro-batch; None without a
            teacher.
    """
    epoch, index = micro_batch.keys[sample]
    drawn = micro_batch.decisions[sample]
    batch = micro_batch.batch
    colours = "colours as they are"
    if drawn.gamma is not None:
        channels = ", ".join(f"{factor:.4f}" for factor in drawn.channels)
        colours = f"gamma {drawn.gamma:.4f}, brightness {drawn.brightness:.4f}, channels {channels}"
    maps = {"depth": batch.depth} | ({} if teacher_depth is None else {"teacher": teacher_depth})
    held = [
        _range("image", batch.image[sample]),
        *(_depths(name, depth[sample]) for name, depth in maps.items()),
    ]
    zoomed = f"zoomed by {micro_batch.zooms[sample]:.4f}, " if micro_batch.zooms else ""
    flipped = "flipped" if drawn.flip else "not flipped"
    # Name the sample's data set, since the sample's index and epoch count within it.
    of_set = f" of {micro_batch.data_sets[sample]}" if micro_batch.data_sets else ""
    place = f"rank {micro_batch.rank}, micro-batch {micro_batch.index}"
    return (
        f"{place}: {batch.names[sample]} (sample {index}{of_set}, epoch {epoch + 1})\n    "
        f"{zoomed}{flipped}, turned {drawn.angle:.4f} degrees, window "
        f"{drawn.height}x{drawn.width} from row {drawn.top}, column {drawn.left}, {colours}\n    "
        f"{'; '.join(held)}"
    )


def _draw_decisions(reader: BatchReader, epoch: int, index: int) -> Decisions:
    """Returns the parameters of a sample's random augmentation, which depend on its image's size.

    With `data.on_error: skip` the image may be that of another frame, which is read in place of one
    that can't be read.

    Args:
        reader: reader of the run's training dataset.
        epoch: epoch, from 0.
        index: index of the sample in the sampler's numbering.
    """
    replacements = reader.replacements(index)
    for step in range(replacements.count):
        try:
            sample = reader.dataset[replacements.at(step)]
        except DataError:
            continue
        size = tuple(sample.image.shape[-2:])
        placement = reader.placement(epoch, index, sample)
        return reader.decisions(epoch, index, sample.name, placement, size)
    raise AssertionError("the batch could be read")


def _range(name: str, values: Tensor) -> str:
    finite = values[values.isfinite()]
    if not len(finite):
        return f"{name}: nothing finite"
    share = 100 * len(finite) / values.numel()
    return f"{name}: {finite.min():.4f} to {finite.max():.4f}, {share:.6g} % finite"


def _depths(name: str, depth: Tensor) -> str:
    """Returns a phrase with the range of a depth map's known depths and the share of such pixels.

    Known pixels are all that aren't 0, including non-finite ones.

    Args:
        name: name of the map, with which the result begins.
        depth: (1, H, W), metres.
    """
    known = depth[depth != 0]
    if not len(known):
        return f"{name}: none"
    return f"{_range(name, known)}, on {100 * len(known) / depth.numel():.4g} % of the pixels"


def run(args: argparse.Namespace) -> None:
    """Runs bin/show_batch.py: prints the samples of an iteration of a run, and writes their images.

    The images are written to the folder of --out, or by default to `batches` in the work dir.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: there is no such run or iteration, or its files can't be read.
    """
    record = launch_record.read(args.work_dir)
    recipe = Recipe(load_recipe(args.work_dir / "config.yaml", args.overrides))
    engine = read_engine_config(args.work_dir / "ds_config.json")
    out = (args.out or args.work_dir / "batches").resolve()
    if args.rank is not None and not 0 <= args.rank < record.world_size:
        raise LaunchError(f"--rank {args.rank}: the run had ranks 0 to {record.world_size - 1}")
    # Change to the working directory in which the run was launched, to which relative paths in the
    # recipe refer.
    work_dir = args.work_dir.resolve()
    os.chdir(record.folder)
    has_teacher, teacher = recipe.has_teacher and not args.no_teacher, None
    held_out, device = inputs.held_out(inputs.read(work_dir), recipe), torch.device("cpu")
    if recipe.is_mixed:
        train_set = mixed_data.training_frames(recipe, held_out)
        recipes = {own.name: own.recipe.node for own in recipe.data_sets}
        if has_teacher:
            sets = dict(sets_in(train_set))
            teacher = build_per_set(recipes, sets, device, recipe.max_depth_m)
    else:
        if has_teacher:
            teacher = build_teachers(recipe.node, device, recipe.max_depth_m)
        train_set = build_dataset(recipe.dataset, "train", held_out=held_out)
    check_iteration(args.iteration, train_set, recipe)
    # Use the world size and the accumulation of the last launch, which determine how a batch is
    # split.
    micro_batches = global_batch(
        train_set,
        recipe.augment,
        recipe.loading,
        recipe.train,
        engine["gradient_accumulation_steps"],
        record.world_size,
        args.iteration,
        recipe.resize,
    )
    for own in recipe.data_sets:
        read_folders.refuse("--out", out, (".png",), own.recipe.data, own.recipe.dataset.maps)
    max_depth = recipe.max_depth_m
    files.check_output("--out", out, None)
    for part in micro_batches:
        if args.rank not in (None, part.rank):
            continue
        depths = {"ground truth": part.batch.depth} | (
            {"teacher": mean_depth(teacher(part.batch))} if has_teacher else {}
        )
        for sample in range(len(part.batch.names)):
            print(describe(part, sample, depths.get("teacher")))
            row = [pictures.denormalise(part.batch.image[sample].numpy())]
            row += [
                pictures.colourise(depth[sample, 0].numpy(), max_depth) for depth in depths.values()
            ]
            name = f"iteration_{args.iteration}_rank_{part.rank}_micro_{part.index}"
            name += f"_sample_{sample}.png"
            write_image(out / name, pictures.panel([row], ["image", *depths], max_depth))
    print(f"Images: {out}")
