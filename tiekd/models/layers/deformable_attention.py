"""Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159), for the HAHI neck.

It is written in plain torch. Each query predicts a few sampling locations per level (feature map)
and gets the weighted sum of the values there. Memory: with one query for each pixel of a 352x1216
image at stride 2, the values sampled by all queries would take 7 GB. So values are sampled for a
chunk of queries and one level at a time, and recomputed in backward; at most about SAMPLED_VALUES
values exist at a time.

Sampling locations and weights are float32 whatever the network's precision, because bfloat16 can't
distinguish adjacent columns of a wide image. Not covered: reference boxes, padding masks, and a
deterministic gradient on CUDA: grid_sample has none there, so training with `train.deterministic`
raises an error.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, grid_sample, linear
from torch.utils.checkpoint import checkpoint

# Approximate number of values that are sampled at a time, 64 MiB in float32.
SAMPLED_VALUES = 2**24


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention with a skip connection.

    It adds to each query the attention-weighted sum of values sampled from the feature maps. At
    initialisation, each head samples in a different direction from the query's reference point:
    point i at a distance of i + 1 pixels of the feature map, with nearly equal weights. The weights
    aren't exactly equal, because the layer that predicts them would then have zero weights and pass
    no gradient to its input, i.e. to the queries and the positional encoding.

    Args:
        width: number of channels of queries, values and output.
        num_levels: number of feature maps.
        num_heads: number of attention heads.
        num_points: number of sampled points per query, head and level.
        dropout: dropout probability of the sampled values' projection in training.
    """

    def __init__(
        self,
        width: int,
        num_levels: int,
        num_heads: int = 8,
        num_points: int = 8,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.dropout = dropout
        # Build the layers. Sampling locations and weights are computed from the query, values from
        # the tokens, i.e. the pixels of the feature maps.
        points = num_heads * num_levels * num_points
        self.sampling_offsets = Float32Linear(width, 2 * points)
        self.attention_weights = Float32Linear(width, points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        # Initialise the weights. Small ones make the first sampling offsets nearly equal to the
        # bias of their layer.
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.normal_(layer.weight, std=1e-3)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(
                _first_offsets(num_heads, num_levels, num_points).flatten()
            )

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        tokens: Tensor,
        sizes: Sequence[tuple[int, int]],
        reference: Tensor,
    ) -> Tensor:
        """Returns the queries plus the weighted sums of their samples, (B, Q, width).

        Args:
            query: (B, Q, width), Q queries per image.
            position: (B or 1, Q, width) float32, positional encoding, added to the query to predict
                sampling locations and weights.
            tokens: (B, T, width), the pixels of all levels (feature maps), concatenated.
            sizes: each level's (height, width), whose products sum to T.
            reference: (B or 1, Q, num_levels or 1, 2) float32, the queries' reference points: x and
                y, from 0 to 1 between the edges of a level.
        """
        # Predict each query's sampling offsets, and the softmax weights of its sampled points.
        asked = query.float() + position
        heads = self.num_heads
        levels = self.num_levels
        points = self.num_points
        offsets = self.sampling_offsets(asked).unflatten(2, (heads, levels, points, 2))
        weights = self.attention_weights(asked).unflatten(2, (heads, levels * points)).softmax(3)
        weights = weights.unflatten(3, (levels, points))
        # Reshape the values to one map per level, with images and heads in the first dimension.
        values = self.value_proj(tokens).float().transpose(1, 2)
        maps = [
            value.reshape(-1, value.shape[1] // heads, *size)
            for value, size in zip(
                values.split([h * w for h, w in sizes], dim=2), sizes, strict=True
            )
        ]
        read = self.output_proj(read_points(maps, reference, offsets, weights).to(query.dtype))
        return query + dropout(read, self.dropout, self.training)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 even if its weights or autocast use less."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., out_features) float32 from x (..., in_features) of any float dtype."""
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.float(), self.weight.float(), self.bias.float())


def read_points(
    maps: Sequence[Tensor],
    reference: Tensor,
    offsets: Tensor,
    weights: Tensor,
    sampled_values: int = SAMPLED_VALUES,
) -> Tensor:
    """Returns for each query the weighted sum of values sampled from the maps of all L levels.

    Args:
        maps: the values, one (B * heads, d, h, w) float32 tensor per level.
        reference: (B or 1, Q, L or 1, 2), reference points of the Q queries, x and y from 0 to 1
            between the edges of a level's map.
        offsets: (B, Q, heads, L, points, 2), x and y of the sampling locations relative to the
            reference point, in pixels of the level.
        weights: (B, Q, heads, L, points), attention weights.
        sampled_values: approximate number of values that are sampled at a time.

    Returns:
        (B, Q, heads * d) float32.
    """
    batch, num_queries, _, _, num_points = weights.shape
    chunk = max(1, sampled_values // (len(maps[0]) * maps[0].shape[1] * num_points))
    reference = reference.expand(batch, num_queries, len(maps), 2)
    read = []
    # Use activation checkpointing for each chunk of queries, so that sampled values are recomputed
    # in backward and not saved.
    for some in zip(
        reference.split(chunk, 1), offsets.split(chunk, 1), weights.split(chunk, 1), strict=True
    ):
        if torch.is_grad_enabled():
            read.append(
                checkpoint(_read_some, *some, *maps, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            read.append(_read_some(*some, *maps))
    return torch.cat(read, dim=1)


def _read_some(reference: Tensor, offsets: Tensor, weights: Tensor, *maps: Tensor) -> Tensor:
    """Computes `read_points` for a chunk of queries, with one sampling operation per level.

    Args:
        reference: (B, Q, L, 2), reference points of the Q queries in each of L levels, i.e. maps: x
            and y from 0 to 1 between the edges of the level.
        offsets: (B, Q, heads, L, points, 2), x and y of the sampling locations relative to the
            reference point, in pixels of the level.
        weights: (B, Q, heads, L, points), attention weights.
        *maps: the values, one (B * heads, d, h, w) float32 tensor per level.

    Returns:
        (B, Q, heads * d) float32.
    """
    batch, num_queries, heads, _, _ = weights.shape
    total = 0
    for level, values in enumerate(maps):
        height, width = values.shape[2:]
        x, y = offsets[:, :, :, level].unbind(-1)
        places = reference[:, :, None, level, None] + torch.stack([x / width, y / height], dim=-1)
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        sampled = grid_sample(
            values, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        of_level = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
        total = total + (sampled * of_level).sum(3)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def _first_offsets(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Returns the initial sampling offsets of deformable attention.

    Each head has a direction, evenly spaced over the full circle. The first of its points is one
    pixel away from the reference point, and each further point one more, measured along the axis on
    which the distance is larger.

    Args:
        num_heads: number of attention heads.
        num_levels: number of feature maps, which all get the same offsets.
        num_points: number of sampled points per head and level.

    Returns:
        (num_heads, num_levels, num_points, 2) float32, x and y in pixels of the level.
    """
    angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    directions = directions / directions.abs().amax(1, keepdim=True)
    steps = torch.arange(1, num_points + 1).view(1, 1, -1, 1)
    return (directions.view(num_heads, 1, 1, 2) * steps).expand(-1, num_levels, -1, -1)
