"""Compares tiekd's training step of a recipe's student with a plain one.

tiekd's step uses the head's kernels, modules that save work and memory, the dtype and memory format
of the options, the fused optimizer, and torch.compile on request. The plain step computes head and
modules operator by operator, as they are defined and published, in fp32 on contiguous tensors, and
AdamW parameter by parameter. Both have the same weights, losses and clipping, and the same batch of
noise. Memory includes weights, the optimizer's moments, and the step's peak above them. torch's
defaults decide if convolutions may use TF32; the result reports this. Not covered: DeepSpeed and
hooks, which the benchmark `engine` measures; and data.
"""

import argparse

import torch

from tiekd.config.recipe import load_recipe
from tiekd.engine.execution import Execution, memory_format
from tiekd.tools.benchmarks import measure
from tiekd.tools.benchmarks.training import DTYPES, BatchShape, TrainingStep, device_of


def run(args: argparse.Namespace) -> dict:
    """Compares tiekd's training step with the plain one, which saves neither time nor memory.

    Args:
        args: the command-line options that `arguments.of_step` defines.

    Returns:
        The result of `measure.compare`, i.e. "time_ratio" and "memory_ratio" (tiekd / plain) with
        the measured times and peaks, which include weights, buffers and the optimizer's moments;
        "ours_images_per_s" and "reference_images_per_s"; and "first_loss_difference", the relative
        difference between the losses of the two first steps, which only rounding may cause.
    """
    device = device_of(args.device)
    recipe = load_recipe(args.recipe)
    shape = BatchShape(args.batch, args.height, args.width)
    dtype = DTYPES[args.dtype]
    layout = memory_format(Execution(args.memory_format), dtype is not None)
    ours = TrainingStep(recipe, device, shape, dtype, layout, compiled=args.compile)
    theirs = TrainingStep(recipe, device, shape, plain=True)
    # Run the first step of both from the same weights; their losses may differ only by rounding.
    losses = [_first_loss(step) for step in (ours, theirs)]
    how = f"{args.dtype}, {str(layout).removeprefix('torch.')}"
    if args.compile:
        how += ", compiled"
    compared = f"a training step, ours ({how}) against plain head and modules, fp32, contiguous"
    result = measure.compare(
        compared, ours, theirs, args.rounds, device, queued=measure.QUEUED_CALLS
    )
    # Add to each peak the memory that is held between steps: weights, buffers and the optimizer's
    # moments.
    for name, step in (("ours", ours), ("reference", theirs)):
        result[f"{name}_peak_mb"] += step.state_bytes() / 1e6
        result[f"{name}_images_per_s"] = args.batch / result[f"{name}_s"]
    result["memory_ratio"] = result["ours_peak_mb"] / result["reference_peak_mb"]
    return result | {
        "first_loss_difference": abs(losses[0] / losses[1] - 1),
        "recipe": args.recipe,
        "batch": args.batch,
        "size": f"{args.height}x{args.width}",
        "convolutions_may_use_tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
    }


def _first_loss(step: TrainingStep) -> float:
    step()
    return step.loss.item()
