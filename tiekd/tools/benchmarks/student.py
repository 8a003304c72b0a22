"""Measures parameters, multiply-adds, latency and memory of a recipe's student or teacher.

Multiply-adds are those of convolutions and matrix products, including the head's, in a forward pass
of one image. They are counted for the plain network, which computes each operator as published, and
for the optimised one, which is trained and exported. Latency is that of a forward pass without
gradients: that of the optimised network, in the memory format and precision of the options, is
compared with that of the plain network in fp32 on contiguous tensors. Not covered: data, flip
averaging, other runtimes.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tiekd.config.recipe import load_recipe
from tiekd.config.teacher_node import TeacherList
from tiekd.engine.execution import Execution, compile_parts, memory_format
from tiekd.errors import RecipeError
from tiekd.kernels import reference
from tiekd.kernels.convolution import prepare_bf16
from tiekd.models.build import build_network
from tiekd.tools.benchmarks import measure
from tiekd.tools.benchmarks.training import DTYPES, BatchShape, device_of, make_plain, noise


def run(args: argparse.Namespace) -> dict:
    """Measures the student or the teacher, with and without tiekd's optimisations.

    Args:
        args: the command-line options that `arguments.of_student` defines.

    Returns:
        The result of `measure.compare` for a forward pass, i.e. "time_ratio" and "memory_ratio"
        (optimised / plain) with the measured times and peaks; "parameters_m", millions of
        parameters; "gmac" and "ours_gmac", billions of multiply-adds per image of the plain and of
        the optimised network; and "weights_mb", the size of the weights in fp32.
    """
    device = device_of(args.device)
    recipe = load_recipe(args.recipe)
    node = network_node(recipe, args.teacher, args.recipe)
    network = build_network(node).to(device).eval()
    shape = BatchShape(args.batch, args.height, args.width)
    image = noise(shape, node["max_depth"], device).image
    count = sum(parameter.numel() for parameter in network.parameters())
    dtype = DTYPES[args.dtype]
    layout = memory_format(Execution(args.memory_format), dtype is not None)
    # Count the multiply-adds of one image while both networks are still in fp32 and contiguous.
    plain = make_plain(build_network(node).to(device).eval())
    gmac, ours_gmac = (multiply_adds(each, image[:1]) / 1e9 for each in (plain, network))
    # Set memory format, precision and compilation of the optimised network, as the options say.
    network.memory_format = layout
    if dtype is not None:
        prepare_bf16(network)
    if args.compile:
        compile_parts(network)
    how = f"{args.dtype}, {str(layout).removeprefix('torch.')}"
    if args.compile:
        how += ", compiled"
    compared = (
        f"a forward without gradients, ours ({how}) / plain modules and head, fp32, contiguous"
    )
    # Compare with the plain network in fp32, whatever the precision of the optimised one.
    ours = _forward(network, image, dtype)
    theirs = _forward(plain, image, None)
    return {
        "recipe": args.recipe,
        "network": "teacher" if args.teacher else "student",
        "parameters_m": count / 1e6,
        "gmac": gmac,
        "ours_gmac": ours_gmac,
        "weights_mb": 4 * count / 1e6,
        "batch": args.batch,
        "size": f"{args.height}x{args.width}",
        **measure.compare(compared, ours, theirs, args.rounds, device),
    }


def network_node(recipe: dict, teachers: bool, path: str) -> dict:
    """Returns a recipe's section for the student's or the teacher's network, a dict.

    If there are several teachers, it is the section of the first one that is a network.

    Args:
        recipe: the recipe.
        teachers: True for the teacher's network, False for the student's.
        path: the recipe's path, for the error message.

    Raises:
        RecipeError: the teacher's network is asked for, and the recipe has none.
    """
    if not teachers:
        return recipe["network"]
    networks = [node.network for node in TeacherList.of(recipe).nodes if node.network]
    if not networks:
        raise RecipeError(
            f"--teacher: {path} names no teacher network; give a recipe with teacher.recipe"
        )
    return networks[0]


@torch.no_grad()
def multiply_adds(network: nn.Module, image: torch.Tensor) -> int:
    """Returns the number of multiply-adds of convolutions and matrix products in one forward pass.

    A DPM head uses its plain implementation while counting, since torch can't count the operations
    of custom kernels.

    Args:
        network: the network.
        image: (B, 3, H, W), the network's input.
    """
    head = network.head
    kernel = getattr(network.head, "kernel", None)
    if kernel is not None:
        head.kernel = reference.dpm
    with FlopCounterMode(display=False) as counter:
        network(image)
    if kernel is not None:
        head.kernel = kernel
    # Halve the count, since torch counts a multiply-add as two operations.
    return counter.get_total_flops() // 2


def _forward(
    network: nn.Module, image: torch.Tensor, dtype: torch.dtype | None
) -> Callable[[], None]:
    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(image.device.type, dtype, enabled=dtype is not None):
            network(image)

    return forward
