"""Self-attention within shifted windows (Liu et al. 2021, arXiv 2103.14030), for the Swin encoder.

Tokens attend only to those of their own window, so the cost is linear in the number of tokens.
Every other block shifts the windows by half their size, cyclically. Tokens that share a window only
because of the cyclic shift don't attend to each other. The feature is padded with zeros to whole
windows; as in the published code, tokens attend to the padding, too. Not covered: cosine attention
and continuous position bias of Swin version 2.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

# Number that is added to the attention logit of two tokens that must not attend to each other. It
# is the published one, and finite in half precision.
BLOCKED = -100.0


class WindowAttention(nn.Module):
    """Attention in windows of `window` x `window` tokens, shifted by `shift` tokens.

    Each head adds a learned bias to the attention logit, one per offset between two tokens,
    initialised with a standard deviation of 0.02. The linear layers have torch's default
    initialisation until the encoder initialises them.

    Args:
        channels: number of channels of the tokens.
        heads: number of attention heads.
        window: tokens along a window's side.
        shift: number of tokens by which the windows are shifted; 0 for none.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int):
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer(
            "relative_position_index", relative_position_index(window), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the attention to the H x W tokens of each image; H and W may be any numbers.

        Args:
            x: (B, H, W, channels).

        Returns:
            (B, H, W, channels).
        """
        # Pad the tokens to whole windows, and shift them cyclically.
        batch, height, width = x.shape[:3]
        window = self.window
        x = pad(x, (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = x.shape[1] // window, x.shape[2] // window
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        # Compute attention in each window.
        x = self.qkv(to_windows(x, window))
        query, key, value = x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._bias(batch, rows, columns).to(query.dtype)
        x = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        # Copy to contiguous memory, because torch.export and the ONNX decomposition disagree about
        # the memory layout of the attention's result.
        x = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        x = self.proj(x.flatten(2))
        # Reassemble the windows to a map, undo the shift, and crop the padding.
        x = x.view(batch, rows, columns, window, window, -1).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _bias(self, batch: int, rows: int, columns: int) -> Tensor:
        """Returns the bias, per head and pair of tokens, that is added to the attention logits.

        Args:
            batch: number of images, B.
            rows: number of rows of windows.
            columns: number of columns of windows.

        Returns:
            (1, heads, N, N) for windows of N tokens; with shifted windows
            (B * rows * columns, heads, N, N), including BLOCKED for pairs of tokens that must not
            attend to each other.
        """
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        if not self.shift:
            return bias
        blocked = blocked_pairs(rows, columns, self.window, self.shift, bias.device).unsqueeze(1)
        return (bias + blocked * BLOCKED).repeat(batch, 1, 1, 1)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Splits a grid of tokens into square windows.

    Args:
        x: (B, rows * window, columns * window, C), for rows x columns windows.
        window: tokens along a window's side.

    Returns:
        (B * rows * columns, window * window, C).
    """
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3)
    return x.flatten(3, 4).flatten(0, 2)


def relative_position_index(window: int) -> Tensor:
    """Returns the index into the table of position biases for each pair of tokens of a window.

    The bias depends on the offset between the two tokens.

    Args:
        window: tokens along a window's side.

    Returns:
        (N, N) int64 for N = window^2 tokens: query tokens are rows, key tokens are columns.
    """
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def blocked_pairs(rows: int, columns: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Returns the pairs of tokens that share a window only because of the cyclic shift.

    Args:
        rows: number of rows of windows.
        columns: number of columns of windows.
        window: tokens along a window's side.
        shift: number of tokens by which the windows are shifted.
        device: device of the result.

    Returns:
        (rows * columns, N, N) bool for windows of N = window^2 tokens, True for such a pair.
    """
    y, x = (torch.arange(size * window, device=device) for size in (rows, columns))
    # Find the tokens that the shift moved from the opposite border. Only the last row and the last
    # column of windows contain such tokens.
    y = (y >= rows * window - shift).long()
    x = (x >= columns * window - shift).long()
    side = (2 * y[:, None] + x[None, :]).view(1, rows * window, columns * window, 1)
    side = to_windows(side, window).squeeze(2)
    return side[:, :, None] != side[:, None, :]
