"""Flicker: how much the depth of a video changes where nothing moves."""

import torch
from torch import Tensor

STILL_LEVELS = 4


class Flicker:
    """Mean |change of depth| from one frame to the next over static pixels, in metres.

    A pixel is static between two frames if no channel of it changes by more than STILL_LEVELS of
    255 grey levels; a change of depth there comes from the network. What moves without showing it
    (a white wall in a pan) counts as static too, and a frame without static pixels counts in no
    mean.
    """

    def __init__(self):
        self._pixels = self._depth = None
        self._changes: list[float] = []

    def add(self, pixels: Tensor, depth: Tensor) -> tuple[float, float]:
        """Adds the next frame.

        Args:
            pixels: (3, H, W) uint8.
            depth: (H, W) float, metres.

        Returns:
            The mean change from the frame before and the share of static pixels; NaN if there is
            none.
        """
        change = float("nan")
        share = float("nan")
        if self._pixels is not None and self._pixels.shape == pixels.shape:
            # uint8 differences would wrap around.
            static = (pixels.short() - self._pixels.short()).abs().amax(0) <= STILL_LEVELS
            share = static.float().mean().item()
            if share > 0:
                change = (depth - self._depth).abs()[static].double().mean().item()
                self._changes.append(change)
        self._pixels = pixels
        self._depth = depth
        return change, share

    @property
    def mean(self) -> float:
        """The mean over the pairs of frames, metres; NaN without any."""
        return torch.tensor(self._changes, dtype=torch.float64).mean().item()
