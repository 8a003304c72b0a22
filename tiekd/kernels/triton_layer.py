"""Data structures and functions that the fused DPM head's forward and backward kernels share.

In the kernels, logits and their log-sum-exp are in bits, i.e. multiplied by log2(e), because exp2
and log2 are the GPU's native instructions.
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
    """The operands of the head's 1x1 convolution, and the features' memory layout.

    Attributes:
        features: (B, C, h, w), addressed by the strides below.
        weight: (K, C), padded with zeros: the number of bins K to a multiple of BINS_PADDED_TO, the
            number of channels C to a power of 2.
        bias: (K,) float32, multiplied by LOG2_E because logits are in bits; padded with -BIG, so
            that the bins of the padding get probability 0.
        image_stride: stride of the batch dimension, in elements.
        channel_stride: stride of the channels, in elements.
        pixel_stride: stride of the flattened pixels, in elements.
        pixels: h * w, number of pixels of an image's features.
        channels: number of channels without padding.
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
    """Results of forward and incoming gradients of backward, one value per pixel of the features.

    Each is (B, 1, h, w) float32.

    Attributes:
        depth: mean depth, metres.
        log_sum: log-sum-exp of the logits, bits.
        slope: sum_k p_k dD/dp_k for the divergence D of TIE-KD's released code, i.e. the mean of
            its derivatives under the predicted probabilities p; shape (0,) unless the target is
            "released".
        divergence: KL(target || prediction), nats; shape (0,) without a target, None in backward.
        depth_grad: gradient of the loss with respect to depth; None in forward.
        divergence_grad: gradient of the loss with respect to divergence, 0 in pixels without a
            valid target; None in forward.
    """

    depth: Tensor
    log_sum: Tensor
    slope: Tensor
    divergence: Tensor | None = None
    depth_grad: Tensor | None = None
    divergence_grad: Tensor | None = None


@triton.jit
def log2(x):
    """Returns the base-2 logarithm of each element of x, with an error of at most 2^-22.

    On a GPU this is one instruction, whereas tl.log2 needs twenty.

    Args:
        x: a float32 tensor of any shape.
    """
    if INTERPRETED:
        y = tl.log2(x)
    else:
        y = libdevice.fast_log2f(x)
    return y


@triton.jit
def pixels_of(tile, layer, BLOCK_P: tl.constexpr, WHOLE: tl.constexpr):
    """Returns the image and the pixels of a tile, i.e. a group of BLOCK_P consecutive pixels.

    Args:
        tile: index of the tile among the tiles of all images.
        layer: `Layer`, which has the number of an image's pixels.
        BLOCK_P: number of pixels of a tile.
        WHOLE: True if BLOCK_P divides the number of an image's pixels.

    Returns:
        (image, p, inside): the index of the image, int64; the indices of the tile's pixels,
        (BLOCK_P,); and (BLOCK_P,) bool, False for indices beyond the image's last pixel.
    """
    tiles = tl.cdiv(layer.pixels, BLOCK_P)
    p = (tile % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = tl.full((BLOCK_P,), True, tl.int1) if WHOLE else p < layer.pixels
    return (tile // tiles).to(tl.int64), p, inside


@triton.jit
def load_features(layer, image, p, inside, BLOCK_C: tl.constexpr):
    """Loads the features of P pixels, (C, P).

    Channels of the padding, and pixels that aren't inside the image, get 0.

    Args:
        layer: `Layer`, the operands of the 1x1 convolution.
        image: index of the image.
        p: (P,), indices of the pixels.
        inside: (P,) bool, False for indices beyond the image's last pixel.
        BLOCK_C: C, number of channels, padded to a power of 2.
    """
    c = tl.arange(0, BLOCK_C)
    at = layer.features + image * layer.image_stride + c[:, None] * layer.channel_stride
    return tl.load(
        at + p[None, :] * layer.pixel_stride,
        mask=(c < layer.channels)[:, None] & inside[None, :],
        other=0.0,
    )


@triton.jit
def load_weight(layer, start, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """Loads the rows of the 1x1 convolution's weight for consecutive bins, (BLOCK_K, BLOCK_C).

    Args:
        layer: `Layer`, which has the padded weight.
        start: index of the first bin.
        BLOCK_K: number of bins.
        BLOCK_C: number of channels, padded to a power of 2.
    """
    k = start + tl.arange(0, BLOCK_K)
    return tl.load(layer.weight + k[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :])


@triton.jit
def logits_of(x, w, layer, start, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """Returns the logits of P pixels and K consecutive bins, (P, K), in bits.

    Args:
        x: (P, C), the pixels' features.
        w: (K, C), the bins' weights.
        layer: `Layer`, which has the bias.
        start: index of the first bin.
        BLOCK_K: K, number of bins.
        PRECISION: input_precision of tl.dot.
    """
    b = tl.load(layer.bias + start + tl.arange(0, BLOCK_K))
    return tl.dot(x, tl.trans(w), input_precision=PRECISION) * LOG2_E_GPU + b[None, :]
