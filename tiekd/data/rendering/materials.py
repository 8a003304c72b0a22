"""The colour of every solid's surface: facades with windows, car paint, glass, tyres, leaves, plain things."""

from typing import NamedTuple

import numpy as np

from tiekd.data.rendering.casting import Camera, Hits
from tiekd.data.rendering.layout import Street
from tiekd.data.rendering.light import Light
from tiekd.data.rendering.objects import CABIN, FACADE, LEAF, PAINT, PLAIN, WHEEL
from tiekd.data.rendering.texture import grain, lattice, mix, strip, stripes

_REAR_LAMP = np.array([0.55, 0.02, 0.02], np.float32)


class Surface(NamedTuple):
    """n surface points, all float32: rows (n,) or (n, 3); metres.

    `along` is the horizontal coordinate on the face, `local` the solid's own (its three axes), `wide` and `foot` the
    size of a pixel along `along` and across the view.
    """

    colour: np.ndarray
    second: np.ndarray
    numbers: np.ndarray
    key: np.ndarray  # int64
    normal: np.ndarray
    local: np.ndarray
    along: np.ndarray
    height: np.ndarray
    wide: np.ndarray
    foot: np.ndarray


def solids(
    camera: Camera, street: Street, hits: Hits, at: np.ndarray, depth, point, ray
) -> np.ndarray:
    """Lit colours (n, 3) of the pixels at[...] (H, W) bool; depth (n,), point and ray 3 x (n,) in world axes."""
    surface, material = _surfaces(
        camera, street, hits.face[at] - 1, depth, np.stack(point, 1), np.stack(ray, 1)
    )
    light, colour = street.light, surface.colour
    for number, paint in _PAINTERS.items():
        some = np.flatnonzero(material == number)
        if len(some):
            colour[some] = paint(Surface(*(values[some] for values in surface)), light)
    sun, up = light.sun.astype(np.float32), surface.normal[:, 1]
    towards = surface.normal[:, 0] * sun[0] + up * sun[1] + surface.normal[:, 2] * sun[2]
    # Leaves let light through, so a crown's dark side is not as dark as a wall's.
    towards = np.where(material == LEAF, towards * np.float32(0.55) + np.float32(0.35), towards)
    near_ground = np.minimum(np.float32(0.65) + surface.height * np.float32(0.2), 1)
    sky = (np.float32(0.62) + np.float32(0.38) * up) * near_ground
    return colour * (
        np.maximum(towards, 0)[:, None] * light.sun_colour + sky[:, None] * light.ambient
    )


def _surfaces(
    camera: Camera, street: Street, face, depth, point, ray
) -> tuple[Surface, np.ndarray]:
    all_solids = street.solids
    owner = np.repeat(np.arange(len(all_solids)), [len(solid.offsets) for solid in all_solids])[
        face
    ]
    normal = np.concatenate([solid.normals for solid in all_solids]).astype(np.float32)[face]

    def each(values, dtype=np.float32):
        return np.array(values, dtype)[owner]

    from_centre = point - each([solid.centre for solid in all_solids])
    axes = np.array([solid.axes for solid in all_solids], np.float32)
    local = np.stack([(from_centre * axes[owner, row]).sum(-1) for row in range(3)], 1)
    radii = each([solid.radii if solid.radii is not None else (0, 0, 0) for solid in all_solids])
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
    """numbers: distance of the windows, height of a storey, windows' share of their distance, top of the wall."""
    period, storey, duty, top = s.numbers.T
    shop = (s.key % 3 == 0) & (s.height < storey)
    duty = np.where(shop, np.float32(0.82), duty)
    across, floor = s.along + 50 * period, np.floor(s.height / storey)
    cell = lattice(
        np.floor(across / period).astype(np.int64) + s.key, floor.astype(np.int64) + 7 * s.key
    )
    wall_here = (s.height < top - np.float32(0.4)) & (s.normal[:, 1] < 0.3)
    share, margin = np.float32(0.5), np.float32(0.09)
    frame = stripes(across + margin, period, duty + 2 * margin / period, s.wide)
    frame *= (
        stripes(s.height - np.float32(0.81), storey, share + 2 * margin / storey, s.foot)
        * wall_here
    )
    glass = (
        stripes(across, period, duty, s.wide)
        * stripes(s.height - np.float32(0.9), storey, share, s.foot)
        * wall_here
    )
    spots = grain(s.along, s.height, 2.5, s.wide) * np.float32(0.14) + grain(
        s.along, s.height, 0.3, s.wide
    ) * np.float32(0.2)
    bricks = (
        (s.key % 4 == 1)
        * stripes(s.height, np.float32(0.16), np.float32(0.2), s.foot)
        * np.float32(0.2)
    )
    wall = s.colour * (1 + spots - bricks)[:, None]
    wall *= (1 - np.float32(0.3) * strip(s.height, 0.3, 0.35, s.foot) * (s.key % 2))[:, None]
    ledge = stripes(s.height + np.float32(0.15), storey, np.float32(0.05), s.foot) * (s.key % 5 < 2)
    mix(wall, np.float32(0.6) * s.colour, ledge.astype(np.float32))
    mix(wall, np.float32(0.5) + np.float32(0.25) * s.colour, frame)
    pane = (np.float32(0.02) + np.float32(0.25) * cell * cell)[:, None] * (
        light.horizon + np.float32(0.15)
    )
    mix(wall, pane, glass)
    rows = np.float32(0.3) * stripes(s.height, np.float32(0.2), np.float32(0.25), s.foot * 2)
    tiles = s.second * (1 + 2 * spots - rows)[:, None]
    return np.where(s.normal[:, 1:2] > 0.3, tiles, wall)


def _body(s: Surface, light: Light) -> np.ndarray:
    """numbers: belt height, half length, half width."""
    _, half, side, _ = s.numbers.T
    ahead, across = s.local[:, 0], s.local[:, 2]
    end, front = np.abs(ahead) > half - np.float32(0.03), ahead > 0
    dark = np.float32(0.02)
    colour = s.colour + _shine(s, 0.12, light)
    lamp = (
        end
        * strip(np.abs(across), side - np.float32(0.22), np.float32(0.2), s.foot)
        * strip(s.height, 0.66, 0.1, s.foot)
    )
    mix(colour, np.where(front[:, None], np.float32(0.85), _REAR_LAMP), lamp)
    mix(
        colour,
        np.float32(0.6),
        end * strip(across, 0, 0.26, s.foot) * strip(s.height, 0.48, 0.06, s.foot),
    )
    grille = strip(across, 0, side - np.float32(0.5), s.foot) * strip(s.height, 0.64, 0.07, s.foot)
    mix(colour, dark, (end & front) * grille)
    mix(colour, dark, strip(s.height, 0.3, 0.07, s.foot))
    seams = strip(ahead, np.float32(0.3) * half, np.float32(0.012), s.wide)
    seams += strip(ahead, np.float32(-0.25) * half, np.float32(0.012), s.wide)
    mix(colour, dark, (np.abs(across) > side - np.float32(0.02)) * seams * np.float32(0.6))
    return colour


def _cabin(s: Surface, light: Light) -> np.ndarray:
    """numbers: lower and upper edge of the windows, half length, 1 when only the front has windows."""
    belt, roof, half, cargo = s.numbers.T
    ahead, up = s.local[:, 0], s.normal[:, 1]
    glass = strip(s.height, (belt + roof) / 2, (roof - belt) / 2 - np.float32(0.07), s.foot) * (
        up < 0.92
    )
    pillars = stripes(ahead + np.float32(0.05), np.float32(1.1), np.float32(0.08), s.wide)
    glass *= 1 - pillars * (np.abs(s.local[:, 2]) > 0.3) * (np.abs(up) < 1e-3)
    glass *= (cargo == 0) | (ahead > np.float32(0.25) * half)
    colour = s.second + _shine(s, 0.12, light)
    mix(colour, s.colour + np.float32(0.04) * light.horizon + _shine(s, 0.3, light), glass)
    return colour


def _shine(s: Surface, share: float, light: Light) -> np.ndarray:
    """The sky in a smooth surface that looks up."""
    return (np.maximum(s.normal[:, 1], 0) * np.float32(share))[:, None] * light.horizon


def _wheel(s: Surface, light: Light) -> np.ndarray:
    """numbers: the axle's place along the vehicle, the radius."""
    a, b, radius = s.local[:, 0] - s.numbers[:, 0], s.height - s.numbers[:, 1], s.numbers[:, 1]
    hub = (a * a + b * b < np.float32(0.36) * radius * radius) & (np.abs(s.normal[:, 1]) < 0.01)
    return np.where(hub[:, None], np.float32(0.28), s.colour)


def _plain(s: Surface, light: Light) -> np.ndarray:
    """numbers: roughness."""
    spots = grain(s.along + s.key.astype(np.float32), s.height, 0.6, s.wide) + grain(
        s.along, s.height, 0.15, s.wide
    )
    return s.colour * (1 + s.numbers[:, 0] * spots)[:, None]


def _leaf(s: Surface, light: Light) -> np.ndarray:
    a, b, c = (s.local + s.key[:, None].astype(np.float32)).T
    clumps = grain(a + np.float32(0.5) * c, b, 0.7, s.foot) + grain(
        a, b - np.float32(0.6) * c, 0.22, s.foot
    )
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
