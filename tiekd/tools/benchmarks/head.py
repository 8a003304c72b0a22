"""Compares the DPM head's kernels with its plain implementation, in forward and backward.

The DPM head computes from features, for each pixel, a probability distribution over depth bins. The
kernels are those that `tiekd.kernels.dpm` selects for the device. The plain implementation is
`tiekd.kernels.reference`, which keeps every (B, K, h, w) tensor that autograd needs, for B images
and K bins. Further comparisons: the head's matrix products alone (logits twice, since the kernels
don't keep them, and both gradients), torch.compile of the plain implementation, the plain
implementation on chunks of rows, and on a GPU the roofline, i.e. the shortest possible time from
memory bandwidth and arithmetic speed. The target resembles a street: depths that grow towards the
top, with holes.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tiekd import kernels
from tiekd.kernels import reference
from tiekd.kernels.target import bin_edges
from tiekd.tools.benchmarks import measure
from tiekd.tools.benchmarks.training import device_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CHUNK_ROWS = 16
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]


def run(args: argparse.Namespace) -> dict:
    """Compares the kernels with the plain implementation, and with alternatives (--also).

    Args:
        args: the command-line options that `arguments.of_head` defines.

    Returns:
        The result of `measure.compare`, i.e. "time_ratio" and "memory_ratio" (kernels / plain) with
        the measured times and peaks; and "worst_relative_error", the result of `worst_error` for
        the kernels' outputs and gradients against those of the plain implementation in the same
        dtype. For each alternative there is such a comparison with it: "products" (the matrix
        products alone), "compiled" (torch.compile of the plain implementation) or "chunks" (the
        plain one on a few rows at a time). On a GPU, "roofline" has the result of `_roofline`.
    """
    device = device_of(args.device)
    inputs = example(
        args.batch, args.channels, args.bins, args.height, args.width, DTYPES[args.dtype], device
    )
    # Pass features in channels_last if asked for, as a network in this memory format does.
    if args.layout == "channels_last":
        inputs = inputs[0].to(memory_format=torch.channels_last), *inputs[1:]
    ours, plain = (
        partial(train, dpm, *inputs, args.target) for dpm in (kernels.dpm, reference.dpm)
    )
    shape = (
        f"batch {args.batch}, {args.channels} channels, {args.bins} bins, "
        f"{args.height}x{args.width}"
    )
    # Report the module of the selected kernels, because the selection depends on the device and the
    # sizes of the inputs.
    name = kernels.implementation(*inputs[:1], inputs[4], inputs[3]).__module__.rsplit(".", 1)[1]
    compared = (
        f"head and divergence, forward and backward: {name} / reference, {args.dtype}, "
        f"{args.layout}, {shape}"
    )
    result = measure.compare(
        compared, ours, plain, args.rounds, device, queued=measure.QUEUED_CALLS
    )
    # Compare the results of both implementations, so that a wrong one can't seem fast.
    result["worst_relative_error"] = worst_error(ours(), plain())
    # Also time the head's matrix products alone, which are a lower limit of the head's time, and
    # alternative ways to save memory or time.
    others = {
        "products": partial(products, *inputs[:3]),
        "chunks": partial(train, in_chunks, *inputs, args.target),
    }
    if "compiled" in args.also:
        others["compiled"] = partial(train, torch.compile(reference.dpm), *inputs, args.target)
    for other in args.also:
        compared = f"{name} / {_TOLD[other]}"
        memory = other != "products"
        result[other] = measure.compare(
            compared, ours, others[other], args.rounds, device, memory, measure.QUEUED_CALLS
        )
    if device.type == "cuda":
        result["roofline"] = _roofline(args, inputs[0].element_size(), result["ours_s"], device)
    return result


_TOLD = {
    "products": "its four matrix products alone",
    "compiled": "torch.compile of the reference",
    "chunks": f"the reference on {_CHUNK_ROWS} rows at a time, eager",
}


def example(
    images: int,
    channels: int,
    bins: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Inputs:
    """Makes random inputs for `reference.dpm`.

    Args:
        images: batch size B.
        channels: number of feature channels C.
        bins: number of bins K.
        height: height h of features and depth.
        width: width w of features and depth.
        dtype: dtype of features, weight and bias.
        device: device of all tensors.

    Returns:
        Features (B, C, h, w), weight (K, C, 1, 1), bias (K,), bin edges (K + 1,) in metres, target
        depth (B, 1, h, w) float32 in metres, 0 in a tenth of the pixels, and the standard deviation
        of the Gaussian target in metres.
    """
    g = torch.Generator(device).manual_seed(0)
    features = torch.randn(images, channels, height, width, generator=g, device=device)
    weight = torch.randn(bins, channels, 1, 1, generator=g, device=device) / channels**0.5
    depth = (
        torch.linspace(80, 3, height, device=device).view(1, 1, -1, 1).repeat(images, 1, 1, width)
    )
    # Add up to 1 m of noise, and remove the depth of a tenth of the pixels.
    depth += torch.rand(depth.shape, generator=g, device=device)
    depth[torch.rand(depth.shape, generator=g, device=device) < 0.1] = 0
    edges = bin_edges(bins, 1e-3, 80.0).to(device)
    # Choose sigma, the standard deviation of the Gaussian target, which must be at least half of
    # the width of the widest bin, i.e. of the last one.
    sigma = max(0.5, 0.51 * float(edges[-1] - edges[-2]))
    return (
        features.to(dtype),
        weight.to(dtype),
        torch.zeros(bins, device=device, dtype=dtype),
        edges,
        depth,
        sigma,
    )


def train(
    dpm: Callable,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    depth: Tensor,
    sigma: float,
    target: str,
) -> tuple[Tensor, ...]:
    """Runs a DPM head forward and backward.

    The shapes are those of B images of h x w pixels, C feature channels and K depth bins. The loss
    is 0.1 times the mean of the depth, plus the mean of the divergence.

    Args:
        dpm: the function that computes the head, such as `kernels.dpm`.
        features: (B, C, h, w), the decoder's features.
        weight: (K, C, 1, 1), weight of the convolution that gives the logits.
        bias: (K,), bias of this convolution.
        edges: (K + 1,), edges of the bins, metres.
        depth: (B, 1, h, w), target depth, metres, 0 where not valid.
        sigma: standard deviation of the Gaussian target, metres.
        target: how the target distribution is computed: "gaussian", or "released" as in the code
            that was published with TIE-KD.

    Returns:
        Predicted depth (B, 1, h, w) in metres, divergence from the target distribution (B, 1, h,
        w), and the gradients of features, weight and bias, with their shapes.
    """
    leaves = [t.detach().requires_grad_() for t in (features, weight, bias)]
    outputs = dpm(*leaves, edges, depth, sigma, target=target)
    loss = 0.1 * outputs[0].mean() + outputs[1].mean()
    return *(o.detach() for o in outputs), *torch.autograd.grad(loss, leaves)


def in_chunks(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    depth: Tensor,
    sigma: float,
    target: str,
):
    """Computes `reference.dpm` on a few rows of pixels at a time, and recomputes each in backward.

    Only the logits of these rows are in memory at a time. The shapes are those of B images of h x w
    pixels, C feature channels and K depth bins.

    Args:
        features: (B, C, h, w), the decoder's features.
        weight: (K, C, 1, 1), weight of the convolution that gives the logits.
        bias: (K,), bias of this convolution.
        edges: (K + 1,), edges of the K bins, metres.
        depth: (B, 1, h, w), target depth, metres, 0 where not valid.
        sigma: standard deviation of the Gaussian target, metres.
        target: how the target distribution is computed: "gaussian", or "released" as in the code
            that was published with TIE-KD.

    Returns:
        Predicted depth in metres and divergence from the target distribution, each (B, 1, h, w).
    """
    rows = zip(features.split(_CHUNK_ROWS, 2), depth.split(_CHUNK_ROWS, 2), strict=True)
    whole = partial(torch.utils.checkpoint.checkpoint, reference.dpm, use_reentrant=False)
    parts = [whole(f, weight, bias, edges, d, sigma, target=target) for f, d in rows]
    return tuple(torch.cat(maps, 2) for maps in zip(*parts, strict=True))


def products(features: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Computes only the DPM head's matrix products: the logits twice, and two gradients.

    The logits are computed twice since the kernels don't keep them for backward. The gradients are
    those of features and weight. The results are discarded.

    Args:
        features: (B, C, h, w), the decoder's features.
        weight: (K, C, 1, 1), weight of the convolution that gives the logits of K bins.
        bias: (K,), bias of this convolution.
    """
    x = features.flatten(2)
    matrix = weight.flatten(1)
    # Process one image at a time, so that only the logits of one image are in memory.
    for image in x:
        logits = F.linear(image.T, matrix, bias)
        del logits
        logits = F.linear(image.T, matrix, bias)
        _ = logits @ matrix, logits.T @ image.T


def worst_error(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """Returns the largest relative error of several tensors, as one number.

    The relative error of a tensor is its largest absolute error divided by the largest absolute
    value of the right tensor.

    Args:
        got: the tensors to check.
        wanted: the right tensors, in the same order.
    """
    pairs = zip(got, wanted, strict=True)
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs
    )


def roofline_seconds(
    images: int,
    channels: int,
    bins: int,
    height: int,
    width: int,
    bytes_per_feature: int,
    bytes_per_s: float,
    flops_per_s: float,
) -> dict[str, float]:
    """Computes the DPM head's shortest possible times from bandwidth and speed (roofline).

    Forward reads the features and a target depth, writes three numbers per pixel, and has one
    product of 2 x channels x bins flops per pixel. Backward reads the features and six numbers,
    writes the features' gradient, and has three products. Each takes the time for its bytes or for
    its flops, whichever is longer. The weights' bytes are negligible.

    Args:
        images: batch size.
        channels: number of feature channels.
        bins: number of bins.
        height: height of the features, pixels.
        width: width of the features, pixels.
        bytes_per_feature: 4 for fp32, 2 for bf16 and fp16.
        bytes_per_s: bandwidth of the device's memory.
        flops_per_s: speed of the device's matrix products.

    Returns:
        {"forward_s", "backward_s", "total_s"}, seconds.
    """
    # Count the bytes and flops. Besides the features, float32 numbers are read or written for each
    # pixel: four in forward (16 bytes), six in backward (24 bytes).
    pixels = images * height * width
    volume = pixels * channels * bytes_per_feature
    product = 2.0 * pixels * channels * bins
    forward = max((volume + 16 * pixels) / bytes_per_s, product / flops_per_s)
    backward = max((2 * volume + 24 * pixels) / bytes_per_s, 3 * product / flops_per_s)
    return {"forward_s": forward, "backward_s": backward, "total_s": forward + backward}


def _roofline(
    args: argparse.Namespace, bytes_per_feature: int, ours_s: float, device: torch.device
) -> dict:
    """Compares the kernels' time with the roofline, i.e. the shortest possible time on this device.

    Args:
        args: the command-line options that `arguments.of_head` defines; `tb_per_s` is the bandwidth
            in TB/s, or None to measure it.
        bytes_per_feature: 4 for fp32, 2 for bf16 and fp16.
        ours_s: the kernels' time, forward and backward, in seconds.
        device: the GPU.

    Returns:
        "bytes_per_s" and "flops_per_s", the device's bandwidth and speed; "forward_s", "backward_s"
        and "total_s", the shortest possible times in seconds; and "ours_by_it", `ours_s` /
        "total_s".
    """
    # Measure the memory bandwidth by a copy that reads and writes 1 GiB each, and the arithmetic
    # speed by a large matrix product.
    block = torch.empty(1 << 28, dtype=torch.float32, device=device)
    other = torch.empty_like(block)
    copies = measure.interleaved({"copy": lambda: other.copy_(block)}, 5, device)["copy"]
    size = 8192
    dtype = DTYPES[args.dtype]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    multiplied = measure.interleaved({"product": lambda: a @ b}, 5, device)["product"]
    bytes_per_s = args.tb_per_s * 1e12 if args.tb_per_s else 2 * block.numel() * 4 / min(copies)
    flops_per_s = 2 * size**3 / min(multiplied)
    # Compute the shortest possible time on this device. The report divides the kernels' time by it.
    least = roofline_seconds(
        args.batch,
        args.channels,
        args.bins,
        args.height,
        args.width,
        bytes_per_feature,
        bytes_per_s,
        flops_per_s,
    )
    return {
        "bytes_per_s": bytes_per_s,
        "flops_per_s": flops_per_s,
        **least,
        "ours_by_it": ours_s / least["total_s"],
    }
