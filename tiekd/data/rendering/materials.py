"""Shades the solids' surfaces: facades, car paint, glass, tyres, leaves and plain objects."""

from typing import NamedTuple

import numpy as np

from tiekd.data.rendering.casting import Camera, Hits
from tiekd.data.rendering.layout import Street
from tiekd.data.rendering.light import Light
from tiekd.data.rendering.objects import CABIN, FACADE, LEAF, PAINT, PLAIN, WHEEL
from tiekd.data.rendering.texture import grain, lattice, mix, strip, stripes

_REAR_LAMP = np.array([0.55, 0.02, 0.02], np.float32)


class Surface(NamedTuple):
    """The properties of n surface points; float32 except `key`, lengths in metres.

    Attributes:
        colour: (n, 3), linear RGB.
        second: (n, 3), second colour, linear RGB.
        numbers: (n, 4), parameters of the material, as the functions for the materials describe.
        key: (n,) int64, the solid's random number, 0 to 255.
        normal: (n, 3), unit normals in world axes.
        local: (n, 3), coordinates in the solid's local frame.
        along: (n,), horizontal coordinate on the face.
        height: (n,), height above the ground.
        wide: (n,), size of a pixel on the surface in the direction of `along`.
        foot: (n,), size of a pixel perpendicular to the viewing direction.
    """

    colour: np.ndarray
    second: np.ndarray
    numbers: np.ndarray
    key: np.ndarray
    normal: np.ndarray
    local: np.ndarray
    along: np.ndarray
    height: np.ndarray
    wide: np.ndarray
    foot: np.ndarray


def solids(
    camera: Camera, street: Street, hits: Hits, at: np.ndarray, depth, point, ray
) -> np.ndarray:
    """Returns the colours of the solids' pixels with light applied, (n, 3) float32, linear RGB.

    Args:
        camera: the camera that the image was cast with.
        street: the solids and the light.
        hits: the nearest surface in every pixel, as `cast` returns it.
        at: (H, W) bool, mask of the n pixels to shade.
        depth: (n,), z-depth of the masked pixels, metres.
        point: three (n,) arrays, world coordinates x, y and z of the masked pixels, metres.
        ray: three (n,) arrays, ray directions of the masked pixels in world axes.
    """
    surface, material = _surfaces(
        camera, street, hits.face[at] - 1, depth, np.stack(point, 1), np.stack(ray, 1)
    )
    # Compute the unlit colour of each point by the function for its material.
    light, colour = street.light, surface.colour
    for number, paint in _PAINTERS.items():
        some = np.flatnonzero(material == number)
        if len(some):
            colour[some] = paint(Surface(*(values[some] for values in surface)), light)
    # Apply diffuse lighting: sunlight by the angle between normal and sun, sky light by the angle
    # between normal and zenith.
    sun = light.sun.astype(np.float32)
    up = surface.normal[:, 1]
    towards = surface.normal[:, 0] * sun[0] + up * sun[1] + surface.normal[:, 2] * sun[2]
    # Lighten the side of leaves away from the sun, because they are translucent.
    towards = np.where(material == LEAF, towards * np.float32(0.55) + np.float32(0.35), towards)
    near_ground = np.minimum(np.float32(0.65) + surface.height * np.float32(0.2), 1)
    sky = (np.float32(0.62) + np.float32(0.38) * up) * near_ground
    sunlight = np.maximum(towards, 0)[:, None] * light.sun_colour
    return colour * (sunlight + sky[:, None] * light.ambient)


def _surfaces(
    camera: Camera, street: Street, face, depth, point, ray
) -> tuple[Surface, np.ndarray]:
    """Returns the properties of n surface points, and the material of each.

    Args:
        camera: the camera that the image was cast with.
        street: the scene's solids.
        face: (n,), the index of each point's face in the concatenated faces of all solids.
        depth: (n,), z-depth of the points, metres.
        point: (n, 3), world coordinates of the points, metres.
        ray: (n, 3), directions of the rays from the camera to the points, in world axes.

    Returns:
        The properties, and (n,) int64 materials, constants of objects.py (FACADE, PAINT, ...).
    """
    # Look up the index of each point's solid from the index of its face.
    all_solids = street.solids
    face_counts = [len(solid.offsets) for solid in all_solids]
    owner = np.repeat(np.arange(len(all_solids)), face_counts)[face]
    normal = np.concatenate([solid.normals for solid in all_solids]).astype(np.float32)[face]

    def each(values, dtype=np.float32):
        return np.array(values, dtype)[owner]

    from_centre = point - each([solid.centre for solid in all_solids])
    axes = np.array([solid.axes for solid in all_solids], np.float32)
    local = np.stack([(from_centre * axes[owner, row]).sum(-1) for row in range(3)], 1)
    radii = each([solid.radii if solid.radii is not None else (0, 0, 0) for solid in all_solids])
    # Compute the normals of ellipsoids: the normalised gradient of the implicit equation.
    curved = np.flatnonzero(radii[:, 0])
    normal[curved] = from_centre[curved] / (radii[curved] * radii[curved])
    normal[curved] /= np.sqrt((normal[curved] * normal[curved]).sum(-1))[:, None]
    level = np.sqrt(normal[:, 0] * normal[:, 0] + normal[:, 2] * normal[:, 2]) + np.float32(1e-6)
    foot = depth * np.float32(1 / camera.focal)
    surface = Surface(
        colour=each([solid.colour for solid in all_solids]),
        second=each([solid.second for solid in all_solids]),
        numbers=each([solid.numbers for solid in all_solids]),
        key=each([solid.key for solid in all_solids], np.int64),
        normal=normal,
        local=local,
        along=(from_centre[:, 0] * normal[:, 2] - from_centre[:, 2] * normal[:, 0]) / level,
        height=point[:, 1],
        wide=foot / np.maximum(np.abs((ray * normal).sum(-1)), np.float32(0.03)),
        foot=foot,
    )
    return surface, each([solid.material for solid in all_solids], np.int64)


def _facade(s: Surface, light: Light) -> np.ndarray:
    """Returns the colours (n, 3), before lighting, of a building: walls with windows, and the roof.

    The material's parameters, s.numbers, are the horizontal spacing of the windows (metres), the
    height of a storey (metres), the width of a window divided by the spacing, and the height of the
    wall's top (metres).

    Args:
        s: the n surface points.
        light: the scene's light, which the panes reflect.
    """
    period, storey, duty, top = s.numbers.T
    # Widen the windows on the ground floor to shop windows, for a third of the buildings, chosen by
    # their random key.
    shop = (s.key % 3 == 0) & (s.height < storey)
    duty = np.where(shop, np.float32(0.82), duty)
    across = s.along + 50 * period
    floor = np.floor(s.height / storey)
    cell = lattice(
        np.floor(across / period).astype(np.int64) + s.key, floor.astype(np.int64) + 7 * s.key
    )
    # Compute masks of the windows' panes (`glass`) and of the frames around them (`frame`).
    wall_here = (s.height < top - np.float32(0.4)) & (s.normal[:, 1] < 0.3)
    share, margin = np.float32(0.5), np.float32(0.09)
    frame = stripes(across + margin, period, duty + 2 * margin / period, s.wide)
    frame_rows = stripes(s.height - np.float32(0.81), storey, share + 2 * margin / storey, s.foot)
    frame *= frame_rows * wall_here
    pane_rows = stripes(s.height - np.float32(0.9), storey, share, s.foot)
    glass = stripes(across, period, duty, s.wide) * pane_rows * wall_here

    # Paint the wall: stains and, depending on the key, courses of bricks, a plinth and ledges.
    spots = grain(s.along, s.height, 2.5, s.wide) * np.float32(0.14)
    spots = spots + grain(s.along, s.height, 0.3, s.wide) * np.float32(0.2)
    courses = stripes(s.height, np.float32(0.16), np.float32(0.2), s.foot)
    bricks = (s.key % 4 == 1) * courses * np.float32(0.2)
    wall = s.colour * (1 + spots - bricks)[:, None]
    wall *= (1 - np.float32(0.3) * strip(s.height, 0.3, 0.35, s.foot) * (s.key % 2))[:, None]
    ledge = stripes(s.height + np.float32(0.15), storey, np.float32(0.05), s.foot) * (s.key % 5 < 2)
    mix(wall, np.float32(0.6) * s.colour, ledge.astype(np.float32))
    mix(wall, np.float32(0.5) + np.float32(0.25) * s.colour, frame)
    # Let the panes reflect the sky, each with a random reflectance.
    reflected = np.float32(0.02) + np.float32(0.25) * cell * cell
    pane = reflected[:, None] * (light.horizon + np.float32(0.15))
    mix(wall, pane, glass)

    # Paint rows of tiles on the roof, i.e. on faces whose normal points upwards.
    rows = np.float32(0.3) * stripes(s.height, np.float32(0.2), np.float32(0.25), s.foot * 2)
    tiles = s.second * (1 + 2 * spots - rows)[:, None]
    return np.where(s.normal[:, 1:2] > 0.3, tiles, wall)


def _body(s: Surface, light: Light) -> np.ndarray:
    """Returns the colours (n, 3), before lighting, of a vehicle's body with lamps and plates.

    The material's parameters, s.numbers, are the height of the windows' lower edge, half the length
    and half the width of the vehicle (metres), and one that is not used.

    Args:
        s: the n surface points.
        light: the scene's light, which the paint reflects.
    """
    _, half, side, _ = s.numbers.T
    ahead, across = s.local[:, 0], s.local[:, 2]
    end = np.abs(ahead) > half - np.float32(0.03)
    front = ahead > 0
    dark = np.float32(0.02)
    colour = s.colour + _shine(s, 0.12, light)
    # Paint the front and rear end: white front lamps, red rear lamps, number plates, front grille.
    lamp = end * strip(np.abs(across), side - np.float32(0.22), np.float32(0.2), s.foot)
    lamp = lamp * strip(s.height, 0.66, 0.1, s.foot)
    mix(colour, np.where(front[:, None], np.float32(0.85), _REAR_LAMP), lamp)
    plate = end * strip(across, 0, 0.26, s.foot) * strip(s.height, 0.48, 0.06, s.foot)
    mix(colour, np.float32(0.6), plate)
    grille = strip(across, 0, side - np.float32(0.5), s.foot) * strip(s.height, 0.64, 0.07, s.foot)
    mix(colour, dark, (end & front) * grille)
    mix(colour, dark, strip(s.height, 0.3, 0.07, s.foot))
    # Paint the doors' seams, on the sides only.
    seams = strip(ahead, np.float32(0.3) * half, np.float32(0.012), s.wide)
    seams += strip(ahead, np.float32(-0.25) * half, np.float32(0.012), s.wide)
    mix(colour, dark, (np.abs(across) > side - np.float32(0.02)) * seams * np.float32(0.6))
    return colour


def _cabin(s: Surface, light: Light) -> np.ndarray:
    """Returns the colours (n, 3), before lighting, of a vehicle's cabin with windows and pillars.

    The material's parameters, s.numbers, are the height of the windows' lower and upper edge
    (metres), half the vehicle's length (metres), and 1 if only the front part has windows, else 0.

    Args:
        s: the n surface points.
        light: the scene's light, which paint and windows reflect.
    """
    belt, roof, half, cargo = s.numbers.T
    ahead, up = s.local[:, 0], s.normal[:, 1]
    glass = strip(s.height, (belt + roof) / 2, (roof - belt) / 2 - np.float32(0.07), s.foot)
    glass = glass * (up < 0.92)
    pillars = stripes(ahead + np.float32(0.05), np.float32(1.1), np.float32(0.08), s.wide)
    glass *= 1 - pillars * (np.abs(s.local[:, 2]) > 0.3) * (np.abs(up) < 1e-3)
    glass *= (cargo == 0) | (ahead > np.float32(0.25) * half)
    colour = s.second + _shine(s, 0.12, light)
    mix(colour, s.colour + np.float32(0.04) * light.horizon + _shine(s, 0.3, light), glass)
    return colour


def _shine(s: Surface, share: float, light: Light) -> np.ndarray:
    """Returns the light (n, 3) that smooth surfaces reflect from the sky.

    Args:
        s: the n surface points.
        share: reflectance of a horizontal surface; that of a vertical one is 0.
        light: the scene's light.
    """
    return (np.maximum(s.normal[:, 1], 0) * np.float32(share))[:, None] * light.horizon


def _wheel(s: Surface, light: Light) -> np.ndarray:
    """Returns the colours (n, 3), before lighting, of a tyre with its hub.

    The material's parameters, s.numbers, are the axle's position along the vehicle and the tyre's
    radius (metres), and two that are not used.

    Args:
        s: the n surface points.
        light: not used; all functions of materials have this argument.
    """
    radius = s.numbers[:, 1]
    a = s.local[:, 0] - s.numbers[:, 0]
    b = s.height - radius
    hub = (a * a + b * b < np.float32(0.36) * radius * radius) & (np.abs(s.normal[:, 1]) < 0.01)
    return np.where(hub[:, None], np.float32(0.28), s.colour)


def _plain(s: Surface, light: Light) -> np.ndarray:
    """Returns the colours (n, 3), before lighting, of a surface of one colour with stains.

    The material's parameters, s.numbers, are the contrast of the stains, 0 for none, and three that
    are not used.

    Args:
        s: the n surface points.
        light: not used; all functions of materials have this argument.
    """
    spots = grain(s.along + s.key.astype(np.float32), s.height, 0.6, s.wide)
    spots = spots + grain(s.along, s.height, 0.15, s.wide)
    return s.colour * (1 + s.numbers[:, 0] * spots)[:, None]


def _leaf(s: Surface, light: Light) -> np.ndarray:
    """Returns the colours (n, 3), before lighting, of leaves in clumps, lighter where they face up.

    Args:
        s: the n surface points.
        light: not used; all functions of materials have this argument.
    """
    a, b, c = (s.local + s.key[:, None].astype(np.float32)).T
    clumps = grain(a + np.float32(0.5) * c, b, 0.7, s.foot)
    clumps = clumps + grain(a, b - np.float32(0.6) * c, 0.22, s.foot)
    clumps += np.float32(0.8) * grain(a + c, b, 0.08, s.foot)
    shade = np.float32(0.85) + np.float32(0.2) * s.normal[:, 1] + np.float32(1.5) * clumps
    return s.colour * np.maximum(shade, np.float32(0.15))[:, None]


_PAINTERS = {
    FACADE: _facade,
    PAINT: _body,
    CABIN: _cabin,
    WHEEL: _wheel,
    PLAIN: _plain,
    LEAF: _leaf,
}
