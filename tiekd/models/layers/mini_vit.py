"""AdaBins' mini-ViT (arXiv 2011.14141, section 3.2): a small transformer over image patches.

Each patch is one token. From the transformer's output at the first token the widths of the image's
depth bins are computed. The outputs at the next tokens are used as 1x1 convolution kernels, which
applied to the image's own features give the range-attention maps. Cost: mainly these maps, with one
multiply-add per pixel, kernel and channel.

As published, the positional embedding is indexed by the patch's number in row-major order. So at
another image width than in training, patches get the embeddings of other positions, and patches
beyond the number in training get untrained embeddings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiekd.errors import RecipeError

NUM_LAYERS, NUM_HEADS, FEEDFORWARD, REGRESSOR = 4, 4, 1024, 256
# Constant that is added to each bin's width before the widths are normalised, so that no width
# becomes 0.
NARROWEST = 0.1


class MiniViT(nn.Module):
    """Computes the widths of an image's depth bins, and range-attention maps, from its features.

    Args:
        in_channels: number of feature channels.
        num_bins: number of bin widths per image.
        num_queries: number of tokens that are used as convolution kernels, i.e. of range-attention
            maps.
        width: number of channels of the transformer, a multiple of NUM_HEADS.
        patch: side of a patch in pixels of the features; pixels at the right and the bottom that
            don't fill a whole patch are ignored.
        num_positions: maximum number of patches of an image; an image must have at least
            num_queries + 1.
        dropout: dropout probability in training.
    """

    def __init__(
        self,
        in_channels: int,
        num_bins: int,
        num_queries: int,
        width: int,
        patch: int,
        num_positions: int,
        dropout: float,
    ):
        super().__init__()
        self.num_queries = num_queries
        self.patch = patch
        self.embed = nn.Conv2d(in_channels, width, patch, patch)
        self.positions = nn.Parameter(torch.rand(num_positions, width))
        self.layers = nn.ModuleList(Layer(width, dropout) for _ in range(NUM_LAYERS))
        self.features = nn.Conv2d(in_channels, width, 3, padding=1)
        self.regressor = nn.Sequential(
            nn.Linear(width, REGRESSOR),
            nn.LeakyReLU(),
            nn.Linear(REGRESSOR, REGRESSOR),
            nn.LeakyReLU(),
            nn.Linear(REGRESSOR, num_bins),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the widths of the depth bins, and the range-attention maps.

        These maps are 1x1 convolutions of features of x, whose kernels the transformer predicts.

        Args:
            x: (B, in_channels, h, w), the image's features.

        Returns:
            (widths, maps): the bins' widths as fractions of the depth range, (B, num_bins) float32,
            positive, summing to 1 for each image; and the range-attention maps, (B, num_queries, h,
            w).

        Raises:
            RecipeError: the features have too few or too many patches.
        """
        height, width = x.shape[2:]
        count = (height // self.patch) * (width // self.patch)
        most = len(self.positions)
        if not self.num_queries < count <= most:
            raise RecipeError(
                f"head (adabins): features of {height}x{width} give {count} patches of "
                f"{self.patch}x{self.patch}; it takes {self.num_queries + 1} to {most}: change the "
                "crop or the image's size, or the head's patch, num_queries or num_positions"
            )
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions[:count]
        for layer in self.layers:
            tokens = layer(tokens)
        # Compute the maps with tokens 1 to num_queries as 1x1 convolution kernels, and the bins'
        # widths from token 0.
        kernels = tokens[:, 1 : self.num_queries + 1]
        maps = (kernels @ self.features(x).flatten(2)).unflatten(2, x.shape[2:])
        widths = self.regressor(tokens[:, 0]).float().relu() + NARROWEST
        return widths / widths.sum(1, keepdim=True), maps


class Layer(nn.Module):
    """A transformer encoder layer with norms after attention and MLP (post-norm).

    After Vaswani et al. 2017 (arXiv 1706.03762).

    Args:
        width: number of channels of the tokens.
        dropout: dropout probability in training.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.attention = Attention(width, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, FEEDFORWARD)
        self.linear2 = nn.Linear(FEEDFORWARD, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to N tokens per image.

        Args:
            x: (B, N, width).

        Returns:
            (B, N, width).
        """
        x = self.norm1(x + F.dropout(self.attention(x), self.dropout, self.training))
        y = F.dropout(F.relu(self.linear1(x)), self.dropout, self.training)
        return self.norm2(x + F.dropout(self.linear2(y), self.dropout, self.training))


class Attention(nn.Module):
    """Multi-head self-attention with NUM_HEADS heads.

    It consists of nn.Linear modules, because ZeRO-3 gathers a module's weights when the module is
    called; torch's MultiheadAttention uses the weights of a submodule without calling it.

    Args:
        width: number of channels of the tokens.
        dropout: dropout probability of the attention weights in training.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Applies self-attention to N tokens per image.

        Args:
            x: (B, N, width).

        Returns:
            (B, N, width).
        """
        batch, count, width = x.shape
        heads = self.qkv(x).view(batch, count, 3, NUM_HEADS, width // NUM_HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(y.transpose(1, 2).reshape(batch, count, width))
