"""Flicker: depth that changes where the image doesn't."""

import math

import torch

from tiekd.inference.predict.flicker import Flicker


def test_flicker_counts_static_pixels_only():
    """Flicker is the mean depth change over static pixels, averaged over frame pairs."""
    flicker, image = Flicker(), torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert all(math.isnan(value) for value in flicker.add(image, torch.full((4, 4), 10.0)))
    moved = image.clone()
    moved[1, 0] = 105  # five levels in one channel of four pixels
    depth = torch.full((4, 4), 10.5)
    depth[0] = 50.0  # there it may change
    assert flicker.add(moved, depth) == (0.5, 0.75)
    again = moved + 4  # noise of the camera
    depth = depth - 1.5
    assert flicker.add(again, depth) == (1.5, 1.0)
    assert flicker.mean == 1.0


def test_flicker_without_static_pixels_is_nan():
    """A frame pair without static pixels gives NaN and doesn't enter the mean."""
    flicker = Flicker()
    flicker.add(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.ones(2, 2))
    change, share = flicker.add(torch.full((3, 2, 2), 255, dtype=torch.uint8), torch.ones(2, 2) * 9)
    assert math.isnan(change)
    assert share == 0
    assert math.isnan(flicker.mean)
