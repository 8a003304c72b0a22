"""A global batch of a run, made again: the very tensors that its ranks trained on.

Samples and their augmentation are functions of (seed, iteration), so nothing of the run is needed but its recipe and
how its batches were dealt. Costs the reading of the batch, twice: what was drawn for a sample depends on its size.
"""

import argparse
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.config.recipe import load_recipe
from tiekd.data.augment.augment import Augment, Decisions
from tiekd.data.batch import Batch
from tiekd.data.build import build_dataset
from tiekd.data.image_io import write_image
from tiekd.data.loading.loader import Keyed, Loading, Unreadable, training_batches
from tiekd.data.loading.sampler import MicroBatches, size_groups
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import DataError, LaunchError
from tiekd.teaching import build_teacher
from tiekd.training import inputs
from tiekd.training.settings import Recipe
from tiekd.visualization import pictures
from tiekd.workdir import launch_record


class Dealt(NamedTuple):
    """A micro-batch, from 0 within its iteration, of one rank. For each sample: (epoch, index), epochs from 0, and what
    was drawn for it."""

    rank: int
    micro_batch: int
    batch: Batch
    keys: list[tuple[int, int]]
    decisions: list[Decisions]


def global_batch(
    dataset: Dataset,
    augment: Augment,
    loading: Loading,
    seed: int,
    batch_size: int,
    accumulation: int,
    world_size: int,
    iteration: int,
    resize: Resize = OWN_SIZE,
) -> Iterator[Dealt]:
    """The micro-batches of an iteration (from 1, as the log counts them) on the CPU, rank by rank."""
    groups = size_groups(dataset, resize) if augment.sizes == "bucket" else None
    for rank in range(world_size):
        dealing = (len(dataset), batch_size, accumulation, rank, world_size, seed, iteration - 1, iteration, groups)
        sampler = MicroBatches(*dealing)
        unreadable = Unreadable(loading.max_errors) if loading.on_error == "skip" else None
        cpu = torch.device("cpu")
        batches = training_batches(dataset, sampler, augment, seed, 0, cpu, loading.timeout_s, unreadable, resize)
        keyed = Keyed(dataset, augment, seed, resize=resize)
        for micro_batch, (keys, batch) in enumerate(zip(sampler, batches, strict=True)):
            decisions = [_drawn(keyed, *key) for key in keys]
            samples = [(epoch, index % len(dataset)) for epoch, index in keys]  # of repetitions, too
            yield Dealt(rank, micro_batch, batch, samples, decisions)


def describe(dealt: Dealt, sample: int, teacher_depth: Tensor | None) -> str:
    """Three lines about a sample: which one it is, what was drawn for it, what it holds.

    teacher_depth: (B, 1, H, W), metres, of the whole micro-batch; None without a teacher.
    """
    (epoch, index), drawn, batch = dealt.keys[sample], dealt.decisions[sample], dealt.batch
    colours = "colours as they are"
    if drawn.gamma is not None:
        channels = ", ".join(f"{factor:.4f}" for factor in drawn.channels)
        colours = f"gamma {drawn.gamma:.4f}, brightness {drawn.brightness:.4f}, channels {channels}"
    maps = {"depth": batch.depth} | ({} if teacher_depth is None else {"teacher": teacher_depth})
    held = [_range("image", batch.image[sample]), *(_depths(name, depth[sample]) for name, depth in maps.items())]
    place = f"rank {dealt.rank}, micro-batch {dealt.micro_batch}"
    return (
        f"{place}: {batch.names[sample]} (sample {index}, epoch {epoch + 1})\n"
        f"    {'flipped' if drawn.flip else 'not flipped'}, turned {drawn.angle:.4f} degrees, window "
        f"{drawn.height}x{drawn.width} from row {drawn.top}, column {drawn.left}, {colours}\n"
        f"    {'; '.join(held)}"
    )


def _drawn(keyed: Keyed, epoch: int, index: int) -> Decisions:
    """By the size of the sample itself, or of the one that was read in its place (`data.on_error: skip`)."""
    for read_index in range(index, index + len(keyed.dataset)):
        try:
            sample = keyed.dataset[read_index % len(keyed.dataset)]
        except DataError:
            continue
        placement = keyed.resize.place(*sample.image.shape[-2:])
        return keyed.decisions(epoch, index, sample.name, placement)
    raise AssertionError("the batch could be read")


def _range(name: str, values: Tensor) -> str:
    finite = values[values.isfinite()]
    if not len(finite):
        return f"{name}: nothing finite"
    share = 100 * len(finite) / values.numel()
    return f"{name}: {finite.min():.4f} to {finite.max():.4f}, {share:.6g} % finite"


def _depths(name: str, depth: Tensor) -> str:
    """Of the pixels that have one; what is not finite has one too, a bad one."""
    known = depth[depth != 0]
    if not len(known):
        return f"{name}: none"
    return f"{_range(name, known)}, on {100 * len(known) / depth.numel():.4g} % of the pixels"


def run(args: argparse.Namespace) -> None:
    """What bin/show_batch.py does, with its arguments. Prints; raises UserErrors."""
    record = launch_record.read(args.work_dir)
    recipe = load_recipe(args.work_dir / "config.yaml", args.overrides)
    engine = json.loads((args.work_dir / "ds_config.json").read_text(encoding="utf-8"))
    out = (args.out or args.work_dir / "batches").resolve()
    sections = Recipe(recipe)
    options = sections.train
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
        sections.augment,
        sections.loading,
        options.seed,
        options.batch_size,
        engine["gradient_accumulation_steps"],
        record.world_size,
        args.iteration,
        sections.resize,
    )
    max_depth = sections.max_depth_m
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
