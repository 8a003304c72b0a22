"""Shared by the fused DPM head's kernels: the layer, numbers per pixel, and a tile's logits."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = 1.4426950408889634
LOG2_E_GPU, LN_2 = tl.constexpr(LOG2_E), tl.constexpr(1 / LOG2_E)


class Layer(NamedTuple):
    """The operands of the 1x1 convolution, and the features' layout in memory.

    Attributes:
        features: (B, C, P), by their strides.
        weight: (K, C), padded with zeros to whole blocks.
        bias: (K,) float32, times LOG2_E because logits are in bits here; likewise padded, with
            -BIG.
        image_stride: elements from one image to the next.
        channel_stride: elements from one channel to the next.
        pixel_stride: elements from one pixel to the next.
        pixels: P.
        channels: C.
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
    """One number per pixel each, (B, 1, h, w) float32.

    Attributes:
        depth: metres.
        log_sum: logarithm of the softmax's sum, in bits.
        slope: mean, weighted by the probabilities, of the published divergence's derivatives by
            them.
        divergence: nats.
        depth_grad: gradient by depth.
        divergence_grad: gradient by divergence, 0 where nothing is valid.
    """

    depth: Tensor
    log_sum: Tensor
    slope: Tensor
    divergence: Tensor | None = None
    depth_grad: Tensor | None = None
    divergence_grad: Tensor | None = None


@triton.jit
def log2(x):
    """The base-2 logarithm in one instruction, off by 2^-22 at most; tl.log2 takes twenty."""
    if INTERPRETED:
        y = tl.log2(x)
    else:
        y = libdevice.fast_log2f(x)
    return y


@triton.jit
def pixels_of(tile, layer, BLOCK_P: tl.constexpr, WHOLE: tl.constexpr):
    """Returns a tile's image, its pixels (P,) and which of them exist.

    All exist if an image is WHOLE tiles.
    """
    tiles = tl.cdiv(layer.pixels, BLOCK_P)
    p = (tile % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = tl.full((BLOCK_P,), True, tl.int1) if WHOLE else p < layer.pixels
    return (tile // tiles).to(tl.int64), p, inside


@triton.jit
def load_features(layer, image, p, inside, BLOCK_C: tl.constexpr):
    """Loads (C, P) of one tile; channels and pixels that don't exist are 0."""
    c = tl.arange(0, BLOCK_C)
    at = layer.features + image * layer.image_stride + c[:, None] * layer.channel_stride
    return tl.load(
        at + p[None, :] * layer.pixel_stride,
        mask=(c < layer.channels)[:, None] & inside[None, :],
        other=0.0,
    )


@triton.jit
def load_weight(layer, start, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """Loads (K, C) of one block of bins."""
    k = start + tl.arange(0, BLOCK_K)
    return tl.load(layer.weight + k[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :])


@triton.jit
def logits_of(x, w, layer, start, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """Returns logits in bits, (P, K), of features (P, C) and one block of weights (K, C)."""
    b = tl.load(layer.bias + start + tl.arange(0, BLOCK_K))
    return tl.dot(x, tl.trans(w), input_precision=PRECISION) * LOG2_E_GPU + b[None, :]
