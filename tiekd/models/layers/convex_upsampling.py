"""Learned convex upsampling: each image pixel combines the nine coarse values around it.

As in RAFT (Teed and Deng 2020, arXiv 2003.12039, section 3.3), the value of an image pixel p is

    d(p) = sum_k w_k(p) d_k,    w(p) = softmax of nine logits,

where a cell is a pixel of the coarse map, i.e. a square of factor x factor image pixels, and k runs
over the cell that p lies in and the eight cells around it. The logits of a cell's pixels are
predicted from the cell's features. So a pixel's value is between the smallest and the largest of
nine coarse ones, and an edge can follow the image within a cell. A weighted mean of a near and a
far depth is a depth at which there is no surface. So a caller may ask for the value of the cell
with the largest weight instead of the mean (argument `blended`).

Beyond the border the outermost cells are repeated; RAFT pads with 0, which would blend depth with 0
there. The layer has no norm, so padding affects other pixels' weights only through the 3x3
convolution. Cost at 352x704 with 64 channels and a factor of 4: 0.15 GMAC, and memory for nine
float32 values per image pixel, three times in training. Not covered: RAFT's 3x3 convolution to 256
channels before the logits, which a depthwise convolution replaces.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, relu

NEIGHBOURS = 9
# Initial weight of those of the nine coarse pixels around an image pixel whose bilinear weight is
# 0. It must be above 0, because its logarithm initialises a logit.
_LEAST_WEIGHT = 1e-3


class ConvexUpsampling(nn.Module):
    """Upsamples a map of one value per cell by a whole factor, with weights from features.

    A cell is a pixel of the coarse map, i.e. a square of factor x factor image pixels.

    At first the weights are nearly those of bilinear interpolation between the cells' centres.

    Attributes:
        factor: number of image pixels along a cell's side.

    Args:
        in_channels: number of feature channels.
        factor: number of image pixels along a cell's side, at least 2.
    """

    def __init__(self, in_channels: int, factor: int):
        super().__init__()
        self.factor = factor
        self.mix = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.logits = nn.Conv2d(in_channels, NEIGHBOURS * factor**2, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        first = bilinear_weights(factor).clamp(min=_LEAST_WEIGHT).log().flatten()
        with torch.no_grad():
            self.logits.bias.copy_(first)

    def forward(self, values: Tensor, features: Tensor, blended: bool = True) -> Tensor:
        """Upsamples a coarse map to the image's resolution.

        Args:
            values: (B, 1, h, w) float32, the coarse map, e.g. of depths.
            features: (B, in_channels, h, w), any float dtype, from which the weights are computed.
            blended: True for the weighted mean of the nine coarse values around a pixel; False for
                the coarse value with the largest weight.

        Returns:
            (B, 1, h * factor, w * factor) float32.
        """
        weights = self.weights(features)
        around = _neighbours(values)[:, :, None]
        if blended:
            fine = (weights * around).sum(1)
        else:
            # Take the value of the largest weight; among equal weights argmax chooses the first.
            best = weights.argmax(1, keepdim=True)
            fine = around.expand_as(weights).gather(1, best)[:, 0]
        return pixel_shuffle(fine, self.factor)

    def weights(self, features: Tensor) -> Tensor:
        """Returns the weights of the nine coarse values around each image pixel.

        Args:
            features: (B, in_channels, h, w), any float dtype.

        Returns:
            (B, 9, factor ** 2, h, w) float32, for the factor ** 2 image pixels of each of h x w
            cells. The second dimension has the 3 x 3 cells around the pixel, the third the pixels
            of the cell, both row by row. Weights sum to 1 over the second dimension.
        """
        logits = self.logits(relu(self.mix(features))).float()
        logits = logits.unflatten(1, (NEIGHBOURS, self.factor**2))
        if not torch.compiler.is_exporting():
            return logits.softmax(1)
        # Write softmax out in an exported graph: ONNX Runtime transposes before and after a softmax
        # that isn't over the last dimension, and took 2 ms instead of half a millisecond for it.
        powers = (logits - logits.amax(1, keepdim=True)).exp()
        return powers / powers.sum(1, keepdim=True)

    def margins(self, features: Tensor) -> Tensor:
        """Returns the difference between the two largest weights of each image pixel.

        Where it is near 0, rounding decides which coarse value a pixel takes if `forward` doesn't
        blend.

        Args:
            features: (B, in_channels, h, w), any float dtype.

        Returns:
            (B, 1, h * factor, w * factor) float32, 0 to 1.
        """
        first, second = self.weights(features).topk(2, dim=1).values.unbind(1)
        return pixel_shuffle(first - second, self.factor)


def bilinear_weights(factor: int) -> Tensor:
    """Returns the weights of the nine coarse values around a pixel in bilinear interpolation.

    Args:
        factor: number of image pixels per coarse pixel along each axis.

    Returns:
        (9, factor ** 2) float32, in the order of `ConvexUpsampling.weights`.
    """
    with torch.device("cpu"):
        # Compute the distance of each pixel from the centre of its cell (coarse pixel), in cells,
        # and from it the bilinear weights of the cell and its two neighbours.
        position = (torch.arange(factor) + 0.5) / factor - 0.5
        centres = torch.tensor([-1.0, 0.0, 1.0])
        shares = (1 - (centres[:, None] - position).abs()).clamp(min=0)
        weights = shares[:, None, :, None] * shares[None, :, None, :]
        return weights.reshape(NEIGHBOURS, factor**2)


def _neighbours(values: Tensor) -> Tensor:
    """Returns for each element of a map the values of the 3 x 3 elements around it.

    Args:
        values: (B, 1, h, w).

    Returns:
        (B, 9, h, w), the nine values row by row; beyond the border the outermost elements are
        repeated.
    """
    height, width = values.shape[2:]
    # Concatenate instead of padding, because the gradient of torch's replicating padding isn't
    # deterministic on a GPU.
    rows = torch.cat([values[:, :, :1], values, values[:, :, -1:]], dim=2)
    padded = torch.cat([rows[..., :1], rows, rows[..., -1:]], dim=3)
    return torch.cat(
        [
            padded[:, :, row : row + height, column : column + width]
            for row in range(3)
            for column in range(3)
        ],
        dim=1,
    )
