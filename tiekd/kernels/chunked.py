"""Computes the DPM head a few image rows at a time: the results of `reference` with little memory.

A tile is a group of consecutive rows of one image's features (B, C, h, w). No tensor of all logits
(B, K, h, w) is ever allocated. Forward saves the features, the weights and two numbers per pixel
(depth and log-sum-exp of the logits). Backward recomputes a tile's logits and target and writes the
gradients. All operations on a tile are in place, so that its logits stay in the CPU's cache. Target
distributions are computed for several tiles together (kernels/targets_by_rows.py). On a CPU each
thread processes its own tiles, so threads synchronise only at the end.

Cost: four matrix products (the logits are computed twice); on a CPU all other operations take about
half as long again. Temporary memory per thread is about six tiles, or forty for dense targets
(`released`, or sigmas so large that most bins have mass). Not covered: second derivatives.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tiekd.kernels import in_threads, reference
from tiekd.kernels.target import bin_centres
from tiekd.kernels.targets_by_rows import CellTargets, Target

# Maximum bytes of the logits of one tile, i.e. of a group of rows that are computed together, on a
# CPU. They should fit into a core's cache.
TILE_BYTES = {"cpu": 1 << 21}
TILE_BYTES_ELSEWHERE = 1 << 27
# Number of tiles (groups of rows that are computed together) whose target distributions are
# computed in one operation.
TILES_PER_BLOCK = 4


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
    """Computes depth and divergence of the DPM head, a few image rows at a time.

    The results are those of `tiekd.kernels.reference.dpm`. Gradients with respect to features,
    weight and bias are supported; second derivatives aren't.

    Args:
        features: (B, C, h, w), the head's input.
        weight: (K, C, 1, 1), weight of the 1x1 convolution that gives the logits of K depth bins.
        bias: (K,), bias of this convolution.
        edges: (K + 1,) float32 or float64, edges of the bins, metres, increasing.
        target_depth: (B, M, H, W), metres, depths of M teachers at the image's size; None computes
            no divergence.
        sigma: standard deviation of the Gaussian around each target depth, metres, a number, one
            number for each teacher, or (B, M, H, W).
        target: kind of the target distribution, "gaussian" or "released", as for `reference.dpm`.
        beyond: treatment of target depths above the last edge, "clamp" or "ignore", as for
            `reference.dpm`.
        stride: image pixels per side of a pixel of the features.
        target_weight: (B, M, H, W), weights of the teachers in the target; None for equal weights.

    Returns:
        (depth, divergence), each (B, 1, h, w) in the dtype of edges: the mean depth, metres, and
        the divergence of the target from the predicted distribution, nats, None if `target_depth`
        is None.

    Raises:
        RecipeError: `target` or `beyond` is unknown, or sigma is too small for the bins.
    """
    reference.check_choices(target, beyond)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features = features.to(dtype)
        weight = weight.to(dtype)
        bias = bias.to(dtype)
    # Copy features whose (h, w) can't be flattened without a copy, since the computation indexes
    # the flattened pixels. The gradient gets the same memory layout.
    if features.stride(2) != features.shape[3] * features.stride(3):
        features = features.contiguous()
    with torch.autocast(device, enabled=False):
        cells = None
        if target_depth is not None:
            cells = CellTargets(target_depth, sigma, target_weight, edges, target, beyond, stride)
        return _Dpm.apply(features, weight, bias, edges, cells)


class _Dpm(torch.autograd.Function):
    """Autograd function that computes depth and divergence of the DPM head tile by tile.

    A tile is a group of consecutive rows of one image. The inputs are the features (B, C, h, w);
    weight (K, C, 1, 1) and bias (K,) of the 1x1 convolution that gives the logits of K depth bins;
    the bins' edges (K + 1,), metres; and a `CellTargets` with the target distributions, or None.
    The results are the depth, metres, and the divergence, nats, (B, 1, h, w) each; the divergence
    is None without a `CellTargets`.
    """

    @staticmethod
    def forward(
        ctx,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        edges: Tensor,
        cells: CellTargets | None,
    ):
        # Allocate the results per pixel of the features, each (B, h * w): the largest logit, the
        # divergence, and the sums over the bins of exp(logit - largest logit), unweighted and
        # weighted by the bin centres.
        shape = features.shape[0], 1, *features.shape[2:]
        largest, divergence = (edges.new_zeros(shape).flatten(1) for _ in range(2))
        valid = torch.zeros_like(largest, dtype=torch.bool)
        sums = edges.new_empty(2, *largest.shape)
        factors = torch.stack((torch.ones_like(edges[1:]), bin_centres(edges)))
        is_gaussian = cells is not None and cells.target == "gaussian"

        def tile_by_tile(blocks: list[Block]) -> None:
            for image, tile, q, logits, _ in _tiles(blocks, features, edges, cells):
                # Compute the logits (K, P) of the tile's pixels, minus each pixel's largest logit.
                _product(bias[:, None], weight, features[image].flatten(1)[:, tile], out=logits)
                logits -= torch.amax(logits, 0, out=largest[image, tile])
                if q is not None and is_gaussian:
                    torch.sub(
                        q.minus_entropy(len(logits)),
                        q.expectation(logits),
                        out=divergence[image, tile],
                    )
                # Sum the exponentials, from which softmax and depth follow. The divergence of
                # TIE-KD's released code isn't linear in the log-probabilities, so normalise the
                # probabilities to compute it.
                p = logits.exp_()
                sums[:, image, tile] = _sums(factors, p)
                if q is not None and not is_gaussian:
                    p /= sums[0, image, tile]
                    released = reference.released_divergence(p[None], q.mass[None])
                    divergence[image, tile] = released[0, 0]
                if q is not None:
                    valid[image, tile] = q.valid

        in_threads.map_in_threads(tile_by_tile, _blocks_per_thread(features, edges))
        log_sum = sums[0].log()
        depth = (sums[1] / sums[0]).view(shape)
        if is_gaussian:
            # Add log_sum to get the divergence sum_k q_k (log q_k - log p_k): `divergence` is sum_k
            # q_k (log q_k - logit_k) so far. The largest logit was subtracted in both terms and
            # cancels.
            divergence += log_sum
        divergence = divergence.masked_fill_(~valid, 0).view(shape) if cells is not None else None
        # ZeRO-3 frees the parameters' storage after forward and gathers it again before the owning
        # module's backward. So save the parameters themselves, not tensors computed from them.
        ctx.save_for_backward(features, weight, bias, log_sum.add_(largest), depth)
        ctx.edges = edges
        ctx.cells = cells
        ctx.set_materialize_grads(False)
        return depth, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, depth_grad: Tensor | None, divergence_grad: Tensor | None):
        features, weight, bias, log_sum, depth = ctx.saved_tensors
        need_features, need_weight, need_bias, *_ = ctx.needs_input_grad
        matrix = weight.flatten(1)
        edges = ctx.edges
        centres = bin_centres(edges)[:, None]
        features_grad = torch.empty_like(features) if need_features else None
        channels = features.shape[1]
        depth, depth_grad, divergence_grad = (
            t if t is None else t.flatten(1) for t in (depth, depth_grad, divergence_grad)
        )
        cells = None if divergence_grad is None else ctx.cells

        def tile_by_tile(blocks: list[Block]) -> tuple[Tensor, Tensor]:
            # Accumulate the gradients in the dtype of the bin edges (float32 or float64), since
            # sums over many pixels would lose digits in half precision.
            weight_grad, bias_grad = (
                torch.zeros_like(t, dtype=edges.dtype) for t in (matrix, bias)
            )
            for image, tile, q, logits, spare in _tiles(blocks, features, edges, cells):
                # Recompute the probabilities from the saved log-sum-exp.
                pixels = features[image].flatten(1)[:, tile]
                torch.sub(bias[:, None], log_sum[image, tile], out=logits)
                p = _product(logits, weight, pixels, out=logits).exp_()
                by_divergence = None if q is None else divergence_grad[image, tile] * q.valid
                slope = (
                    _released_slope(p, q.mass)
                    if q is not None and cells.target == "released"
                    else None
                )
                # Compute the logits' gradient. With the incoming gradients g_d of the depth and
                # g_kl of the divergence, it is g_d p_k (c_k - depth), for bin centres c_k, plus
                # g_kl (p_k - q_k) for a Gaussian target; p is the predicted and q the target
                # distribution. With the divergence of TIE-KD's released code, which adds a constant
                # in the logarithm, the second term is g_kl times the result of `_released_slope`.
                factor = by_divergence if slope is None else None
                if depth_grad is not None:
                    # Subtract the depth from the bin centres before multiplying by the gradient: at
                    # large depths, the difference of the two products would lose two digits.
                    offset = torch.sub(centres, depth[image, tile], out=spare).mul_(
                        depth_grad[image, tile]
                    )
                    factor = offset if factor is None else offset.add_(factor)
                logits_grad = p.zero_() if factor is None else p.mul_(factor)
                if slope is not None:
                    logits_grad.addcmul_(slope, by_divergence)
                elif q is not None:
                    q.add_to(logits_grad, by_divergence.neg_())
                # Compute the gradients of bias, weight and features.
                if need_bias:
                    bias_grad += logits_grad.sum(1)
                logits_grad = logits_grad.to(weight.dtype)
                if need_weight and weight.dtype == edges.dtype:
                    weight_grad.addmm_(logits_grad, pixels.T)
                elif need_weight:
                    weight_grad += logits_grad @ pixels.T
                if need_features:
                    torch.mm(
                        matrix.T, logits_grad, out=features_grad[image].view(channels, -1)[:, tile]
                    )
            return weight_grad, bias_grad

        parts = in_threads.map_in_threads(tile_by_tile, _blocks_per_thread(features, edges))
        weight_grad, bias_grad = (sum(grads[1:], grads[0]) for grads in zip(*parts, strict=True))
        weight_grad = weight_grad.view_as(weight).to(weight.dtype) if need_weight else None
        return (
            features_grad,
            weight_grad,
            bias_grad.to(bias.dtype) if need_bias else None,
            None,
            None,
        )


# A group of consecutive rows of one image: (index of the image, first row, row after the last).
Block = tuple[int, int, int]


def _blocks_per_thread(features: Tensor, edges: Tensor) -> list[list[Block]]:
    """Splits the rows of all images into blocks, and distributes the blocks over the threads.

    A block is a group of consecutive rows of one image: TILES_PER_BLOCK times the rows whose logits
    are computed together, or fewer at the end of an image.

    Args:
        features: (B, C, h, w), the head's input.
        edges: (K + 1,), edges of the depth bins.

    Returns:
        One list per thread, or a single list on devices other than a CPU. The lists' elements are
        blocks, each (index of the image, first row, last row + 1).
    """
    images, _, height, _ = features.shape
    step = _rows_of_tile(features, edges) * TILES_PER_BLOCK
    blocks = [
        (image, row, min(row + step, height))
        for image in range(images)
        for row in range(0, height, step)
    ]
    num_lists = min(in_threads.num_threads(), len(blocks)) if features.device.type == "cpu" else 1
    bounds = [len(blocks) * i // num_lists for i in range(num_lists + 1)]
    return [blocks[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]


def _rows_of_tile(features: Tensor, edges: Tensor) -> int:
    """Returns the number of image rows in a tile, i.e. whose logits are computed together.

    It is at least 1. The tile's logits, in the dtype of edges, take at most TILE_BYTES on a CPU and
    TILE_BYTES_ELSEWHERE on other devices, unless one row takes more.

    Args:
        features: (B, C, h, w), the head's input.
        edges: (K + 1,), edges of the depth bins.
    """
    height, width = features.shape[2:]
    tile_bytes = TILE_BYTES.get(features.device.type, TILE_BYTES_ELSEWHERE)
    return min(height, max(1, tile_bytes // ((len(edges) - 1) * width * edges.element_size())))


def _tiles(
    blocks: list[Block], features: Tensor, edges: Tensor, cells: CellTargets | None
) -> Iterator[tuple[int, slice, Target | None, Tensor, Tensor]]:
    """Yields the tiles, i.e. groups of consecutive rows of one image, of which `blocks` consist.

    Args:
        blocks: larger groups of rows, each (index of the image, first row, last row + 1).
        features: (B, C, h, w), the head's input.
        edges: (K + 1,), edges of the depth bins.
        cells: the target distributions of all pixels of the features, or None for no targets.

    Yields:
        (image, tile, target, logits, spare): the index of the image; the slice of the tile's P
        pixels among the image's flattened pixels; the pixels' target distributions, a `Target` or
        `RaggedTarget`, or None if there are none; and two uninitialised (K, P) buffers in the dtype
        of edges for the K bins' logits. Every tile gets the same buffers.
    """
    bins = len(edges) - 1
    width = features.shape[3]
    step = _rows_of_tile(features, edges)
    memory = edges.new_empty(2, bins * step * width)
    for image, first, last in blocks:
        target = None if cells is None else cells.target_of_rows(image, slice(first, last))
        for top in range(first, last, step):
            tile = slice(top * width, min(top + step, last) * width)
            size = tile.stop - tile.start
            q = (
                None
                if target is None
                else target.select_cells(
                    slice(tile.start - first * width, tile.stop - first * width)
                )
            )
            yield image, tile, q, *(part[: bins * size].view(bins, size) for part in memory)


def _product(to: Tensor, weight: Tensor, pixels: Tensor, out: Tensor) -> Tensor:
    """Computes out = to + weight @ pixels, with the matrix product in the dtype of the weights.

    Args:
        to: (K, 1) or (K, P), the summand, which may be `out` itself.
        weight: (K, C, 1, 1), weight of a 1x1 convolution.
        pixels: (C, P), features of P pixels.
        out: (K, P), overwritten with the result.

    Returns:
        `out`.
    """
    if weight.dtype == out.dtype:
        return torch.addmm(to, weight.flatten(1), pixels, out=out)
    return torch.add(to, weight.flatten(1) @ pixels, out=out)


def _sums(factors: Tensor, p: Tensor) -> Tensor:
    """Returns sums over K bins of probabilities, weighted in two ways, as the product factors @ p.

    Args:
        factors: (2, K), two sets of weights of the bins; the first row is all ones.
        p: (K, P), predicted probabilities of K bins at P pixels.

    Returns:
        (2, P), the two sums at each pixel.
    """
    if p.device.type == "cpu":
        return factors @ p
    # Multiply and sum instead of a matmul, which a GPU may run in TF32, i.e. with the precision of
    # three decimal digits.
    return torch.stack((p.sum(0), (p * factors[1][:, None]).sum(0)))


def _released_slope(p: Tensor, q: Tensor) -> Tensor:
    """Returns the gradient of the divergence of TIE-KD's released code with respect to the logits.

    Args:
        p: (K, P), predicted probabilities of K bins at P pixels.
        q: (K, P), target distributions over the bins at these pixels.

    Returns:
        (K, P), the gradient of `reference.released_divergence` at each pixel.
    """
    eps = reference.RELEASED_EPS
    by_p = -q.square() / ((p + eps) * (q + eps * (p + eps)))
    return p * (by_p - (p * by_p).sum(0))
