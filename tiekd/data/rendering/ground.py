"""Shades the ground: asphalt, road markings, pavement, verges, side roads, and shadows of solids.

This takes about a third of a scene's rendering time. Not covered: shadows that solids cast on each
other.
"""

import numpy as np

from tiekd.data.rendering.casting import GROUND, Camera, Hits, Solid, rays, rectangle
from tiekd.data.rendering.layout import Road, Street
from tiekd.data.rendering.objects import PAINT, WHEEL
from tiekd.data.rendering.texture import grain, mix, noise, strip, stripes

_MARK = np.array([0.72, 0.72, 0.69], np.float32)


def ground(
    camera: Camera, street: Street, hits: Hits, at: np.ndarray, depth, point, ray
) -> np.ndarray:
    """Returns the colours of the ground's pixels with light applied, (n, 3) float32, linear RGB.

    Args:
        camera: the camera that the image was cast with.
        street: the road, the light and the solids that cast shadows.
        hits: the nearest surface in every pixel, as `cast` returns it.
        at: (H, W) bool, mask of the n pixels to shade.
        depth: (n,), z-depth of the masked pixels, metres.
        point: three (n,) arrays, world coordinates x, y and z of the masked pixels, metres.
        ray: three (n,) arrays, ray directions of the masked pixels in world axes; not used here.
    """
    colour = _albedo(camera, street.road, depth, point[0], point[2])
    sun, sky = (buffer[at][:, None] for buffer in _light_that_arrives(camera, street, hits))
    light = street.light
    return colour * (light.sun_colour * np.float32(light.sun[1]) * sun + light.ambient * sky)


def _albedo(camera: Camera, road: Road, depth, x, z):
    """Returns the ground's unlit colours, (n, 3) float32, linear RGB.

    Args:
        camera: the camera, for the size of a pixel on the ground.
        road: widths, markings and colours of the road.
        depth: (n,), z-depth of n points on the ground, metres.
        x: (n,), world x of the same points, metres.
        z: (n,), world z of the same points, metres.
    """
    # Compute a pixel's size on the ground, across (`foot`) and along (`long`) the viewing
    # direction, and its distance `e` to the right of the centre line, all in metres.
    foot = depth * np.float32(1 / camera.focal)
    long = np.minimum(depth * foot * np.float32(1 / camera.position[1]), 40) + np.float32(1e-3)
    e = x - np.float32(road.offset) - np.float32(road.bend) * z * z
    coarse = grain(x + 31, z, 6, long) + grain(x, z + 17, 1.3, long)
    fine = grain(x, z, 0.35, foot * 2) * np.float32(0.6) + grain(x, z, 0.09, foot)

    def rough(rgb, coarsely, finely):
        return np.asarray(rgb, np.float32) * (1 + coarsely * coarse + finely * fine)[:, None]

    # Paint the verge over the whole ground, then the pavement with joints, and the kerb.
    half = road.half_width
    colour = rough(road.verge, 0.5, 0.8)
    if road.pavement:
        slabs = rough(road.slabs, 0.12, 0.25)
        joints = np.maximum(stripes(z, 0.8, 0.05, long), stripes(e, 0.6, 0.05, foot))
        slabs *= (1 - 0.4 * joints)[:, None]
        mix(colour, slabs, strip(np.abs(e), half + road.pavement / 2, road.pavement / 2, foot))
    kerb = rough(road.slabs, 0.1, 0.2) * np.float32(1.2)
    mix(colour, kerb, strip(np.abs(e), half + 0.08, 0.1, foot))

    # Paint the asphalt over the road's width, darker in the two tyre tracks of each lane.
    asphalt = rough(road.asphalt, 0.2, 0.45)
    tyre_tracks = strip(np.abs(np.abs(e) - road.lane_edge / 2), 0.75, 0.3, foot)
    asphalt *= (1 - np.float32(0.12) * tyre_tracks)[:, None]
    mix(colour, asphalt, strip(e, 0, half, foot))

    # Paint the lane markings, and the side road with its zebra crossing. Without a side road,
    # road.crossing is 1e6.
    mark = strip(e, 0, 0.07, foot)
    if road.dashed:
        mark *= stripes(z, 7.5, 0.42, long)
    if road.edge_lines:
        mark += strip(np.abs(e), road.lane_edge - 0.15, 0.06, foot)
    if road.crossing < 1e5:
        from_crossing = z - np.float32(road.crossing)
        side_road = strip(from_crossing, 0, 4.0, long)
        zebra = strip(from_crossing, -6.2, 1.5, long)
        mix(colour, asphalt, side_road)
        bars = stripes(e + 50, 1.0, 0.5, foot) * strip(e, 0, half, foot)
        mark = np.maximum(mark * (1 - side_road) * (1 - zebra), zebra * bars)
    mix(colour, _MARK, mark * np.minimum(np.float32(0.8) + fine + coarse * np.float32(0.3), 1))
    return colour


def _light_that_arrives(camera: Camera, street: Street, hits: Hits):
    """Returns the fractions of sunlight and of sky light that reach the ground.

    Args:
        camera: the camera that the image was cast with.
        street: the light, and the solids that cast shadows.
        hits: the nearest surface in every pixel, as `cast` returns it.

    Returns:
        Two (H, W) float32 arrays, first for sunlight, then for sky light: 0 (full shadow) to 1,
        meaningful in pixels of the ground only.
    """
    sun = np.ones((camera.height, camera.width), np.float32)
    sky = sun.copy()
    x, y = rays(camera)
    axes = camera.axes.astype(np.float32)
    depth = 1 / np.where(hits.face == GROUND, hits.inverse_depth, 1)
    world_x = depth * (axes[0, 0] * x + axes[2, 0] + axes[1, 0] * y)
    world_z = depth * (axes[0, 2] * x + axes[2, 2] + axes[1, 2] * y)
    # Shade the ground: solids block sunlight, and vehicles also block sky light close to them. Each
    # shadow is computed only within its bounding rectangle in the image.
    to_sun = street.light.sun
    for solid in street.solids:
        if street.light.sun_colour[0] > 0.3 and solid.material != WHEEL:
            fallen = solid.corners - to_sun * (solid.corners[:, 1:2] / to_sun[1])
            area = rectangle(camera, np.concatenate([solid.corners * (1, 0, 1), fallen]))
            if area is not None:
                cast = _shadow_of_faces if solid.radii is None else _shadow_of_ellipsoid
                shadow = cast(solid, to_sun, world_x[area], world_z[area])
                sun[area] = np.minimum(sun[area], 1 - shadow)
        if solid.material == PAINT:
            area = rectangle(camera, (solid.corners - solid.centre) * (1.4, 0, 1.4) + solid.centre)
            if area is not None:
                sky[area] *= _beside_vehicle(solid, world_x[area], world_z[area])
    return sun, sky


def _shadow_of_faces(solid: Solid, to_sun, x, z):
    """Returns the shadow of a polyhedron at ground points, as a mask (h, w) float32.

    It is 1 at ground points from which the polyhedron hides the sun, else 0.

    Args:
        solid: the polyhedron.
        to_sun: (3,), unit vector to the sun.
        x: (h, w), world x of the ground points, metres.
        z: (h, w), world z of the ground points, metres.
    """
    enter, leave = np.float32(0), np.float32(1e9)
    for normal, offset in zip(solid.normals, solid.offsets, strict=True):
        slope = float((normal * to_sun).sum())
        if abs(slope) > 1e-6:
            reach = (
                np.float32(offset / slope)
                - np.float32(normal[0] / slope) * x
                - np.float32(normal[2] / slope) * z
            )
            if slope < 0:
                enter = np.maximum(enter, reach)
            else:
                leave = np.minimum(leave, reach)
    return (enter < leave).astype(np.float32)


def _shadow_of_ellipsoid(solid: Solid, to_sun, x, z):
    """Returns the darkness of an ellipsoid's shadow at ground points, 0 (none) to 0.9, (h, w).

    Args:
        solid: the ellipsoid; the outline of its shadow is as ragged as its own (numbers[0]).
        to_sun: (3,), unit vector to the sun.
        x: (h, w), world x of the ground points, metres.
        z: (h, w), world z of the ground points, metres.
    """
    # Move the ellipsoid to the origin and divide coordinates by its radii, so that it becomes a
    # unit sphere.
    middle = solid.centre.astype(np.float32)
    radii = solid.radii.astype(np.float32)
    way = (to_sun / solid.radii).astype(np.float32)
    a = (x - middle[0]) / radii[0]
    b = -middle[1] / radii[1]
    c = (z - middle[2]) / radii[2]
    along = a * way[0] + b * way[1] + c * way[2]
    square = way[0] * way[0] + way[1] * way[1] + way[2] * way[2]
    # Compute the squared distance from the centre to the line from the ground point to the sun.
    away = a * a + b * b + c * c - along * along / square
    holes = np.float32(solid.numbers[0]) * noise(x * np.float32(2.3), z * np.float32(2.3))
    return np.minimum(np.maximum((1 - away - holes) * 4, 0), np.float32(0.9))


def _beside_vehicle(solid: Solid, x, z):
    """Returns the fraction of sky light that reaches the ground under and beside a vehicle.

    Without this soft shadow a vehicle seems to float above the ground when there is no sun.

    Args:
        solid: the vehicle's body; its numbers[1] and numbers[2] are half its length and width.
        x: (h, w), world x of points on the ground, metres.
        z: (h, w), world z of the same points, metres.

    Returns:
        (h, w) float32, 0.1 to 1.
    """
    x = x - np.float32(solid.centre[0])
    z = z - np.float32(solid.centre[2])
    ahead = solid.axes[0].astype(np.float32)
    right = solid.axes[2].astype(np.float32)
    beyond_end = np.abs(x * ahead[0] + z * ahead[2]) - np.float32(solid.numbers[1])
    beyond_side = np.abs(x * right[0] + z * right[2]) - np.float32(solid.numbers[2])
    gap = np.maximum(beyond_end, beyond_side)
    return np.minimum(np.maximum(np.float32(0.5) + np.float32(1.1) * gap, np.float32(0.1)), 1)
