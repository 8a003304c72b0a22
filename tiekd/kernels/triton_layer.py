"""Operands, maps and logits of the fused DPM head, used by both its forward and backward kernels.

Logits and log_sum are in bits (base 2) in the kernels, because exp2 and log2 are the GPU's native
instructions.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = 1.4426950408889634
LOG2_E_GPU, LN_2 = tl.constexpr(LOG2_E), tl.constexpr(1 / LOG2_E)


class Layer(NamedTuple):
    """The operands of the 1x1 convolution, and the features' memory layout.

    Attributes:
        features: (B, C, P), addressed by the strides below.
        weight: (K, C), both dimensions padded with zeros to whole blocks.
        bias: (K,) float32, multiplied by LOG2_E because logits are in bits; padded with -BIG to
            whole blocks, so that bins that don't exist get probability 0.
        image_stride: stride of the batch dimension, in elements.
        channel_stride: stride of the channels, in elements.
        pixel_stride: stride of the flattened pixels, in elements.
        pixels: P, number of pixels of an image.
        channels: C, number of channels without padding.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor
    image_stride: int
    channel_stride: int
    pixel_stride: int
    pixels: int
    channels: int


class Maps(NamedTuple):
    """Maps with one number per pixel, each (B, 1, h, w) float32.

    Attributes:
        depth: mean depth, metres.
        log_sum: log-sum-exp of the logits, bits.
        slope: sum_k p_k dD/dp_k for the published divergence D; shape (0,) for other targets.
        divergence: nats; (0,) without a target, None in backward.
        depth_grad: gradient with respect to depth; None in forward.
        divergence_grad: gradient with respect to divergence, 0 in cells without a target; None in
            forward.
    """

    depth: Tensor
    log_sum: Tensor
    slope: Tensor
    divergence: Tensor | None = None
    depth_grad: Tensor | None = None
    divergence_grad: Tensor | None = None


@triton.jit
def log2(x):
    """Returns the base-2 logarithm, by one instruction (tl.log2 needs twenty), within 2^-22."""
    if INTERPRETED:
        y = tl.log2(x)
    else:
        y = libdevice.fast_log2f(x)
    return y


@triton.jit
def pixels_of(tile, layer, BLOCK_P: tl.constexpr, WHOLE: tl.constexpr):
    """Returns the image and the pixels of a tile.

    Returns:
        (image, p, inside): the index of the image, int64; the indices of the tile's pixels, (P,);
        and (P,) bool, False for indices beyond the image's last pixel. With WHOLE, tiles divide an
        image, so all are True.
    """
    tiles = tl.cdiv(layer.pixels, BLOCK_P)
    p = (tile % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = tl.full((BLOCK_P,), True, tl.int1) if WHOLE else p < layer.pixels
    return (tile // tiles).to(tl.int64), p, inside


@triton.jit
def load_features(layer, image, p, inside, BLOCK_C: tl.constexpr):
    """Loads the features (C, P) of one tile, with 0 for channels and pixels that don't exist."""
    c = tl.arange(0, BLOCK_C)
    at = layer.features + image * layer.image_stride + c[:, None] * layer.channel_stride
    return tl.load(
        at + p[None, :] * layer.pixel_stride,
        mask=(c < layer.channels)[:, None] & inside[None, :],
        other=0.0,
    )


@triton.jit
def load_weight(layer, start, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """Loads the weights (K, C) of the block of bins that begins at bin `start`."""
    k = start + tl.arange(0, BLOCK_K)
    return tl.load(layer.weight + k[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :])


@triton.jit
def logits_of(x, w, layer, start, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """Returns the logits (P, K), in bits, of one block of bins.

    x (P, C) are a tile's features and w (K, C) the weights of the block that begins at bin `start`.
    """
    b = tl.load(layer.bias + start + tl.arange(0, BLOCK_K))
    return tl.dot(x, tl.trans(w), input_precision=PRECISION) * LOG2_E_GPU + b[None, :]
