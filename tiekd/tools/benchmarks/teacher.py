"""Compares a training step with cached teacher maps with one that runs the teacher's network.

With cached maps, the step takes the teacher's depth from the batch. The reference first runs the
recipe's teacher, frozen and with random weights, then the same step. The benchmark `loader`
measures the cost of loading maps. Not covered: flip averaging, which doubles the teacher's time;
DeepSpeed.
"""

import argparse

import torch

from tiekd.config.recipe import load_recipe
from tiekd.engine.execution import Execution, memory_format
from tiekd.models.build import build_network
from tiekd.teachers.network import FrozenTeacher
from tiekd.tools.benchmarks import measure
from tiekd.tools.benchmarks.student import network_node
from tiekd.tools.benchmarks.training import DTYPES, BatchShape, TrainingStep, device_of


def run(args: argparse.Namespace) -> dict:
    """Compares a training step with cached teacher maps with one that runs the teacher.

    Args:
        args: the command-line options that `arguments.of_teacher` defines.

    Returns:
        The result of `measure.compare`, i.e. "time_ratio" and "memory_ratio" (cached / online) with
        the measured times and peaks, which include the networks' weights and the optimizer's
        moments.

    Raises:
        RecipeError: the recipe has no teacher network.
    """
    device = device_of(args.device)
    recipe = load_recipe(args.recipe)
    dtype = DTYPES[args.dtype]
    layout = memory_format(Execution(), dtype is not None)
    shape = BatchShape(args.batch, args.height, args.width)
    network = build_network(network_node(recipe, True, args.recipe))
    online = FrozenTeacher(network, device, precision=args.dtype)
    steps = [
        TrainingStep(recipe, device, shape, dtype, layout, teacher=teacher)
        for teacher in (None, online)
    ]
    compared = f"a training step with cached maps / with the teacher online, both {args.dtype}"
    result = measure.compare(compared, *steps, args.rounds, device)
    # Add to each peak the memory that stays allocated between steps: the student's weights and
    # moments. Add the teacher's weights only to the step that runs the teacher.
    teacher_bytes = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    result["ours_peak_mb"] += steps[0].state_bytes() / 1e6
    result["reference_peak_mb"] += (steps[1].state_bytes() + teacher_bytes) / 1e6
    result["memory_ratio"] = result["ours_peak_mb"] / result["reference_peak_mb"]
    return result | {
        "recipe": args.recipe,
        "teacher_parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "batch": args.batch,
        "size": f"{args.height}x{args.width}",
        "convolutions_may_use_tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
    }
