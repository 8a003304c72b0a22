"""Exact, vectorised ray casting of convex solids on a ground plane: each pixel's face and distance.

The inverse z-depth of a plane is an affine function of the pixel. So a convex solid costs one
addition and one minimum or maximum per face over the rectangle that it covers; an ellipsoid also
costs a square root. World axes are x right, y up, z ahead, in metres; the ground is y = 0. Only
IEEE-exact operations (+ - * / sqrt) touch arrays and there is no BLAS, so the result does not
depend on the processor's vector unit. Left out: reflections, supersampling.
"""

import math
from typing import NamedTuple

import numpy as np

from tiekd.data.rendering.texture import noise

NEAR_M = 0.3
HORIZON_M = 1500.0  # ground farther than this is drawn as sky
SKY, GROUND = -1, 0  # values in Hits.face


class Camera(NamedTuple):
    """A pinhole camera.

    Attributes:
        position: (3,), metres, world axes.
        axes: (3, 3), rows right, down and ahead in world axes.
        focal: focal length, pixels.
        cx: column of the principal point, pixels.
        cy: row of the principal point, pixels.
        height: rows of the image.
        width: columns of the image.
    """

    position: np.ndarray
    axes: np.ndarray
    focal: float
    cx: float
    cy: float
    height: int
    width: int


class Solid(NamedTuple):
    """A convex polyhedron {p: normals @ p <= offsets}, or with `radii` an axis-aligned ellipsoid.

    An ellipsoid has one pseudo-face.

    Attributes:
        normals: (m, 3), of the faces.
        offsets: (m,), metres.
        corners: (k, 3), of the hull, metres.
        centre: (3,), metres.
        axes: (3, 3), the rows of the local frame.
        radii: (3,), metres, or None.
        material: for shading, one of the materials in objects.py.
        colour: (3,), linear RGB.
        second: second colour, (3,), linear RGB.
        key: 0..255, a random number that varies the texture.
        numbers: (4,), parameters of the material.
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
    """The nearest surface in every pixel.

    Attributes:
        inverse_depth: (H, W) float32, 1/m, 0 in the sky.
        face: (H, W) int32: SKY, GROUND or 1 + running face number.
    """

    inverse_depth: np.ndarray
    face: np.ndarray


def look(height_m: float, yaw: float, pitch: float, roll: float, height: int, width: int) -> Camera:
    """Returns a KITTI-like camera above the origin.

    Args:
        height_m: height above the ground, metres.
        yaw: radians, > 0 looks to the right.
        pitch: radians, > 0 looks up.
        roll: radians.
        height: rows of the image.
        width: columns of the image.
    """
    ahead = np.array(
        [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)]
    )
    level = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    up = np.array(
        [-math.sin(yaw) * math.sin(pitch), math.cos(pitch), -math.cos(yaw) * math.sin(pitch)]
    )
    right = level * math.cos(roll) + up * math.sin(roll)
    down = level * math.sin(roll) - up * math.cos(roll)
    axes = np.stack([right, down, ahead])
    # KITTI's rectified left colour camera of 2011_09_26, scaled to the width with square pixels.
    scale = width / 1242
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
    """Returns a prism: a convex profile extruded to both sides.

    Args:
        profile: [(a, b), ...] counter-clockwise in the first two axes, metres.
        centre: (3,), metres.
        axes: three unit vectors; the profile is extruded along the third.
        half_length: metres to each side.
        material: as in `Solid`, like the arguments after it.
        colour: linear RGB.
        second: second colour.
        key: 0..255.
        numbers: four parameters of the material.
    """
    axes = np.array(axes)
    centre = np.array(centre, dtype=float)
    profile = np.array(profile, dtype=float)

    # A side's normal is its edge turned by 90 degrees; the two ends come after the sides.
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
    """Returns an ellipsoid with axis-aligned `radii` (3,) in metres.

    numbers[0] is how ragged its outline is, 0 (smooth) to 1. The other arguments are as in `Solid`.
    """
    centre = np.array(centre, dtype=float)
    radii = np.array(radii, dtype=float)
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
    """Returns the rows and columns that the hull of world points can cover.

    Args:
        camera: the camera.
        points: (k, 3), metres.

    Returns:
        Two slices; None if the hull is outside the image.
    """
    points = points - camera.position
    points = (points[:, None, :] * camera.axes).sum(-1)
    seen = points[:, 2] > NEAR_M
    if not seen.any():
        return None
    if not seen.all():
        # The near plane cuts the hull. The cut's corners lie between a seen and a hidden corner.
        front = points[seen][:, None]
        back = points[~seen][None]
        share = (front[..., 2:] - NEAR_M) / (front[..., 2:] - back[..., 2:])
        points = np.concatenate([points[seen], (front + share * (back - front)).reshape(-1, 3)])
    u = camera.cx + camera.focal * points[:, 0] / points[:, 2]
    v = camera.cy + camera.focal * points[:, 1] / points[:, 2]
    left = max(math.ceil(u.min()), 0)
    right = min(math.floor(u.max()) + 1, camera.width)
    top = max(math.ceil(v.min()), 0)
    bottom = min(math.floor(v.max()) + 1, camera.height)
    if left >= right or top >= bottom:
        return None
    return slice(top, bottom), slice(left, right)


def rays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rays' slopes to the right (1, W) and downwards (H, 1), float32.

    A pixel's ray is right * x + down * y + ahead.
    """
    x = (np.arange(camera.width) - camera.cx) / camera.focal
    y = (np.arange(camera.height) - camera.cy) / camera.focal
    return x.astype(np.float32)[None], y.astype(np.float32)[:, None]


def cast(camera: Camera, solids: list[Solid]) -> Hits:
    """Finds the nearest face in every pixel. A solid that holds the camera is not seen."""
    # The ground, up to the horizon.
    x, y = rays(camera)
    down = -camera.axes[:, 1] / camera.position[1]
    inverse = (np.float32(down[0]) * x + np.float32(down[2])) + np.float32(down[1]) * y
    face = np.where(inverse > 1 / HORIZON_M, np.int32(GROUND), np.int32(SKY))
    inverse[face == SKY] = 0
    # The solids, each over the rectangle that it can cover.
    first = 1
    for solid in solids:
        area = rectangle(camera, solid.corners)
        if area is not None:
            cast_solid = _cast_faces if solid.radii is None else _cast_ellipsoid
            found, number = cast_solid(camera, solid, x[:, area[1]], y[area[0]])
            if found is not None:
                nearer = found > inverse[area]
                inverse[area][nearer] = found[nearer]
                faces = first + number
                if isinstance(number, np.ndarray):
                    faces = faces[nearer]
                face[area][nearer] = faces
        first += len(solid.offsets)
    return Hits(inverse, face)


def _cast_faces(camera, solid, x, y):
    """Returns the inverse depth of a polyhedron in each pixel, 0 where it is missed, and its face.

    A ray is inside from the last front face that it enters to the first back face that it leaves
    by. The inverse depth is None if no face looks towards the camera.
    """
    # A gap below 0: the camera is in front of this face.
    gap = solid.offsets - (solid.normals * camera.position).sum(-1)
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
    """Returns the inverse depth of an ellipsoid in each pixel, 0 where it is missed, and face 0.

    In units of the radii the ellipsoid is a unit sphere, and the ray meets it at a root of a
    quadratic.
    """
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
    if solid.numbers[0] > 0:
        # Leaves have holes that grow towards the outline; their pattern is fixed to the crown.
        # depth is 1 in the middle and 0 on the outline.
        depth = inner / (along * along) * np.float32(outside + 1)
        scale = np.float32(4.5 * math.sqrt(outside + 1))
        holes = noise(x * scale + np.float32(solid.key), y * scale)
        hit &= depth > np.float32(solid.numbers[0]) * holes
    inverse = (np.sqrt(np.maximum(inner, 0)) - along) / np.float32(outside)
    return np.where(hit, inverse, np.float32(0)), 0
