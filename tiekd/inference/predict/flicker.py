"""Measures flicker: the mean change of depth between a video's frames, in static pixels."""

import torch
from torch import Tensor

STILL_LEVELS = 4


class Flicker:
    """Accumulates the mean absolute change of depth between consecutive frames, in metres.

    Only static pixels are included, i.e. pixels of which no channel changes by more than
    STILL_LEVELS of 255 grey levels between the two frames. A change of depth at a static pixel is
    the network's error. Limits: a uniform surface that moves (a white wall while the camera pans)
    counts as static; a pair of frames without static pixels is left out of the mean.
    """

    def __init__(self):
        self._pixels = self._depth = None
        self._changes: list[float] = []

    def add(self, pixels: Tensor, depth: Tensor) -> tuple[float, float]:
        """Adds the next frame of the video, and compares it with the previous one.

        Args:
            pixels: The RGB frame, (3, H, W) uint8.
            depth: The frame's predicted depth, (H, W) float, metres.

        Returns:
            (change, share): the mean absolute change of depth from the previous frame in static
            pixels, in metres, NaN if there are none; and the fraction of pixels that are static,
            NaN without a previous frame of the same size.
        """
        change = float("nan")
        share = float("nan")
        if self._pixels is not None and self._pixels.shape == pixels.shape:
            # Subtract as int16, because negative differences of uint8 would wrap around.
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
        """The mean change of depth in static pixels over all pairs of consecutive frames, metres.

        It is the mean over pairs of the mean over the pair's static pixels; pairs without static
        pixels are left out. NaN if no pair is left.
        """
        return torch.tensor(self._changes, dtype=torch.float64).mean().item()
