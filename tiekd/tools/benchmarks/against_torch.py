"""Compares the engine's training step with that of a plain torch loop (DistributedDataParallel).

The comparison is made for each world size and ZeRO stage. Each rank is a process that holds both
loops, with the same network, weights, criterion, optimizer, clipping and batch. After a barrier,
each loop in turn runs a few steps; the slowest rank's time is reported. Both loops synchronise
BatchNorm over all ranks, so torch's loop needn't broadcast buffers. Steps are in fp32, with one
micro-batch; on a CPU each rank uses one thread.

Not covered: data, teacher and hooks, which would be the same in both loops; and several machines.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tiekd.config.recipe import load_recipe
from tiekd.distributed import comm, entrypoint, memory, process_group
from tiekd.engine.build import build_engine
from tiekd.engine.config import resolve
from tiekd.engine.step import Step
from tiekd.errors import LaunchError
from tiekd.models.build import build_network
from tiekd.tools.benchmarks import measure, ranks
from tiekd.tools.benchmarks.training import CLIP_NORM, BatchShape, device_of, noise
from tiekd.training import criterion as criteria
from tiekd.training.optimizer import build_optimizer

_LEARNING_RATE = 1e-5  # small, so that the two losses stay comparable over many steps


def run(args: argparse.Namespace) -> dict:
    """Compares the engine's step with torch's for each number of ranks and each ZeRO stage.

    Torch's is a step of a plain loop with DistributedDataParallel.

    Args:
        args: the command-line options that `arguments.of_engine` defines.

    Returns:
        "table", a list with the result of `combined` for each number of ranks and stage;
        "time_ratio" and "memory_ratio" (engine / torch), the largest ones in the table at the
        smallest of the given ZeRO stages; "compared", a description; and settings of the benchmark.

    Raises:
        LaunchError: an engine config is given, which would apply only to the engine's step; or
            there are fewer GPUs than ranks.
    """
    device = device_of(args.device)
    if args.deepspeed_config is not None:
        raise LaunchError(
            "--against torch compares in fp32 without an engine config; leave --deepspeed_config "
            "out"
        )
    if min(args.ranks) < 1:
        raise LaunchError(f"--ranks: got {min(args.ranks)}; each must be a whole number from 1")
    shape = args.batch, args.height, args.width
    # Measure every combination of a number of ranks and a ZeRO stage, each in new processes.
    table = []
    for count in args.ranks:
        for stage in args.zero:
            asked = [args.recipe, shape, stage, args.rounds, args.block]
            rows = ranks.run_ranks(__name__, count, device.type, asked)
            table.append({"ranks": count, "zero": stage} | combined(rows))
    # Report the largest ratios at the smallest ZeRO stage. Higher stages take more time in order to
    # save memory, which torch's loop doesn't do.
    least = [row for row in table if row["zero"] == min(args.zero)]
    return {
        "compared": "the engine's step / a plain torch loop's with DistributedDataParallel, "
        f"{args.block} steps at a time; the ratios are the largest at ZeRO {min(args.zero)}",
        "time_ratio": max(row["time_ratio"] for row in least),
        "memory_ratio": max(row["memory_ratio"] for row in least),
        "table": table,
        "rounds": args.rounds,
        "recipe": args.recipe,
        "batch_of_a_rank": args.batch,
        "size": f"{args.height}x{args.width}",
    }


def combined(rows: list[dict]) -> dict:
    """Combines the measurements of all ranks to one comparison of the engine's step with torch's.

    Args:
        rows: for each rank the JSON object that `main` wrote.

    Returns:
        "engine_s" and "torch_s", seconds of a step on the slowest rank, median over rounds;
        "engine_peak_mb" and "torch_peak_mb", peak memory summed over ranks; "time_ratio" (engine /
        torch, median over rounds) with "time_ratio_range" [least, largest]; "memory_ratio" (engine
        / torch); and "loss_difference", the relative difference between the losses of the two last
        steps, which only rounding may cause.
    """

    def slowest(key: str) -> list[float]:
        return [max(times) for times in zip(*(row[key] for row in rows), strict=True)]

    # Take the time of a step on the slowest rank, and the peak memory summed over ranks.
    engine_s = slowest("engine_s")
    torch_s = slowest("torch_s")
    ratios = [a / b for a, b in zip(engine_s, torch_s, strict=True)]
    engine_mb = sum(row["engine_peak"] for row in rows) / 1e6
    torch_mb = sum(row["torch_peak"] for row in rows) / 1e6
    return {
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "memory_ratio": engine_mb / max(1e-6, torch_mb),
        "engine_s": statistics.median(engine_s),
        "torch_s": statistics.median(torch_s),
        "engine_peak_mb": engine_mb,
        "torch_peak_mb": torch_mb,
        "loss_difference": max(row["loss_difference"] for row in rows),
    }


def main(
    recipe_path: str, shape: tuple[int, int, int], stage: int, rounds: int, block: int, answer: str
) -> None:
    """Measures the engine's step and torch's on this rank, and writes the results to a JSON file.

    The file has "engine_s" and "torch_s", lists of the seconds per step in each round;
    "engine_peak" and "torch_peak", the peak bytes above those held before the step; and
    "loss_difference", the relative difference between the two losses after the same number of
    steps.

    Args:
        recipe_path: path of the student's recipe.
        shape: (batch size per rank, height, width); height and width in pixels.
        stage: ZeRO stage; 0 for no ZeRO.
        rounds: number of times that each step is timed.
        block: number of consecutive steps that are timed together.
        answer: path of the JSON file.
    """
    device = process_group.start_rank()
    recipe = load_recipe(recipe_path)
    batch_size = shape[0] * comm.world_size()
    # Use the same seed on all ranks, so that they have the same weights.
    torch.manual_seed(0)
    network = build_network(recipe["network"]).to(device)
    criterion = criteria.build(recipe["losses"], has_teacher=True).to(device)
    batch = noise(BatchShape(*shape), network.max_depth, device)
    batch = batch._replace(image=batch.image.roll(comm.rank(), -1))  # each rank has other images
    steps = {
        "torch": torch_step(recipe, copy.deepcopy(network), criterion, batch, batch_size),
        "engine": engine_step(recipe, network, criterion, batch, batch_size, stage),
    }
    # Measure memory first, which also warms up, then time. In every other round the engine's step
    # runs before torch's, so that a slow change of the machine's speed affects both alike.
    peaks = {name: measure.peak_bytes(step, device) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        for name in order:
            comm.barrier()
            memory.wait(device)
            started = time.perf_counter()
            for _ in range(block):
                steps[name]()
            memory.wait(device)
            times[name].append((time.perf_counter() - started) / block)
        order.reverse()
    last = {name: float(step()) for name, step in steps.items()}
    Path(answer).write_text(
        json.dumps(
            {f"{name}_s": seconds for name, seconds in times.items()}
            | {f"{name}_peak": peak for name, peak in peaks.items()}
            | {"loss_difference": abs(last["engine"] / last["torch"] - 1)}
        )
    )


def torch_step(
    recipe: dict, network: nn.Module, criterion: nn.Module, batch, batch_size: int
) -> Callable:
    """Returns a function that runs a step of a plain torch loop and returns its loss, a 0-d tensor.

    Args:
        recipe: the student's recipe, with `optimizer` and `train`.
        network: the student, on the device.
        criterion: the module that computes the weighted losses.
        batch: this rank's `Batch`, the same in every step.
        batch_size: images per iteration, summed over all ranks.
    """
    on_gpu = batch.image.is_cuda
    # Don't let DistributedDataParallel broadcast buffers: the student's BatchNorm layers average
    # their statistics over all ranks, so the buffers are equal.
    ddp = nn.parallel.DistributedDataParallel(
        network.train(),
        device_ids=[batch.image.device] if on_gpu else None,
        broadcast_buffers=False,
    )
    optimizer = build_optimizer(
        recipe["optimizer"] | {"lr": _LEARNING_RATE}, network, batch_size, "none"
    )
    clip_norm = recipe["train"].get("clip_norm", CLIP_NORM)

    # Define a plain torch step with the same parts as the engine's: forward, loss, backward,
    # clipping, optimizer.
    def step() -> torch.Tensor:
        prediction = ddp(batch.image, criterion.divergence_target(batch.teacher_depth))
        loss = criterion(prediction, batch, batch.teacher_depth)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def engine_step(
    recipe: dict, network: nn.Module, criterion: nn.Module, batch, batch_size: int, stage: int
) -> Callable:
    """Returns a function that runs a step with DeepSpeed's engine and returns its 0-d loss.

    Args:
        recipe: the student's recipe, with `optimizer` and `train`.
        network: the student, on the device.
        criterion: the module that computes the weighted losses.
        batch: this rank's `Batch`, the same in every step.
        batch_size: images per iteration, summed over all ranks.
        stage: ZeRO stage; 0 for no ZeRO.
    """
    clip_norm = recipe["train"].get("clip_norm", CLIP_NORM)
    values = {"zero_optimization": {"stage": stage}} if stage else {}
    config = resolve(values, batch_size, clip_norm, comm.world_size())
    optimizer = build_optimizer(
        recipe["optimizer"] | {"lr": _LEARNING_RATE}, network, batch_size, "none"
    )
    engine = build_engine(network, optimizer, config)
    step = Step(engine, config, clip_norm)
    engine.train()

    def iterate() -> torch.Tensor:
        prediction = step.forward(batch.image, criterion.divergence_target(batch.teacher_depth))
        loss = criterion(prediction, batch, batch.teacher_depth)["loss"]
        step.backward(loss)
        return loss.detach()

    return iterate


if __name__ == "__main__":
    entrypoint.program(lambda: main(*json.loads(sys.argv[1])))
