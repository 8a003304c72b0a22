"""Measures the host time of the training loop and its hooks, and compares the loop with a bare one.

The benchmark trains a recipe's student on synthetic batches, with DeepSpeed's engine. After every
few iterations, a bare loop (forward, losses, backward, clipping, step) runs the same number of
iterations twice, on the same engine and batch. The ratio of its two times shows the machine's
noise. The hooks are those of a run, except evaluation and checkpoints, whose cost is measured
elsewhere. Writing a log line or an image takes a hook additional time in some iterations; this time
is divided by the recipe's interval between them. `host_share` is the time of the loop and its hooks
divided by that of the step; on a GPU it may overlap with the device's work. Not covered: more than
one rank.

`--against torch` instead compares the engine's step with that of a plain torch loop with
DistributedDataParallel, on one and more ranks and at several ZeRO stages (see `against_torch`).
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
from pathlib import Path

import torch

from tiekd.config.recipe import load_recipe
from tiekd.data.batch import Batch
from tiekd.distributed import process_group
from tiekd.engine.build import build_engine
from tiekd.engine.config import clips_in_step, read_engine_config, resolve
from tiekd.engine.step import Step
from tiekd.models.build import build_network
from tiekd.teachers.maps import CachedMaps
from tiekd.tools.benchmarks import against_torch
from tiekd.tools.benchmarks.loops import TimedHook, TimedStep, Watch
from tiekd.tools.benchmarks.training import CLIP_NORM, BatchShape, device_of, noise
from tiekd.training import criterion as criteria
from tiekd.training import schedules
from tiekd.training.hooks.guard import Guard
from tiekd.training.hooks.preemption import Preemption
from tiekd.training.hooks.tensorboard import TensorBoard
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.kept_memory_hook import KeptMemory
from tiekd.training.loop import train
from tiekd.training.optimizer import build_optimizer
from tiekd.training.state import TrainState

IMAGES = 3
IMAGE_INTERVAL = 500  # iterations between images, if the recipe sets none


def run(args: argparse.Namespace) -> dict:
    """Measures the training loop and its hooks, and compares the loop with a bare one.

    The bare loop calls the engine without hooks. With `--against torch` the result is that of
    `against_torch.run`.

    Args:
        args: the command-line options that `arguments.of_engine` defines.

    Returns:
        "time_ratio" (tiekd's loop / bare loop, median over blocks) with "time_ratio_range" [least,
        largest], and "memory_ratio". "bare_against_itself" is the ratio of the times of two
        identical runs of the bare loop, which shows the noise. "step_ms" is the milliseconds of an
        iteration without hooks; "loop_ms" is the part of them outside of forward, losses, backward
        and teacher; "hooks_ms" is a dict of each hook's milliseconds by its class. "host_share" is
        ("loop_ms" + all hooks) / ("step_ms" + all hooks).
    """
    if args.against == "torch":
        return against_torch.run(args)
    os.environ["DS_ACCELERATOR"] = device_of(args.device).type
    device = process_group.start_rank()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        watch, log_interval, image_interval = _train(args, device, Path(folder))
    # Compute each hook's milliseconds. `watch.times` holds them under the hook's class name; the
    # keys "_step" and "_loop" are the whole step and the loop around it, and are left out here.
    hooks = {
        name: 1e3 * _amortised(times, log_interval, image_interval)
        for name, times in watch.times.items()
        if name[0] != "_"
    }
    # Use the times under "off", i.e. of iterations with neither a log line nor an image, as most
    # iterations of a run are.
    loop = 1e3 * statistics.median(watch.times["_loop"]["off"])
    step = 1e3 * statistics.median(watch.times["_step"]["off"])
    # Compute the ratio of the training loop's to the bare loop's times, and, for the noise, that of
    # the bare loop's two times (bare_s and again_s) after each block.
    ratios = [a / b for a, b in zip(watch.ours_s, watch.bare_s, strict=True)]
    again = [a / b for a, b in zip(watch.again_s, watch.bare_s, strict=True)]
    return {
        "compared": "our loop with its hooks / a bare loop on the same engine, "
        f"{args.block} iterations at a time",
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "bare_against_itself": statistics.median(again),
        "bare_against_itself_range": [min(again), max(again)],
        "memory_ratio": max(watch.ours_peaks) / max(watch.bare_peaks),
        "step_ms": step,
        "loop_ms": loop,
        "hooks_ms": hooks,
        "host_share": (loop + sum(hooks.values())) / (step + sum(hooks.values())),
        "rounds": args.rounds,
        "recipe": args.recipe,
        "batch": args.batch,
        "size": f"{args.height}x{args.width}",
    }


def _train(args: argparse.Namespace, device: torch.device, folder: Path) -> tuple[Watch, int, int]:
    """Trains the student with timed hooks, and runs the bare loop between blocks of iterations.

    A block is `args.block` iterations, of which there are `args.rounds`.

    Args:
        args: the command-line options that `arguments.of_engine` defines.
        device: this rank's device.
        folder: the work dir.

    Returns:
        The hook that has recorded all times; the recipe's interval between two log lines; and that
        between two images. Both intervals are in iterations.
    """
    recipe = load_recipe(args.recipe)
    clip_norm = recipe["train"].get("clip_norm", CLIP_NORM)
    config = resolve(read_engine_config(args.deepspeed_config), args.batch, clip_norm, 1)
    network = build_network(recipe["network"])
    optimizer = build_optimizer(recipe["optimizer"] | {"lr": 1e-5}, network, args.batch, "none")
    engine = build_engine(network, optimizer, config)
    criterion = criteria.build(recipe["losses"], has_teacher=True).to(device)
    shape = BatchShape(args.batch, args.height, args.width)
    batch = noise(shape, network.max_depth, device)
    # Split the batch into as many micro-batches as the engine config asks for.
    micro = args.batch // config.accumulation
    micro_batches = [
        Batch(*(None if value is None else value[i : i + micro] for value in batch))
        for i in range(0, args.batch, micro)
    ]
    # Build the schedule and the hooks of a run, and wrap each hook in a timer.
    total = args.rounds * args.block + IMAGES
    schedule = schedules.build(
        {"name": "constant"},
        base_lr=1e-5,
        base_momentum=None,
        total_iterations=total,
        iterations_per_epoch=total,
    )
    step = Step(engine, config, clip_norm)
    timed_step = TimedStep(
        step, micro_batches, criterion, clip_norm if clips_in_step(config) else None
    )
    # Let the log write a line after each block. TensorBoard writes no image until the last block
    # has ended.
    log = TextLog(interval=args.block, by_epoch=False)
    board = TensorBoard(image_interval=0, max_depth=network.max_depth, text_log=log)
    watch = Watch(device, timed_step.bare_iteration, args.block, args.rounds, board)
    timed_hooks = [
        TimedHook(hook, watch) for hook in (log, board, Preemption(), Guard(log, 50), KeptMemory())
    ]
    state = TrainState(
        engine,
        recipe | {"teacher": {"maps": ""}},
        folder,
        "benchmark",
        args.batch,
        config.accumulation,
        total,
        total,
        False,
        hooks=[*timed_hooks, watch],
        step=timed_step,
    )
    timed_step.watch = watch
    # Use cached teacher maps, which cost the least: the teacher's depth is part of the batch.
    train(
        state,
        timed_step.batches(),
        timed_step.timed(CachedMaps()),
        timed_step.timed_criterion,
        schedule,
    )
    intervals = (
        recipe["log"]["interval"],
        recipe.get("tensorboard", {}).get("image_interval", IMAGE_INTERVAL),
    )
    return watch, *intervals


def _amortised(times: dict[str, list[float]], log_interval: int, image_interval: int) -> float:
    """Returns a hook's mean seconds per iteration.

    The additional time of a log line or an image is divided by the interval between two of them.

    Args:
        times: the hook's seconds by kind of iteration: "off" (neither a log line nor an image),
            "line" or "image".
        log_interval: iterations between two log lines.
        image_interval: iterations between two images; 0 for no images.
    """
    off, line, image = (statistics.median(times[kind]) for kind in ("off", "line", "image"))
    per_iteration = off + max(0.0, line - off) / log_interval
    if image_interval:
        per_iteration += max(0.0, image - off) / image_interval
    return per_iteration
