"""The DPM head's arithmetic, written down plainly: the definition that every faster version is held against.

features -> 1x1 convolution -> one logit per depth bin -> softmax -> expected depth, and the divergence KL(q || p) of
the probabilities p from the target q, both in the dtype of `edges` (float32 in training) whatever the weights are in.

Cost: about eight (B, K, h, w) tensors at the peak of forward and backward. Left out: everything that saves memory.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tiekd.errors import RecipeError
from tiekd.kernels.target import bin_centres, gaussian_target, released_target

TARGETS = ("gaussian", "released")
BEYOND = ("clamp", "ignore")
PUBLISHED_EPS = 1e-7


def dpm(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    target_depth: Tensor | None = None,
    sigma: float | Tensor = 0.5,
    target: str = "gaussian",
    beyond: str = "clamp",
    stride: int = 1,
    target_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Depth (B, 1, h, w), metres, and divergence (B, 1, h, w), nats, 0 where no target is valid (None without target).

    features: (B, C, h, w); weight: (K, C, 1, 1) and bias: (K,) of the convolution, any one float dtype for the three.
    edges: (K + 1,) float32 or float64, metres, increasing.
    target_depth: (B, M, H, W) metres at `stride` times the resolution, h = ceil(H / stride), w likewise. M is 1, or the
        number of components of a mixture (several teachers). A component is valid where its depth is > 0; with
        beyond="ignore" also only up to the last edge, with "clamp" larger depths count as the last bin centre's.
    sigma: metres, a number or (B, M, H, W). target_weight: (B, M, H, W) or None for equal weights.
    target: "gaussian", or "released" for the published target and divergence (M = 1; it clamps nothing).
    stride: full-resolution pixels per side of a cell; a cell's q is the mean q of the valid pixels that it covers.
    """
    check_choices(target, beyond)
    logits = F.conv2d(features, weight, bias).to(edges.dtype)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    # Not a matrix product: that may run in TF32, which has three digits.
    depth = (p * bin_centres(edges).view(1, -1, 1, 1)).sum(1, keepdim=True)
    if target_depth is None:
        return depth, None
    q, valid = cell_target(target_depth, sigma, target_weight, edges, target, beyond, stride)
    divergence = (
        gaussian_divergence(log_p, q) if target == "gaussian" else released_divergence(p, q)
    )
    return depth, divergence.masked_fill(~valid, 0)


def gaussian_divergence(log_p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p) = sum_k q_k (log q_k - log p_k), with 0 log 0 = 0: (B, 1, h, w) from two (B, K, h, w)."""
    return (torch.xlogy(q, q) - q * log_p).sum(1, keepdim=True)


def released_divergence(p: Tensor, q: Tensor) -> Tensor:
    """The published sum_k [p_k != 0] q_k log(q_k / (p_k + 1e-7) + 1e-7): (B, 1, h, w) from two (B, K, h, w)."""
    terms = q * torch.log(q / (p + PUBLISHED_EPS) + PUBLISHED_EPS)
    return terms.masked_fill(p == 0, 0).sum(1, keepdim=True)


@torch.no_grad()
def cell_target(
    depth: Tensor,
    sigma: float | Tensor,
    weight: Tensor | None,
    edges: Tensor,
    target: str = "gaussian",
    beyond: str = "clamp",
    stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """What each cell learns from: q (B, K, h, w) in the dtype of edges, and valid (B, 1, h, w) bool; see `dpm`."""
    q, pixels = 0.0, 0
    # One sub-pixel offset at a time: only one full-resolution pixel per cell has its q alive.
    for d, s, w in pixels_of_cells(depth, sigma, weight, edges, beyond, stride):
        valid = (d > 0).any(1, keepdim=True)
        if target == "gaussian":
            q_pixel = gaussian_target(d, s, w, edges)
        else:
            q_pixel = released_target(d, s, edges, bin_centres(edges))
        q = q_pixel if stride == 1 else q + q_pixel * valid
        pixels = pixels + valid
    return q / pixels.clamp_min(1) if stride > 1 else q, pixels > 0


def pixels_of_cells(
    depth: Tensor,
    sigma: float | Tensor,
    weight: Tensor | None,
    edges: Tensor,
    beyond: str,
    stride: int,
) -> Iterator[tuple[Tensor, float | Tensor, Tensor | None]]:
    """(depth, sigma, weight) of one pixel of every cell after the other, each (B, M, h, w); a depth that is not valid,
    or beyond the edges and ignored, is 0."""
    depth = torch.nan_to_num(depth.to(edges.dtype))
    if beyond == "ignore":
        depth = depth.masked_fill(depth > edges[-1], 0)
    maps = [_pad(t, stride, value) for t, value in ((depth, 0), (sigma, 1), (weight, 0))]
    for i in range(stride):
        for j in range(stride):
            yield tuple(
                t[:, :, i::stride, j::stride] if isinstance(t, Tensor) and t.ndim == 4 else t
                for t in maps
            )


def check_choices(target: str, beyond: str) -> None:
    """Refuses a target or a way beyond the range that does not exist."""
    if target not in TARGETS:
        raise RecipeError(f"target: {target!r} is not known; there are: {', '.join(TARGETS)}")
    if beyond not in BEYOND:
        raise RecipeError(f"beyond: {beyond!r} is not known; there are: {', '.join(BEYOND)}")


def _pad(values: float | Tensor | None, stride: int, value: float) -> float | Tensor | None:
    """Fills the last cells up with pixels that are not valid (depth 0), so that every offset has the same shape."""
    if not isinstance(values, Tensor) or values.ndim != 4:
        return values
    return F.pad(values, (0, -values.shape[3] % stride, 0, -values.shape[2] % stride), value=value)
