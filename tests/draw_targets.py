"""Draws model_configs/experiments/targets.svg: `python tests/draw_targets.py`.

For the bins of both published heads it shows what a target distribution's mean differs from the
teacher's depth by, for the target of TIE-KD's released code and for the Gaussian one. Figures are
rounded to centimetres before they are drawn, so that other versions of torch give equal bytes.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tiekd.kernels.target import (  # noqa: E402
    bin_centres,
    bin_edges,
    gaussian_target,
    released_target,
)

FIGURE = ROOT / "model_configs" / "experiments" / "targets.svg"
SIGMA_M = 0.5
# Title, number of bins, and the upper end of the bins and of the axis, both in metres.
PANELS = (
    ("KITTI: 257 bins to 80 m, of which the first 12 m", 257, 80.0, 12.0),
    ("NYU: 49 bins to 10 m", 49, 10.0, 10.0),
)
LEAST_M, STEP_M = 0.5, 0.25  # of the drawn depths
WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 240, 60, 50, 90
HIGHEST_M = 2.0  # of the vertical axis, which is symmetric
COLOURS = {"released": "#d66814", "gaussian": "#1f77b4"}
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'font-family="Helvetica, Arial, sans-serif" font-size="13" text-anchor="middle">\n'
    '<rect width="{width}" height="{height}" fill="white"/>'
)


def bias(depth: Tensor, num_bins: int, max_depth: float) -> dict[str, Tensor]:
    """Computes the mean of each target distribution over the bin centres, minus the depth.

    Args:
        depth: (N,), the teacher's depth, metres.
        num_bins: Number of uniform bins.
        max_depth: Upper end of the bins, metres.

    Returns:
        (N,) metres for "released" and for "gaussian".
    """
    edges = bin_edges(num_bins, 1e-3, max_depth)
    centres, maps = bin_centres(edges), depth.view(-1, 1, 1, 1)
    targets = {
        "released": released_target(maps, SIGMA_M, edges, centres),
        "gaussian": gaussian_target(maps, SIGMA_M, None, edges),
    }
    return {name: (q.flatten(1) * centres).sum(1) - depth for name, q in targets.items()}


def draw() -> str:
    """Returns the figure, as SVG."""
    width = LEFT + len(PANELS) * (WIDTH + GAP) - GAP + 20
    lines = [HEAD.format(width=width, height=TOP + HEIGHT + 50)]
    for number, (title, num_bins, max_depth, end_m) in enumerate(PANELS):
        left = LEFT + number * (WIDTH + GAP)
        lines += _axes(title, left, end_m)
        depth = torch.arange(LEAST_M, end_m + STEP_M / 2, STEP_M)
        for name, values in bias(depth, num_bins, max_depth).items():
            points = " ".join(
                f"{_x(metres, left, end_m):.1f},{_y(round(value, 2)):.1f}"
                for metres, value in zip(depth.tolist(), values.tolist(), strict=True)
            )
            lines.append(
                f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" '
                'stroke-width="2"/>'
            )
    for number, (name, colour) in enumerate(COLOURS.items()):
        height = TOP + 20 + 20 * number
        lines.append(
            f'<text x="{LEFT + WIDTH - 10}" y="{height}" fill="{colour}" text-anchor="end">'
            f"target: {name}</text>"
        )
    return "\n".join([*lines, "</svg>\n"])


def _x(metres: float, left: int, end_m: float) -> float:
    return left + WIDTH * metres / end_m


def _y(metres: float) -> float:
    return TOP + HEIGHT * (HIGHEST_M - metres) / (2 * HIGHEST_M)


def _axes(title: str, left: int, end_m: float) -> list[str]:
    """Returns the lines of a panel's title, ticks and labels.

    Args:
        title: The title.
        left: The panel's left edge in the figure.
        end_m: The largest depth of the horizontal axis, metres.
    """
    middle, bottom = left + WIDTH / 2, TOP + HEIGHT
    lines = [
        f'<text x="{middle}" y="{TOP - 20}" font-weight="bold">{title}</text>',
        f'<text x="{middle}" y="{bottom + 38}">the teacher\'s depth, m</text>',
    ]
    for metres in range(0, int(end_m) + 1, 2):
        lines.append(f'<text x="{_x(metres, left, end_m):.1f}" y="{bottom + 18}">{metres}</text>')
    for metres in (-2, -1, 0, 1, 2):
        height, tick = _y(metres), f"{metres:+d}" if metres else "0"
        lines.append(
            f'<path d="M{left} {height:.1f}h{WIDTH}" stroke="{"#666" if metres == 0 else "#ddd"}"/>'
        )
        lines.append(f'<text x="{left - 8}" y="{height + 4:.1f}" text-anchor="end">{tick}</text>')
    lines.append(
        f'<text transform="translate({left - 38} {TOP + HEIGHT / 2}) rotate(-90)">'
        "bias of the target's mean, m</text>"
    )
    return lines


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
    print(f"Written: {FIGURE}")
