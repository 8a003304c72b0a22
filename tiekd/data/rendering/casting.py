"""Exact, vectorised ray casting of convex solids on a ground plane: face and depth per pixel.

A face is a flat side of a solid, or a whole ellipsoid. The inverse z-depth of a plane is an affine
function of the pixel coordinates, so each face of a convex solid costs one addition and one minimum
or maximum per pixel of the solid's bounding rectangle. An ellipsoid also costs a square root per
pixel. World axes are x right, y up, z ahead, in metres; the ground is y = 0. Arrays are computed
with IEEE-exact operations only (+ - * / sqrt) and without BLAS, so the result is the same on every
CPU. Not covered: reflections, supersampling.
"""

import math
from typing import NamedTuple

import numpy as np

from tiekd.data.rendering.texture import noise

NEAR_M = 0.3
HORIZON_M = 1500.0  # metres; ground with a larger z-depth is rendered as sky
SKY, GROUND = -1, 0  # values of Hits.face; faces of solids are numbered from 1


class Camera(NamedTuple):
    """A pinhole camera.

    Attributes:
        position: (3,), world coordinates, metres.
        axes: (3, 3), rows: the unit vectors to the right, down and ahead in world axes.
        focal: focal length, pixels.
        cx: column of the principal point, pixels.
        cy: row of the principal point, pixels.
        height: number of rows of the image.
        width: number of columns of the image.
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

    An ellipsoid counts as one face (m = 1), whose normal and offset are 0 and not used.

    Attributes:
        normals: (m, 3), outward unit normals of the m faces.
        offsets: (m,), distance of each face's plane from the origin along its normal, metres.
        corners: (k, 3), world coordinates of the corners of the convex hull, metres; an ellipsoid
            has those of its bounding box.
        centre: (3,), origin of the local frame in world coordinates, metres.
        axes: (3, 3), rows: the unit vectors of the local frame in world axes.
        radii: (3,), metres, of an ellipsoid; None for a polyhedron.
        material: a constant of objects.py (FACADE, PAINT, ...), which selects the shading function.
        colour: (3,), linear RGB.
        second: second colour, (3,), linear RGB; its use depends on the material.
        key: random number from 0 to 255, which varies the texture.
        numbers: (4,), parameters of the material, as its function in materials.py describes.
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
        inverse_depth: (H, W) float32, inverse z-depth in 1/m, 0 where there is only sky.
        face: (H, W) int32, SKY, GROUND, or 1 + the face's index in the concatenated faces of all
            solids.
    """

    inverse_depth: np.ndarray
    face: np.ndarray


def look(
    height_m: float,
    yaw: float,
    pitch: float,
    roll: float,
    height: int,
    width: int,
    focal: float = 1.0,
) -> Camera:
    """Returns a camera above the world's origin, with KITTI's intrinsics scaled to the image size.

    Args:
        height_m: the camera's height above the ground, metres.
        yaw: rotation in radians; above 0 the camera looks to the right.
        pitch: rotation in radians; above 0 the camera looks up.
        roll: rotation in radians; above 0 the camera's right side is higher.
        height: number of rows of the image.
        width: number of columns of the image.
        focal: focal length as a multiple of KITTI's at this width.
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
    # Take the intrinsics of KITTI's rectified left colour camera of 2011_09_26 (1242x375). The
    # focal length and cx scale with the width, so that pixels stay square; cy scales with the
    # height.
    scale = width / 1242
    return Camera(
        np.array([0.0, height_m, 0.0]),
        axes,
        721.5377 * scale * focal,
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
    """Returns a prism, a convex polygon that is extruded equally to both sides, as a `Solid`.

    Args:
        profile: [(a, b), ...], the polygon's corners, counter-clockwise, as coordinates along the
            first two of `axes`, relative to `centre`, metres.
        centre: (3,), world coordinates, metres.
        axes: three orthogonal unit vectors; the profile is extruded along the third.
        half_length: metres that the prism extends to each side of the profile's plane.
        material: a constant of objects.py (FACADE, PAINT, ...), which selects the shading function.
        colour: (3,), linear RGB.
        second: second colour, (3,), linear RGB; its use depends on the material.
        key: random number from 0 to 255, which varies the texture.
        numbers: (4,), parameters of the material, as its function in materials.py describes.
    """
    axes = np.array(axes)
    centre = np.array(centre, dtype=float)
    profile = np.array(profile, dtype=float)

    # Compute the side faces' normals by rotating the profile's edges by 90 degrees. All side faces
    # come first, then the two end faces.
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
    """Returns an axis-aligned ellipsoid as a `Solid`.

    Args:
        centre: (3,), world coordinates, metres.
        radii: (3,), semi-axes along x, y and z, metres.
        material: a constant of objects.py (FACADE, PAINT, ...), which selects the shading function.
        colour: (3,), linear RGB.
        second: second colour, (3,), linear RGB; its use depends on the material.
        key: random number from 0 to 255, which varies the texture.
        numbers: (4,), parameters of the material; the first is the raggedness of the outline, from
            0 (smooth) to 1.
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
    """Returns the image rectangle that contains the projection of a convex hull.

    Args:
        camera: the camera that projects the hull.
        points: (k, 3), world coordinates of the hull's corners, metres.

    Returns:
        The rectangle's slices of rows and columns; None if the hull is outside the image or has no
        point whose z-depth is above NEAR_M metres.
    """
    points = points - camera.position
    points = (points[:, None, :] * camera.axes).sum(-1)
    seen = points[:, 2] > NEAR_M
    if not seen.any():
        return None
    if not seen.all():
        # Clip the hull at the near plane if the plane cuts it: replace the corners behind the plane
        # by the plane's intersections with all segments from a corner in front to a corner behind.
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
    """Returns the directions of all pixels' rays as two slopes: x (1, W) and y (H, 1), float32.

    The ray of a pixel is x * right + y * down + ahead, where these are the unit vectors in
    `camera.axes`.

    Args:
        camera: the camera, whose image has H rows and W columns.
    """
    x = (np.arange(camera.width) - camera.cx) / camera.focal
    y = (np.arange(camera.height) - camera.cy) / camera.focal
    return x.astype(np.float32)[None], y.astype(np.float32)[:, None]


def cast(camera: Camera, solids: list[Solid]) -> Hits:
    """Finds the nearest face in every pixel by casting rays.

    Args:
        camera: the camera, above the ground.
        solids: the solids of the scene. A solid that contains the camera is invisible.

    Returns:
        A `Hits` with the face and the inverse depth of every pixel.
    """
    # Intersect the pixels' rays with the ground plane, up to the horizon.
    x, y = rays(camera)
    down = -camera.axes[:, 1] / camera.position[1]
    inverse = (np.float32(down[0]) * x + np.float32(down[2])) + np.float32(down[1]) * y
    face = np.where(inverse > 1 / HORIZON_M, np.int32(GROUND), np.int32(SKY))
    inverse[face == SKY] = 0
    # Intersect the rays with each solid within its bounding rectangle in the image. Keep each
    # pixel's nearest face so far.
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
    """Intersects the rays of h x w pixels with a polyhedron.

    A front face is one that the camera looks at from outside. A ray hits the polyhedron if it
    crosses the planes of all front faces before that of any other face. It then enters through the
    front face whose plane it crosses last.

    Args:
        camera: the camera.
        solid: the polyhedron.
        x: (1, w) float32, the rays' slopes to the right.
        y: (h, 1) float32, the rays' slopes downwards.

    Returns:
        The inverse depth, (h, w) float32, 0 for rays that miss, and the index of the face hit,
        (h, w) int32 or one int. The inverse depth is None if there is no front face.
    """
    # Find the front faces: if gap < 0, the camera is in front of the face's plane.
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
        entry[entry <= leave] = 0  # the ray misses: 0 is an infinite depth, behind everything
    return entry, number


def _cast_ellipsoid(camera, solid, x, y):
    """Intersects the rays of h x w pixels with an ellipsoid.

    In units of the radii the ellipsoid is a unit sphere. The nearer root of a quadratic equation is
    the ray's intersection with it.

    Args:
        camera: the camera.
        solid: the ellipsoid.
        x: (1, w) float32, the rays' slopes to the right.
        y: (h, 1) float32, the rays' slopes downwards.

    Returns:
        The inverse depth, (h, w) float32, 0 for rays that miss, and the face index 0, since an
        ellipsoid counts as one face. The inverse depth is None if the camera is inside the
        ellipsoid.
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
        # Cut holes into a ragged ellipsoid (a tree's crown), which become larger towards the
        # outline. `depth` falls from 1 at the ellipsoid's centre to 0 on its outline.
        depth = inner / (along * along) * np.float32(outside + 1)
        scale = np.float32(4.5 * math.sqrt(outside + 1))
        holes = noise(x * scale + np.float32(solid.key), y * scale)
        hit &= depth > np.float32(solid.numbers[0]) * holes
    inverse = (np.sqrt(np.maximum(inner, 0)) - along) / np.float32(outside)
    return np.where(hit, inverse, np.float32(0)), 0
