"""The DPM head's forward and backward: our kernels against the plain definition.

Ours is what `tiekd.kernels.dpm` selects for the device. The definition is
`tiekd.kernels.reference`, which keeps every (B, K, h, w) tensor that autograd needs. Further
comparisons: the head's matrix products alone (logits twice, since they are not kept, and both
gradients), torch.compile of the definition, the definition on chunks of rows, and the roofline. The
target resembles a street: depths that grow towards the top, with holes.
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
    """Compares the kernels with the definition and with what `--also` names.

    Args:
        args: the options of `arguments.of_head`.

    Returns:
        The figures of `measure.compare`; `worst_relative_error` of our results and gradients to the
        definition's in the same dtype; on a GPU "roofline".
    """
    device = device_of(args.device)
    inputs = example(
        args.batch, args.channels, args.bins, args.height, args.width, DTYPES[args.dtype], device
    )
    # A network in channels_last passes its features to the head in that memory format.
    if args.layout == "channels_last":
        inputs = inputs[0].to(memory_format=torch.channels_last), *inputs[1:]
    ours, plain = (
        partial(train, dpm, *inputs, args.target) for dpm in (kernels.dpm, reference.dpm)
    )
    shape = (
        f"batch {args.batch}, {args.channels} channels, {args.bins} bins, "
        f"{args.height}x{args.width}"
    )
    # Which implementation is selected for these inputs depends on their device and sizes.
    name = kernels.implementation(*inputs[:1], inputs[4], inputs[3]).__module__.rsplit(".", 1)[1]
    compared = (
        f"head and divergence, forward and backward: {name} / reference, {args.dtype}, "
        f"{args.layout}, {shape}"
    )
    result = measure.compare(
        compared, ours, plain, args.rounds, device, queued=measure.QUEUED_CALLS
    )
    # Correctness, then the other comparisons that were asked for.
    result["worst_relative_error"] = worst_error(ours(), plain())
    # The matrix products are a lower bound of a head's cost; the others are alternative ways to
    # save memory or time.
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
    """Makes inputs of `reference.dpm`.

    Args:
        images: B, the batch.
        channels: C of the features.
        bins: K of the head.
        height: pixels of features and depth.
        width: likewise.
        dtype: of features, weight and bias.
        device: of all tensors.

    Returns:
        Features (B, C, h, w), weight (K, C, 1, 1), bias (K,), bin edges in metres, depth (B, 1, h,
        w) float32, metres, 0 in a tenth of the pixels, and sigma.
    """
    g = torch.Generator(device).manual_seed(0)
    features = torch.randn(images, channels, height, width, generator=g, device=device)
    weight = torch.randn(bins, channels, 1, 1, generator=g, device=device) / channels**0.5
    depth = (
        torch.linspace(80, 3, height, device=device).view(1, 1, -1, 1).repeat(images, 1, 1, width)
    )
    # Up to 1 m of noise, and holes in a tenth of the pixels.
    depth += torch.rand(depth.shape, generator=g, device=device)
    depth[torch.rand(depth.shape, generator=g, device=device) < 0.1] = 0
    edges = bin_edges(bins, 1e-3, 80.0).to(device)
    # A Gaussian's sigma must be at least half of the widest bin.
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
    """Returns depth, divergence, and the three gradients of a weighted sum of their means.

    Args:
        dpm: a head's function, such as `kernels.dpm`.
        features: (B, C, h, w).
        weight: (K, C, 1, 1).
        bias: (K,).
        edges: of the bins, metres.
        depth: (B, 1, h, w), metres, 0 where not valid.
        sigma: of the target's Gaussian.
        target: "gaussian" or "released".
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
    """Computes the definition on a few rows at a time; backward computes each chunk again.

    Arguments are those of `train`.
    """
    rows = zip(features.split(_CHUNK_ROWS, 2), depth.split(_CHUNK_ROWS, 2), strict=True)
    whole = partial(torch.utils.checkpoint.checkpoint, reference.dpm, use_reentrant=False)
    parts = [whole(f, weight, bias, edges, d, sigma, target=target) for f, d in rows]
    return tuple(torch.cat(maps, 2) for maps in zip(*parts, strict=True))


def products(features: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Computes logits twice and the gradients of features and weight, as matrix products alone."""
    x = features.flatten(2)
    matrix = weight.flatten(1)
    # One image at a time, so that only one image's logits are in memory.
    for image in x:
        logits = F.linear(image.T, matrix, bias)
        del logits
        logits = F.linear(image.T, matrix, bias)
        _ = logits @ matrix, logits.T @ image.T


def worst_error(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """Returns the largest difference of any two tensors, relative to the largest wanted value."""
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
    """Returns the least seconds of forward and backward on a device.

    Forward reads the features and a target depth, writes three numbers per pixel, and has one
    product of 2 x channels x bins flops per pixel. Backward reads the features and six numbers,
    writes the features' gradient, and has three products. Each takes the longer of its bytes and
    its flops. The weights are negligible.

    Args:
        images: the batch.
        channels: of the features.
        bins: of the head.
        height: pixels.
        width: pixels.
        bytes_per_feature: 4 for fp32, 2 for bf16 and fp16.
        bytes_per_s: that the device's memory moves.
        flops_per_s: of the device's matrix products.

    Returns:
        {"forward_s", "backward_s", "total_s"}.
    """
    # Numbers per pixel are float32: four of them in forward (16 bytes), six in backward (24).
    pixels = images * height * width
    volume = pixels * channels * bytes_per_feature
    product = 2.0 * pixels * channels * bins
    forward = max((volume + 16 * pixels) / bytes_per_s, product / flops_per_s)
    backward = max((2 * volume + 24 * pixels) / bytes_per_s, 3 * product / flops_per_s)
    return {"forward_s": forward, "backward_s": backward, "total_s": forward + backward}


def _roofline(
    args: argparse.Namespace, bytes_per_feature: int, ours_s: float, device: torch.device
) -> dict:
    """Compares our time with the roofline of the device, by its measured copy and product."""
    # The device's bandwidth (a copy reads and writes 1 GiB), and its product of large matrices.
    block = torch.empty(1 << 28, dtype=torch.float32, device=device)
    other = torch.empty_like(block)
    copies = measure.interleaved({"copy": lambda: other.copy_(block)}, 5, device)["copy"]
    size = 8192
    dtype = DTYPES[args.dtype]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    multiplied = measure.interleaved({"product": lambda: a @ b}, 5, device)["product"]
    bytes_per_s = args.tb_per_s * 1e12 if args.tb_per_s else 2 * block.numel() * 4 / min(copies)
    flops_per_s = 2 * size**3 / min(multiplied)
    # The least seconds: what must be read and written, or multiplied, whichever takes longer.
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
