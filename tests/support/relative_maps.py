"""Relative maps with a planted scale and shift, and sparse noisy anchors to find them by."""

from dataclasses import dataclass

import numpy as np

from tiekd.teachers.outputs.output_kind import OutputKind

MAX_DEPTH_M = 80.0


@dataclass
class Planted:
    """One image: its depth, what a relative teacher says of it, and a sparse anchor.

    Attributes:
        depth: (H, W) metres; the sky is far beyond MAX_DEPTH_M.
        output: (H, W): the relative map, without noise.
        anchor: (H, W) metres, 0 where there is none.
        scale: What `fit` should find.
        shift: What `fit` should find.
    """

    depth: np.ndarray
    output: np.ndarray
    anchor: np.ndarray
    scale: float
    shift: float

    def error(self, metric: np.ndarray) -> float:
        """The larger of two median relative depth errors: over the pixels, and over the range.

        The second gives every part of the range of log depth the same weight, so that the many near
        pixels don't hide a wrong far end.
        """
        within = self.depth <= MAX_DEPTH_M
        depth, errors = self.depth[within], np.abs(metric[within] / self.depth[within] - 1)
        edges = np.linspace(np.log(depth.min()), np.log(depth.max()) + 1e-9, 21)
        part = np.digitize(np.log(depth), edges)
        of_parts = [np.median(errors[part == k]) for k in np.unique(part)]
        return float(max(np.median(errors), np.median(of_parts)))


def smooth(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """A smooth field (H, W) of standard deviation 1: values on a grid of cells, interpolated."""
    values = rng.standard_normal((cells[0] + 1, cells[1] + 1))
    for axis, size in enumerate(shape):
        place = np.linspace(0, cells[axis], size)
        low = np.minimum(place.astype(int), cells[axis] - 1)
        # A cosine's ramp has no kinks where cells meet.
        part = (1 - np.cos(np.pi * (place - low))) / 2
        part = part[:, None] if axis == 0 else part
        values = (1 - part) * values.take(low, axis) + part * values.take(low + 1, axis)
    return (values - values.mean()) / values.std()


def street(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Depth (H, W) of a ground plane, buildings, boxes that stand on the ground, and the sky."""
    height, width = shape
    row = np.arange(height)[:, None] / height
    horizon = rng.uniform(0.3, 0.5)
    nearest = rng.uniform(3, 6)
    ground = nearest * (1 - horizon) / np.maximum(row - horizon, 1e-3)
    depth = np.broadcast_to(np.minimum(ground, 300), shape).copy()
    walls = np.repeat(rng.uniform(15, 75, 12), -(-width // 12))[:width]
    tall = rng.random(12) < 0.8
    walls = np.where(np.repeat(tall, -(-width // 12))[:width], walls, 300)
    depth = np.minimum(depth, walls)
    for _ in range(rng.integers(4, 9)):
        distance = float(np.exp(rng.uniform(np.log(nearest * 1.2), np.log(50))))
        foot = horizon + nearest * (1 - horizon) / distance
        top = horizon + (foot - horizon) * rng.uniform(-0.3, 0.3)
        wide = width * (foot - horizon) * rng.uniform(0.2, 0.8)
        left = rng.uniform(-wide / 2, width - wide / 2)
        rows = slice(int(max(top, 0) * height), int(foot * height))
        columns = slice(int(max(left, 0)), int(max(left + wide, 0)))
        depth[rows, columns] = np.minimum(depth[rows, columns], distance)
    return depth * np.exp(0.05 * smooth(rng, shape, (6, 16)))


def plant(
    seed: int,
    output_kind: OutputKind,
    *,
    shape: tuple[int, int] = (94, 310),
    share: float = 0.04,
    noise: float = 0.02,
    smooth_noise: float = 0.0,
    outliers: str = "uniform",
    near: str = "",
) -> Planted:
    """Returns an image with an anchor.

    Args:
        seed: Of everything that is drawn.
        output_kind: A relative one.
        shape: (H, W).
        share: Of pixels within MAX_DEPTH_M (and near) that are anchor points.
        noise: Standard deviation of the log of an anchor's depth, independent in each point.
        smooth_noise: The same of noise that neighbours share.
        outliers: 30 % of the points: "uniform" in metres, "structured" by another scale and
            shift, "" for none.
        near: Where anchor points may be: "" for everywhere; "depth", "inverse" for the nearest
            third of the range of depth or inverse depth; "pixels" for that of the pixels.
    """
    rng = np.random.default_rng(seed)
    depth = street(rng, shape)
    linear = depth if output_kind.space == "depth" else 1 / depth
    within = depth <= MAX_DEPTH_M
    spread = linear[within].max() - linear[within].min()
    scale = float(np.exp(rng.uniform(-4, 4)))
    shift = float(rng.uniform(-1, 1) * spread) if output_kind.has_shift else 0.0

    nearest, farthest = depth.min(), depth[within].max()
    allowed = (
        within
        & {
            "": np.ones(shape, dtype=bool),
            "depth": depth <= nearest + (farthest - nearest) / 3,
            "inverse": 1 / depth >= 1 / nearest - (1 / nearest - 1 / farthest) / 3,
            "pixels": depth <= np.quantile(depth[within], 1 / 3),
        }[near]
    )
    points = allowed & (rng.random(shape) < share)
    anchor = depth * np.exp(
        noise * rng.standard_normal(shape) + smooth_noise * smooth(rng, shape, (5, 12))
    )
    wrong = rng.random(shape) < 0.3
    if outliers == "uniform":
        anchor = np.where(wrong, rng.uniform(1, MAX_DEPTH_M, shape), anchor)
    elif outliers == "structured":
        factor = np.exp(rng.choice([-1, 1]) * rng.uniform(np.log(1.25), np.log(2)))
        other = linear * factor + (rng.uniform(0, 0.2) * spread if output_kind.has_shift else 0)
        anchor = np.where(wrong, other if output_kind.space == "depth" else 1 / other, anchor)
    return Planted(depth, (linear - shift) / scale, np.where(points, anchor, 0), scale, shift)
