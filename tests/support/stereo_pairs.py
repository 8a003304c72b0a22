"""Image pairs with known depth: rendered streets, and random dots on slanted planes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd.data.datasets import scenes
from tiekd.data.image_io import write_depth_png, write_image
from tiekd.data.rendering.casting import cast
from tiekd.data.rendering.layout import random_street
from tiekd.data.rendering.objects import Draw
from tiekd.data.rendering.shading import shade

BASELINE_M = 0.54


class Rendered(NamedTuple):
    """A rendered pair: (H, W, 3) uint8 images, (H, W) depths in metres, 0 beyond 80 m.

    `visible` is True where the right camera sees the surface of the left image.
    """

    left: np.ndarray
    right: np.ndarray
    depth: np.ndarray
    visible: np.ndarray
    focal: float


def rendered(index: int, height: int, width: int, baseline: float = BASELINE_M) -> Rendered:
    """Renders a street of scenes.render with a second camera `baseline` metres to the right."""
    camera_seed, street_seed, noise_seed = np.random.SeedSequence([3, index]).spawn(3)
    camera = scenes.random_camera(camera_seed, height, width)
    street = random_street(Draw(street_seed))
    draw = np.random.default_rng(noise_seed)
    images, depths = [], []
    for shift in (0.0, baseline):
        moved = camera._replace(position=camera.position + shift * camera.axes[0])
        hits = cast(moved, street.solids)
        noise = draw.uniform(-3, 3, (height, width, 3))
        levels = shade(moved, street, hits) * 255.0 + noise + 0.5
        images.append(levels.clip(0, 255).astype(np.uint8))
        near = hits.inverse_depth >= 1 / scenes.MAX_DEPTH_M
        depths.append(np.where(near, 1 / np.where(near, hits.inverse_depth, 1), 0))
    left, right = depths
    columns = np.arange(width) - camera.focal * baseline / np.where(left > 0, left, np.inf)
    there = columns.round().astype(int)
    seen = np.take_along_axis(right, there.clip(0), axis=1)
    visible = (left > 0) & (there >= 0) & (abs(seen / np.where(left > 0, left, 1) - 1) < 0.05)
    return Rendered(*images, left.astype(np.float32), visible, camera.focal)


def plane(
    height: int = 96, width: int = 192, near: float = 20.0, far: float = 6.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws smooth random dots on a plane that is tilted like a road.

    Returns:
        The left and the right image, (H, W) uint8, and the disparity in pixels, (H, W): `far` in
        the first row, `near` in the last.
    """
    draw = np.random.default_rng(seed)
    margin = int(near) + 8
    dots = draw.normal(size=(height + 4, width + margin + 4))
    for axis in (0, 1):
        dots = sum(np.roll(dots, shift, axis) * w for shift, w in ((-1, 1), (0, 2), (1, 1))) / 4
    texture = (dots[2:-2, 2:-2] * 100 + 128).clip(0, 255)
    disparity = np.repeat(np.linspace(far, near, height)[:, None], width, axis=1)
    columns = np.arange(texture.shape[1])
    # A point in column x of the left image is in column x - disparity of the right one.
    right = texture[:, margin:]
    left = np.stack(
        [
            np.interp(np.arange(width) + margin - shift[0], columns, row)
            for row, shift in zip(texture, disparity, strict=True)
        ]
    )
    return left.round().astype(np.uint8), right.round().astype(np.uint8), disparity


def write_pairs(root: Path, count: int, focal: float = 100.0, **of_plane) -> np.ndarray:
    """Writes `count` planes in KITTI's layout, left in image_02 and right in image_03.

    Args:
        root: The folder.
        count: The number of pairs; all are in kitti_eigen_train.txt, and the first in the test's.
        focal: The focal length in the split file, in pixels.
        of_plane: Arguments of `plane`.

    Returns:
        The disparity of all pairs, (H, W).
    """
    drive = "2000_01_01/2000_01_01_drive_0001_sync"
    lines, disparity = [], None
    for index in range(count):
        *images, disparity = plane(seed=index, **of_plane)
        for camera, image in zip(("image_02", "image_03"), images, strict=True):
            path = root / "input" / drive / camera / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, np.repeat(image[:, :, None], 3, axis=2))
        truth = root / "gt_depth" / f"{index:03d}.png"
        truth.parent.mkdir(exist_ok=True)
        write_depth_png(truth, focal * BASELINE_M / disparity)
        lines.append(f"{drive}/image_02/{index:03d}.png {index:03d}.png {focal}\n")
    (root / "kitti_eigen_train.txt").write_text("".join(lines))
    (root / "kitti_eigen_test.txt").write_text(lines[0])
    return disparity
