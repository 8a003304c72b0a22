"""Ray casting of convex solids on a ground plane, exact and vectorised: which face a pixel sees and how far away it is.

The inverse z-depth of a plane is an affine function of the pixel, so a convex solid costs one addition and one
minimum or maximum per face over the rectangle that it covers; ellipsoids cost a square root more. World axes are
x right, y up, z ahead, in metres; the ground is y = 0. Only IEEE-exact operations (+ - * / sqrt) touch arrays and
there is no BLAS, so the result does not depend on the processor's vector unit. Left out: reflections, supersampling.
"""

import math
from typing import NamedTuple

import numpy as np

from tiekd.data.rendering.texture import noise

NEAR_M = 0.3
HORIZON_M = 1500.0  # ground farther than this is drawn as sky
SKY, GROUND = -1, 0  # values in Hits.face


class Camera(NamedTuple):
    """A pinhole camera: `axes` (3, 3) has rows right, down, ahead in world axes; `focal`, `cx`, `cy` are in pixels."""

    position: np.ndarray
    axes: np.ndarray
    focal: float
    cx: float
    cy: float
    height: int
    width: int


class Solid(NamedTuple):
    """A convex polyhedron {p: normals @ p <= offsets}, or with `radii` an axis-aligned ellipsoid (one pseudo-face).

    normals (m, 3), offsets (m,), corners (k, 3) of the hull, centre (3,), axes (3, 3) the rows of the local frame; the
    rest is for shading: material, colour and second colour (3,) linear RGB, key 0..255, numbers (4,) per material.
    """

    normals: np.ndarray
    offsets: np.ndarray
    corners: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray | None
    material: int
    colour: tuple
    second: tuple
    key: int
    numbers: tuple


class Hits(NamedTuple):
    """inverse_depth (H, W) float32, 1/m, 0 in the sky; face (H, W) int32: SKY, GROUND or 1 + running face number."""

    inverse_depth: np.ndarray
    face: np.ndarray


def look(height_m: float, yaw: float, pitch: float, roll: float, height: int, width: int) -> Camera:
    """A KITTI-like camera `height_m` above the origin; angles in radians (pitch > 0 looks up), size in pixels."""
    ahead = np.array(
        [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)]
    )
    level = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    up = np.array(
        [-math.sin(yaw) * math.sin(pitch), math.cos(pitch), -math.cos(yaw) * math.sin(pitch)]
    )
    right, down = (
        level * math.cos(roll) + up * math.sin(roll),
        level * math.sin(roll) - up * math.cos(roll),
    )
    scale = (
        width / 1242
    )  # KITTI's rectified left colour camera of 2011_09_26, with square pixels kept
    axes = np.stack([right, down, ahead])
    return Camera(
        np.array([0.0, height_m, 0.0]),
        axes,
        721.5377 * scale,
        609.5593 * scale,
        172.854 * height / 375,
        height,
        width,
    )


def prism(
    profile,
    centre,
    axes,
    half_length,
    material,
    colour,
    second=(0, 0, 0),
    key=0,
    numbers=(0, 0, 0, 0),
) -> Solid:
    """The convex, counter-clockwise `profile` [(a, b), ...] in the first two axes, extruded along the third."""
    axes, centre, profile = (
        np.array(axes),
        np.array(centre, dtype=float),
        np.array(profile, dtype=float),
    )
    edge = np.roll(profile, -1, axis=0) - profile
    edge /= np.sqrt(edge[:, :1] ** 2 + edge[:, 1:] ** 2)
    sides = edge[:, 1:] * axes[0] - edge[:, :1] * axes[1]
    normals = np.concatenate([sides, axes[2:], -axes[2:]])
    flat = centre + profile[:, :1] * axes[0] + profile[:, 1:] * axes[1]
    ends = half_length * axes[2]
    on_face = np.concatenate([flat, (centre + ends)[None], (centre - ends)[None]])
    corners = np.concatenate([flat - ends, flat + ends])
    offsets = (normals * on_face).sum(-1)
    return Solid(
        normals, offsets, corners, centre, axes, None, material, colour, second, key, numbers
    )


def ellipsoid(
    centre, radii, material, colour, second=(0, 0, 0), key=0, numbers=(0, 0, 0, 0)
) -> Solid:
    """An ellipsoid with axis-aligned `radii` (3,) metres; numbers[0] is how ragged its outline is, 0 (smooth) to 1."""
    centre, radii = np.array(centre, dtype=float), np.array(radii, dtype=float)
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    none = np.zeros((1, 3))
    return Solid(
        none,
        none[:, 0],
        centre + signs * radii,
        centre,
        np.eye(3),
        radii,
        material,
        colour,
        second,
        key,
        numbers,
    )


def rectangle(camera: Camera, points: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns that the hull of world `points` (k, 3) can cover; None when it is out of the picture."""
    points = points - camera.position
    points = (points[:, None, :] * camera.axes).sum(-1)
    seen = points[:, 2] > NEAR_M
    if not seen.any():
        return None
    if not seen.all():  # the hull is cut by the near plane: its corners there lie between a seen and a hidden corner
        front, back = points[seen][:, None], points[~seen][None]
        share = (front[..., 2:] - NEAR_M) / (front[..., 2:] - back[..., 2:])
        points = np.concatenate([points[seen], (front + share * (back - front)).reshape(-1, 3)])
    u = camera.cx + camera.focal * points[:, 0] / points[:, 2]
    v = camera.cy + camera.focal * points[:, 1] / points[:, 2]
    left, right = max(math.ceil(u.min()), 0), min(math.floor(u.max()) + 1, camera.width)
    top, bottom = max(math.ceil(v.min()), 0), min(math.floor(v.max()) + 1, camera.height)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def rays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Ray slopes to the right (1, W) and downwards (H, 1), float32: a ray is right * x + down * y + ahead."""
    x = (np.arange(camera.width) - camera.cx) / camera.focal
    y = (np.arange(camera.height) - camera.cy) / camera.focal
    return x.astype(np.float32)[None], y.astype(np.float32)[:, None]


def cast(camera: Camera, solids: list[Solid]) -> Hits:
    """The nearest face in every pixel. A solid that holds the camera is not seen."""
    x, y = rays(camera)
    down = -camera.axes[:, 1] / camera.position[1]
    inverse = (np.float32(down[0]) * x + np.float32(down[2])) + np.float32(down[1]) * y
    face = np.where(inverse > 1 / HORIZON_M, np.int32(GROUND), np.int32(SKY))
    inverse[face == SKY] = 0
    first = 1
    for solid in solids:
        area = rectangle(camera, solid.corners)
        if area is not None:
            part_x, part_y = x[:, area[1]], y[area[0]]
            found, number = (_cast_ellipsoid if solid.radii is not None else _cast_faces)(
                camera, solid, part_x, part_y
            )
            if found is not None:
                nearer = found > inverse[area]
                inverse[area][nearer] = found[nearer]
                face[area][nearer] = (
                    (first + number)[nearer] if isinstance(number, np.ndarray) else first + number
                )
        first += len(solid.offsets)
    return Hits(inverse, face)


def _cast_faces(camera, solid, x, y):
    gap = solid.offsets - (solid.normals * camera.position).sum(
        -1
    )  # negative: the camera is in front of this face
    gap = np.where(np.abs(gap) < 1e-6, 1e-6, gap)
    slope = ((solid.normals[:, None, :] * camera.axes).sum(-1) / gap[:, None]).astype(np.float32)
    entry = number = leave = None
    for index in range(len(gap)):
        plane = (slope[index, 0] * x + slope[index, 2]) + slope[index, 1] * y
        if gap[index] > 0:
            leave = plane if leave is None else np.maximum(leave, plane, out=leave)
        elif entry is None:
            entry, number = plane, index
        else:
            number = np.where(plane < entry, np.int32(index), number)
            entry = np.minimum(entry, plane, out=entry)
    if entry is not None and leave is not None:
        entry[entry <= leave] = 0  # 0 is infinitely far: never nearer than what is there
    return entry, number


def _cast_ellipsoid(camera, solid, x, y):
    start = (camera.position - solid.centre) / solid.radii
    outside = float((start * start).sum()) - 1
    if outside <= 0:
        return None, 0
    axes = (camera.axes / solid.radii).astype(np.float32)
    ray = [(axes[0, k] * x + axes[2, k]) + axes[1, k] * y for k in range(3)]
    along = (
        np.float32(start[0]) * ray[0]
        + np.float32(start[1]) * ray[1]
        + np.float32(start[2]) * ray[2]
    )
    square = ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2]
    inner = along * along - np.float32(outside) * square
    hit = (inner > 0) & (along < 0)
    if solid.numbers[0] > 0:  # leaves: holes that grow towards the outline, fixed to the crown
        depth = (
            inner / (along * along) * np.float32(outside + 1)
        )  # 1 in the middle, 0 on the outline
        scale = np.float32(4.5 * math.sqrt(outside + 1))
        hit &= depth > np.float32(solid.numbers[0]) * noise(
            x * scale + np.float32(solid.key), y * scale
        )
    return np.where(
        hit, (np.sqrt(np.maximum(inner, 0)) - along) / np.float32(outside), np.float32(0)
    ), 0
