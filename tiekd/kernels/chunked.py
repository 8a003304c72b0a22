"""The DPM head's arithmetic in tiles of rows: the numbers of `reference`, and no (B, K, h, w) tensor ever.

Forward keeps the features, the weights and one number per pixel; backward makes logits, probabilities and target of a
tile again and writes down the gradients. Cost: the convolution and the target twice, a few MB (CPU) or a few times
TILE_BYTES (accelerator) of memory instead of about eight volumes. Left out: second derivatives.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tiekd.kernels import reference
from tiekd.kernels.target import bin_centres

TILE_BYTES = {"cpu": 1 << 21}  # One tile's logits; on a CPU they should stay in its cache.
TILE_BYTES_ELSEWHERE = 1 << 27


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
    """As `tiekd.kernels.reference.dpm`, argument by argument; gradients go to features, weight and bias."""
    reference.check_choices(target, beyond)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight, bias = features.to(dtype), weight.to(dtype), bias.to(dtype)
    target_spec = (target_depth, sigma, target_weight, edges, target, beyond, stride)
    with torch.autocast(device, enabled=False):
        return _Dpm.apply(features, weight, bias, target_spec)


class _Dpm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, bias: Tensor, target_spec: tuple):
        # Under ZeRO-3 the weights' storage is released after forward and gathered again before the owning module's
        # backward. Saving the parameters themselves, not anything made of them, is what makes that work.
        ctx.save_for_backward(features, weight, bias)
        ctx.target_spec = target_spec
        ctx.set_materialize_grads(False)
        target_depth, edges, target = target_spec[0], target_spec[3], target_spec[4]
        centres = bin_centres(edges).view(1, -1, 1, 1)
        depth = edges.new_empty(features.shape[0], 1, *features.shape[2:])
        divergence = None if target_depth is None else torch.empty_like(depth)
        for image, rows in _tiles(features, edges):
            log_p = _log_p(features[image, :, rows], weight, bias, edges)
            p = log_p.exp()
            depth[image, :, rows] = (p * centres).sum(1)[0]
            if target_depth is not None:
                q, valid = _tile_target(target_spec, image, rows)
                if target == "gaussian":
                    values = reference.gaussian_divergence(log_p, q)
                else:
                    values = reference.released_divergence(p, q)
                divergence[image, :, rows] = values.masked_fill_(~valid, 0)[0]
        return depth, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, depth_grad: Tensor | None, divergence_grad: Tensor | None):
        features, weight, bias = ctx.saved_tensors
        edges, target = ctx.target_spec[3], ctx.target_spec[4]
        need_features, need_weight, need_bias, _ = ctx.needs_input_grad
        centres = bin_centres(edges).view(1, -1, 1, 1)
        matrix = weight.flatten(1)
        features_grad = torch.empty_like(features) if need_features else None
        # Sums over many tiles lose digits in half precision.
        weight_grad = torch.zeros_like(matrix, dtype=edges.dtype)
        bias_grad = torch.zeros_like(bias, dtype=edges.dtype)
        for image, rows in _tiles(features, edges):
            tile = features[image, :, rows]
            p = _log_p(tile, weight, bias, edges).exp_()
            logits_grad = torch.zeros_like(p)
            if depth_grad is not None:
                depth = (p * centres).sum(1, keepdim=True)
                logits_grad += depth_grad[image : image + 1, :, rows] * (centres - depth) * p
            if divergence_grad is not None:
                q, valid = _tile_target(ctx.target_spec, image, rows)
                slope = _divergence_slope(p, q, target)
                logits_grad += (divergence_grad[image : image + 1, :, rows] * valid) * slope
            logits_grad = logits_grad.flatten(2)[0]
            if need_bias:
                bias_grad += logits_grad.sum(1)
            logits_grad = logits_grad.to(weight.dtype)
            if need_weight:
                weight_grad += logits_grad @ tile.flatten(1).T
            if need_features:
                features_grad[image, :, rows] = (matrix.T @ logits_grad).view_as(tile)
        weight_grad = weight_grad.view_as(weight).to(weight.dtype) if need_weight else None
        return features_grad, weight_grad, bias_grad.to(bias.dtype) if need_bias else None, None


def _tiles(features: Tensor, edges: Tensor) -> Iterator[tuple[int, slice]]:
    """(image, rows) of each tile, at least one row."""
    images, _, height, width = features.shape
    row_bytes = (len(edges) - 1) * width * edges.element_size()
    rows = max(1, TILE_BYTES.get(features.device.type, TILE_BYTES_ELSEWHERE) // max(1, row_bytes))
    for image in range(images):
        for top in range(0, height, rows):
            yield image, slice(top, min(top + rows, height))


def _log_p(tile: Tensor, weight: Tensor, bias: Tensor, edges: Tensor) -> Tensor:
    """Log-probabilities (1, K, rows, w), dtype of edges, from a tile of features (C, rows, w)."""
    logits = torch.addmm(bias[:, None], weight.flatten(1), tile.flatten(1))
    return logits.to(edges.dtype).log_softmax(0).view(1, -1, *tile.shape[1:])


def _tile_target(target_spec: tuple, image: int, rows: slice) -> tuple[Tensor, Tensor]:
    """q (1, K, rows, w) and valid (1, 1, rows, w) of a tile of cells."""
    depth, sigma, target_weight, edges, target, beyond, stride = target_spec
    pixels = slice(rows.start * stride, rows.stop * stride)
    maps = (t[image : image + 1, :, pixels] if _is_map(t) else t for t in (depth, sigma, target_weight))
    return reference.cell_target(*maps, edges, target, beyond, stride)


def _is_map(value) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _divergence_slope(p: Tensor, q: Tensor, target: str) -> Tensor:
    """Derivative of the divergence by the logits: (1, K, rows, w)."""
    if target == "gaussian":
        return p - q
    eps = reference.PUBLISHED_EPS
    by_p = -q.square() / ((p + eps) * (q + eps * (p + eps)))
    return p * (by_p - (p * by_p).sum(1, keepdim=True))
