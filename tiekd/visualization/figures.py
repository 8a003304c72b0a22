"""Figures drawn with matplotlib (extra `plot`), for the programs that plot curves.

matplotlib is imported when a figure is made: half a second, once. No window is opened, and its
global state (pyplot) isn't touched. Left out: figures inside of training, which
`visualization.charts` draws without matplotlib.
"""

import io
from importlib.util import find_spec

import numpy as np

from tiekd.errors import LaunchError

_DPI = 100


def check_installed() -> None:
    """Checks that matplotlib is installed, without importing it.

    Raises:
        LaunchError: it isn't.
    """
    if find_spec("matplotlib") is None:
        raise LaunchError(
            "plots need the package matplotlib, which is not installed; pip install 'tiekd[plot]'"
        )


def new_figure(width: int, height: int):
    """Returns an empty matplotlib Figure of a size in pixels.

    Raises:
        LaunchError: matplotlib isn't installed.
    """
    check_installed()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def pixels_of(figure) -> np.ndarray:
    """Draws a figure of `new_figure`; returns (height, width, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def png_of(figure) -> bytes:
    """Draws a figure of `new_figure`; returns the bytes of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
