"""HAHI neck: attention across the features of all strides.

From DepthFormer (Li et al. 2022, arXiv 2203.14211). The pixels of the coarser features become
tokens that attend to each other (deformable self-attention). Then each pixel of the finest feature
attends to the tokens (deformable cross-attention). Every feature keeps its channels and stride.
Cost: with a finest feature at stride 2, the cross-attention has a query for every fourth pixel of
the image; for their memory see tiekd/models/layers/deformable_attention.py. Not covered: scaling
between features, masks of padded images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.deformable_attention import DeformableAttention, Float32Linear

TEMPERATURE = 10000


class Hahi(nn.Module):
    """Lets the encoder's features attend to each other; returns features of the same shapes.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.

    Args:
        encoder_channels: number of channels of each feature, fine to coarse; at least two features.
        width: number of channels of tokens and queries (published: 512).
        num_heads: number of heads of both attention layers.
        num_points: number of sampled points per query, level and head in both attention layers.
        dropout: dropout probability of the attention layers' outputs in training.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        width: int = 512,
        num_heads: int = 8,
        num_points: int = 8,
        dropout: float = 0.0,
    ):
        super().__init__()
        if len(encoder_channels) < 2:
            raise RecipeError(
                f"neck (hahi): the encoder has {len(encoder_channels)} tap; at least 2 are needed"
            )
        if width < 4 or num_heads < 1 or width % 4 or width % num_heads:
            raise RecipeError(f"width: got {width}; a multiple of 4 and of num_heads ({num_heads})")
        if num_points < 1:
            raise RecipeError(
                f"num_points: got {num_points}; a whole number from 1, published is 8"
            )
        if not 0 <= dropout < 1:
            raise RecipeError(f"dropout: got {dropout}; a probability below 1, published is 0.1")
        self.channels = tuple(encoder_channels)
        self.width = width
        finest, *coarser = encoder_channels
        # Build the projections of features, tokens and queries, and the layers that fuse the
        # results.
        self.laterals = nn.ModuleList(ConvNorm(c, c, 1) for c in encoder_channels)
        self.token_projections = nn.ModuleList(ConvNorm(c, width, 1) for c in coarser)
        self.token_fusions = nn.ModuleList(ConvNorm(width + c, c, 3) for c in coarser)
        self.query_projection = ConvNorm(finest, width, 1)
        self.query_fusion = ConvNorm(width + finest, finest, 3)
        # Build the attention layers, an embedding for each of the coarser features, and the layer
        # that predicts each query's reference point.
        self.level_embed = nn.Parameter(torch.randn(len(coarser), width))
        self.self_attention = DeformableAttention(
            width, len(coarser), num_heads, num_points, dropout
        )
        self.cross_attention = DeformableAttention(
            width, len(coarser), num_heads, num_points, dropout
        )
        self.reference_points = Float32Linear(width, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the features after attention, as a list in the order of `features`.

        Args:
            features: the encoder's features, (B, channels[i], h_i, w_i), fine to coarse.

        Returns:
            One tensor per feature, in that feature's shape.
        """
        # Reshape the pixels of all features but the finest to tokens, which attend to each other.
        finest, *coarser = [
            lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)
        ]
        sizes = [tuple(feature.shape[2:]) for feature in coarser]
        device = finest.device
        projected = [
            to_tokens(project(f))
            for project, f in zip(self.token_projections, coarser, strict=True)
        ]
        tokens = torch.cat(projected, dim=1)
        embedded = zip(sizes, self.level_embed.float(), strict=True)
        position = torch.cat(
            [sine_positions(size, self.width, device) + level for size, level in embedded], dim=1
        )
        centres = torch.cat([pixel_centres(size, device) for size in sizes], dim=1).unsqueeze(2)
        tokens = self.self_attention(tokens, position, tokens, sizes, centres)

        # Reshape the finest feature's pixels to queries, which attend to the tokens.
        position = sine_positions(finest.shape[2:], self.width, device)
        reference = self.reference_points(position).sigmoid().unsqueeze(2)
        queries = self.cross_attention(
            to_tokens(self.query_projection(finest)), position, tokens, sizes, reference
        )
        # Reshape the attention's results to maps and fuse each with its feature by a convolution.
        # In the published order of channels, the finest feature comes after its map, every other
        # feature before its map.
        parts = tokens.split([height * width for height, width in sizes], dim=1)
        fused = [self.query_fusion(torch.cat([to_map(queries, finest.shape[2:]), finest], dim=1))]
        for fuse, feature, part in zip(self.token_fusions, coarser, parts, strict=True):
            fused.append(fuse(torch.cat([feature, to_map(part, feature.shape[2:])], dim=1)))
        return fused


class ConvNorm(nn.Module):
    """Convolution without bias that keeps the size, BatchNorm and ReLU.

    The weight is initialised Kaiming-normal (fan out).

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: side of the kernel, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Applies convolution, BatchNorm and ReLU to x.

        Args:
            x: (B, in_channels, h, w).

        Returns:
            (B, out_channels, h, w).
        """
        return relu(self.bn(self.conv(x)), inplace=True)


def to_tokens(x: Tensor) -> Tensor:
    """Reshapes a map (B, C, h, w) to tokens (B, h * w, C), one per pixel in row-major order."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Reshapes tokens (B, h * w, C) to a map (B, C, h, w), with size = (h, w)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def pixel_centres(size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the normalised coordinates of the centres of a feature's pixels.

    Args:
        size: (h, w) of the feature.
        device: device of the result.

    Returns:
        (1, h * w, 2) float32, x and y of each pixel in row-major order; 0 is the feature's left or
        top edge, 1 the right or bottom edge.
    """
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2).flatten(0, 1).unsqueeze(0)


def sine_positions(size: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Returns the sine and cosine encoding of the rows and columns of a feature's pixels.

    The first half of the channels encodes the row, the second half the column; sines and cosines
    alternate. Rows and columns count from 1. Wavelengths rise geometrically from 2 pi to
    TEMPERATURE times that (Vaswani et al. 2017, arXiv 1706.03762, in two dimensions).

    Args:
        size: (h, w) of the feature.
        width: number of channels.
        device: device of the result.

    Returns:
        (1, h * w, width) float32.
    """
    half = width // 2
    frequencies = TEMPERATURE ** (
        -torch.arange(0, half, 2, device=device, dtype=torch.float32) / half
    )
    rows, columns = (
        torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        for angles in (torch.arange(1, n + 1, device=device)[:, None] * frequencies for n in size)
    )
    grid = [rows[:, None].expand(-1, len(columns), -1), columns[None].expand(len(rows), -1, -1)]
    return torch.cat(grid, dim=2).flatten(0, 1).unsqueeze(0)


build = Hahi
