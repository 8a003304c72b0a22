"""Figures of matplotlib: sizes, colours, and what is said where it is missing."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from tiekd.errors import LaunchError
from tiekd.visualization import figures


def test_new_figure_has_the_size_in_pixels():
    """Both as pixels and as PNG, which are the same image."""
    figure = figures.new_figure(150, 70)
    figure.set_facecolor("#102030")
    pixels = figures.pixels_of(figure)
    assert pixels.shape == (70, 150, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (16, 32, 48)).all()
    image = Image.open(io.BytesIO(figures.png_of(figure)))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_new_figure_without_matplotlib(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.setattr(figures, "find_spec", {"numpy": True}.get)
    with pytest.raises(LaunchError) as error:
        figures.new_figure(10, 10)
    assert str(error.value) == (
        "plots need the package matplotlib, which is not installed; pip install 'tiekd[plot]'"
    )
