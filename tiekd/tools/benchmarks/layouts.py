"""Times convolutions in each memory layout that this CPU's instruction set allows.

The table in tiekd/kernels/layouts.py was made from these results. Each of its rows gives the layout
for one kind of convolution, such as those with large inputs in training. A training run uses the
table and measures nothing. For each row, all allowed layouts are timed on the same convolutions:
those of the published student, at 352x704 or a quarter of it. A result is the time of a layout
divided by that of the layout in the table, the median over rounds. A result below 1 means that the
layout is faster here than the table's. Times are CPU seconds of one thread, which other programs on
the machine affect little. To measure a smaller instruction set on the same CPU:
`ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 bin/benchmark.py layouts`. Not covered: memory,
GPUs, more threads.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from tiekd.errors import LaunchError
from tiekd.kernels import layouts
from tiekd.kernels.convolution import Conv2d, compute_in_fp32


class Shape(NamedTuple):
    """The size of a convolution.

    Attributes:
        in_channels: number of input channels.
        out_channels: number of output channels.
        height: height of the input, pixels.
        width: width of the input, pixels.
        kernel: height and width of the kernel, pixels.
        groups: number of groups of channels; `in_channels` for a depthwise convolution.
        stride: stride in both directions, pixels.
    """

    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 3
    groups: int = 1
    stride: int = 1


# Convolutions with large inputs: the decoder's first convolution, merged with the 1x1 convolution
# before it; two more of the decoder; and one of a narrow student.
LARGE = [
    Shape(416, 512, 44, 88),
    Shape(280, 128, 88, 176),
    Shape(128, 128, 176, 352),
    Shape(32, 32, 176, 352),
]
SMALL = [Shape(416, 512, 11, 22), Shape(512, 512, 8, 16)]
# Other kinds of the encoder's convolutions: 3x3, depthwise, widening and narrowing 1x1, and the
# first one of the network.
ANY = [
    Shape(64, 64, 44, 88),
    Shape(192, 192, 44, 88, groups=192),
    Shape(32, 192, 44, 88, kernel=1),
    Shape(192, 32, 44, 88, kernel=1),
    Shape(3, 32, 88, 176, stride=2),
]
SHAPES = {
    layouts.LARGE_TRAINING: LARGE,
    layouts.LARGE_FORWARD: LARGE,
    layouts.SMALL: SMALL,
    layouts.ANY: ANY,
}


def run(args: argparse.Namespace) -> dict:
    """Times all allowed layouts of each kind of convolution, and compares them with the table's.

    The table is that of tiekd/kernels/layouts.py.

    Args:
        args: the command-line options that `arguments.of_layouts` defines.

    Returns:
        "isa", this CPU's instruction set; "rows", a list of dicts; "faster"; "rounds", the number
        of rounds; and "compared", a description. Each of "rows" has "row" (the kind of
        convolution), "convolution" (its size), "table" (the table's layout), "table_ms" (the time
        in this layout), and for each layout its time divided by that of the table's layout.
        "faster" lists the kinds for which another layout is faster by more than 5 %, or is a text
        that says that there are none.

    Raises:
        LaunchError: the device isn't a CPU.
    """
    if args.device != "cpu":
        raise LaunchError(
            f"--device {args.device}: allowed: cpu; a GPU's convolutions need no table"
        )
    isa = layouts.isa()
    rows = []
    faster = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Skip the table's rows for other instruction sets than this CPU's, since they can't be
        # measured.
        for (of, shape_class, dtype), chosen in layouts.TABLE.items():
            if of != isa:
                continue
            # With --shrink divide the images' height and width by this factor; keep the numbers of
            # channels.
            totals = {}
            for shape in SHAPES[shape_class]:
                height, width = (
                    max(1, pixels // args.shrink) for pixels in (shape.height, shape.width)
                )
                shape = shape._replace(height=height, width=width)
                times = _times(shape, shape_class, dtype, args.rounds)
                for setting, values in times.items():
                    totals[setting] = totals.get(setting, 0.0) + statistics.median(values)
                rows.append(_row(f"{shape_class}, {dtype}", shape, chosen, times))
            # Compare the layouts by their total time for all convolutions of a kind, since the
            # table has one layout for all of them.
            best = min(totals, key=totals.get)
            if totals[best] < 0.95 * totals[chosen]:
                faster.append(
                    f"{shape_class}, {dtype}: {best}, {totals[best] / totals[chosen]:.2f} of "
                    f"{chosen}"
                )
    finally:
        layouts.set_settings(None)
        torch.set_num_threads(threads)
    return {
        "compared": f"every choice of the table of layouts by the table's own, {isa}",
        "isa": isa,
        "rounds": args.rounds,
        "rows": rows,
        "faster": faster
        or "nowhere is another choice than the table's faster by more than 5 %, all shapes "
        "together",
    }


def _row(name: str, shape: Shape, chosen: str, times: dict[str, list[float]]) -> dict:
    grouped = f", {shape.groups} groups" if shape.groups > 1 else ""
    strided = f", stride {shape.stride}" if shape.stride > 1 else ""
    kind = f"{shape.kernel}x{shape.kernel}{grouped}{strided}"
    channels = f"{shape.in_channels} -> {shape.out_channels}"
    row = {
        "row": name,
        "convolution": f"{channels}, {kind}, {shape.height}x{shape.width}",
        "table": chosen,
        "table_ms": 1e3 * statistics.median(times[chosen]),
    }
    for setting, values in times.items():
        row[setting] = statistics.median(a / b for a, b in zip(values, times[chosen], strict=True))
    return row


def _times(shape: Shape, shape_class: str, dtype: str, rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of a convolution in each layout, layout -> seconds of each round.

    Backward is timed together with forward, except for the kind of convolution
    `layouts.LARGE_FORWARD`, which is timed in forward alone.

    Args:
        shape: the size of the convolution.
        shape_class: the kind of convolution in the table, a key of SHAPES.
        dtype: the precision in the table, such as `layouts.BF16`.
        rounds: number of rounds; a warm-up round before them isn't part of the result.
    """
    calls = {
        setting: _call(shape, shape_class, dtype, setting) for setting in layouts.ALLOWED[dtype]
    }
    if shape_class in (layouts.LARGE_FORWARD, layouts.SMALL):
        # Don't time the layout PRODUCTS, in which matrix products compute the gradient of the
        # weights, for convolutions other than those with large inputs in training: it is used only
        # there.
        del calls[layouts.PRODUCTS]
    times = {setting: [] for setting in calls}
    for _ in range(rounds + 1):
        for setting, call in calls.items():
            start = time.process_time()
            call()
            times[setting].append(time.process_time() - start)
    return {setting: values[1:] for setting, values in times.items()}


def _call(shape: Shape, shape_class: str, dtype: str, setting: str) -> Callable[[], None]:
    # Make the convolution and its input in the memory format and precision to be timed.
    torch.manual_seed(0)
    conv = Conv2d(
        shape.in_channels,
        shape.out_channels,
        shape.kernel,
        stride=shape.stride,
        padding=shape.kernel // 2,
        groups=shape.groups,
    )
    contiguous = setting == layouts.KEEP_LAYOUT
    layout = torch.contiguous_format if contiguous else torch.channels_last
    x = torch.randn(1, shape.in_channels, shape.height, shape.width).contiguous(
        memory_format=layout
    )
    if setting == layouts.IN_FP32:
        compute_in_fp32(conv)
    in_bf16 = dtype == layouts.BF16
    training = shape_class != layouts.LARGE_FORWARD
    if in_bf16:
        x = x.bfloat16()
    x.requires_grad_(training)
    # Set the layout in a copy of the table, from which a convolution in fp32 training reads it. In
    # bf16 the layout has been applied above.
    settings = dict(layouts.of_isa(layouts.isa()))
    if not in_bf16:
        settings[f"{layouts.LARGE_TRAINING}, {layouts.FP32}"] = setting
    # Make the gradient for backward here, so that its time isn't measured.
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16), torch.no_grad():
        grad = torch.randn_like(conv(x))

    def call() -> None:
        layouts.set_settings(settings)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=in_bf16),
            torch.set_grad_enabled(training),
        ):
            y = conv(x)
        if training:
            y.backward(grad)

    return call
