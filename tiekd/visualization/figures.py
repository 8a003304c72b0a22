"""Figures drawn with matplotlib (extra `plot`), for the programs that plot curves.

matplotlib is imported when the first figure is made, which takes half a second. No window is
opened, and matplotlib's global state (pyplot) isn't used. Not covered: charts during training,
which `visualization.charts` draws without matplotlib.
"""

import io
from importlib.util import find_spec

import numpy as np

from tiekd.errors import LaunchError

_DPI = 100


def check_installed() -> None:
    """Checks that matplotlib is installed, without importing it.

    Raises:
        LaunchError: matplotlib isn't installed.
    """
    if find_spec("matplotlib") is None:
        raise LaunchError(
            "plots need the package matplotlib, which is not installed; pip install 'tiekd[plot]'"
        )


def new_figure(width: int, height: int):
    """Returns an empty matplotlib Figure.

    Args:
        width: Width in pixels.
        height: Height in pixels.

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
    """Renders a matplotlib figure to an image.

    Args:
        figure: The figure, which `new_figure` returned.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def png_of(figure) -> bytes:
    """Renders a matplotlib figure, and encodes it as PNG.

    Args:
        figure: The figure, which `new_figure` returned.

    Returns:
        The bytes of a PNG file.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
