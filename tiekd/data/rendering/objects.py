"""The objects of a street: one function per kind, which appends the object's solids to a list.

Sizes and positions are in metres, colours linear RGB, and angles in radians: an object at angle 0
faces along z, at a positive angle it is turned to the right. A solid's `numbers` are parameters of
its material; materials.py states their meaning. Vehicles are in vehicles.py.
"""

import math

import numpy as np

from tiekd.data.rendering.casting import Solid, ellipsoid, prism

FACADE, PAINT, CABIN, WHEEL, PLAIN, LEAF = range(6)  # values of Solid.material
WALLS = (
    (
        (0.62, 0.55, 0.42),
        (0.68, 0.66, 0.6),
        (0.5, 0.3, 0.2),
        (0.36, 0.14, 0.09),
        (0.6, 0.42, 0.2),
        (0.4, 0.42, 0.44),
    )
    + (
        (0.66, 0.46, 0.38),
        (0.42, 0.48, 0.42),
        (0.25, 0.22, 0.2),
        (0.7, 0.62, 0.34),
        (0.5, 0.52, 0.6),
    )
    + ((0.3, 0.1, 0.07), (0.78, 0.76, 0.72))
)
CLOTHES = (
    (0.04, 0.05, 0.1),
    (0.5, 0.48, 0.45),
    (0.02, 0.02, 0.025),
    (0.4, 0.05, 0.05),
    (0.1, 0.2, 0.35),
)
LEAVES = (
    (0.07, 0.16, 0.03),
    (0.05, 0.12, 0.04),
    (0.12, 0.19, 0.03),
    (0.2, 0.17, 0.03),
    (0.04, 0.1, 0.05),
)
_ROOFS = ((0.3, 0.1, 0.06), (0.16, 0.08, 0.06), (0.1, 0.1, 0.11), (0.36, 0.17, 0.1))
_RED = (0.5, 0.03, 0.03)
_BLUE = (0.03, 0.1, 0.5)
_WHITE = (0.6, 0.6, 0.58)
_YELLOW = (0.65, 0.45, 0.03)
# The kinds of traffic sign: (colour, number of corners).
_SIGNS = (
    (_RED, 8),
    (_BLUE, 4),
    (_WHITE, 8),
    (_YELLOW, 4),
    (_RED, 3),
    (_BLUE, 8),
)


class Draw:
    """A seeded random number generator with methods for the values that a scene needs.

    It uses only `random` and `integers` of NumPy's generator, because their streams stay the same
    across NumPy versions.

    Args:
        seed: the generator's seed, a NumPy SeedSequence.
    """

    def __init__(self, seed: np.random.SeedSequence):
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def span(self, low: float, high: float) -> float:
        """Returns a random float from a uniform distribution over [low, high)."""
        return low + (high - low) * float(self._rng.random())

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability, 0 to 1."""
        return float(self._rng.random()) < probability

    def whole(self, count: int) -> int:
        """Returns a random integer from a uniform distribution over 0 to count - 1."""
        return int(self._rng.integers(count))

    def tint(self, colours: tuple, spread: float = 0.15) -> tuple:
        """Returns one of `colours`, chosen at random, with random changes of brightness and hue.

        Args:
            colours: the colours to choose from, linear RGB.
            spread: size of the changes: the colour is multiplied by a random factor from
                1 - 2 * spread to 1 + spread, then each channel by one from 1 - spread / 2 to
                1 + spread / 2.

        Returns:
            (r, g, b), linear RGB.
        """
        colour = colours[self.whole(len(colours))]
        gain = self.span(1 - 2 * spread, 1 + spread)
        return tuple(c * gain * self.span(1 - spread / 2, 1 + spread / 2) for c in colour)


def frame(angle: float) -> tuple:
    """Returns an object's unit vectors (ahead, up, right) in world axes.

    Args:
        angle: horizontal direction that the object faces, radians, > 0 to the right of z.
    """
    ahead = (math.sin(angle), 0.0, math.cos(angle))
    return ahead, (0.0, 1.0, 0.0), (ahead[2], 0.0, -ahead[0])


def ring(radius: float, count: int) -> list:
    """Returns the corners of a regular polygon around the origin, whose lowest side is horizontal.

    Args:
        radius: distance of the corners from the origin, metres.
        count: number of corners.

    Returns:
        [(a, b), ...], counter-clockwise, metres.
    """
    turn = 2 * math.pi / count
    first = math.pi / count - math.pi / 2
    return [
        (radius * math.cos(first + i * turn), radius * math.sin(first + i * turn))
        for i in range(count)
    ]


def column(
    solids: list[Solid],
    x: float,
    z: float,
    radius: float,
    tall: float,
    colour: tuple,
    rough: float = 0.0,
) -> None:
    """Adds an upright hexagonal pole or trunk.

    Args:
        solids: the list to append to.
        x: world x of the axis, metres.
        z: world z of the axis, metres.
        radius: radius of the hexagon's corners, metres.
        tall: height, metres.
        colour: linear RGB.
        rough: contrast of the texture, 0 for none.
    """
    ahead, up, right = frame(0.0)
    where = (x, tall / 2, z)
    axes = (right, ahead, up)
    numbers = (rough, 0, 0, 0)
    solids.append(prism(ring(radius, 6), where, axes, tall / 2, PLAIN, colour, numbers=numbers))


def block(
    solids: list[Solid],
    x: float,
    z: float,
    low: float,
    high: float,
    length: float,
    width: float,
    angle: float,
    colour: tuple,
    rough: float = 0.0,
    key: int = 0,
) -> None:
    """Adds a box of one colour.

    Args:
        solids: the list to append to.
        x: world x of the centre, metres.
        z: world z of the centre, metres.
        low: height of the bottom, metres.
        high: height of the top, metres.
        length: size along `angle`, metres.
        width: size across `angle`, metres.
        angle: horizontal direction of the length, radians; 0 along z, > 0 turned to the right.
        colour: linear RGB.
        rough: contrast of the texture, 0 for none.
        key: number from 0 to 255, which varies the texture.
    """
    ahead, up, right = frame(angle)
    profile = [(-length / 2, low), (length / 2, low), (length / 2, high), (-length / 2, high)]
    axes = (ahead, up, right)
    numbers = (rough, 0, 0, 0)
    solids.append(
        prism(profile, (x, 0, z), axes, width / 2, PLAIN, colour, key=key, numbers=numbers)
    )


def building(
    solids: list[Solid],
    draw: Draw,
    x: float,
    z: float,
    angle: float,
    length: float,
    depth: float,
    storeys: int,
    gabled: bool,
) -> None:
    """Adds a house or a block of flats with rows of windows.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        x: world x of the centre, metres.
        z: world z of the centre, metres.
        angle: direction of the street, radians; 0 along z, > 0 turned to the right.
        length: size along the street, metres.
        depth: size across the street, metres.
        storeys: number of storeys.
        gabled: True for a gabled roof, False for a flat one.
    """
    ahead, up, right = frame(angle)
    storey = draw.span(2.7, 3.4)
    top = storey * storeys + draw.span(0.2, 0.8)
    # Build the house as its gable wall's outline, extruded along the roof's ridge. If the gable
    # faces the street, the ridge is perpendicular to the street.
    gable_on_street = draw.chance(0.4)
    span, half = (length / 2, depth / 2) if gable_on_street else (depth / 2, length / 2)
    axes = (ahead, up, right) if gable_on_street else (right, up, ahead)
    ridge = [(0.0, top + span * draw.span(0.5, 1.0))] if gabled else []
    profile = [(-span, 0), (span, 0), (span, top), *ridge, (-span, top)]
    numbers = (draw.span(1.7, 3.4), storey, draw.span(0.35, 0.6), top)
    colours = draw.tint(WALLS), draw.tint(_ROOFS)
    solids.append(
        prism(
            profile, (x, 0, z), axes, half, FACADE, *colours, key=draw.whole(256), numbers=numbers
        )
    )


def tree(solids: list[Solid], draw: Draw, x: float, z: float, size: float) -> None:
    """Adds a tree at (x, z): a trunk and a crown of three ragged ellipsoids.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        x: world x, metres.
        z: world z, metres.
        size: factor by which the random height of 5 to 9 m is multiplied.
    """
    tall = draw.span(5, 9) * size
    key = draw.whole(256)
    leaf = draw.tint(LEAVES)
    trunk = draw.span(0.25, 0.4) * tall
    slim = draw.chance(0.25)
    column(solids, x, z, 0.022 * tall, trunk + 0.6, (0.09, 0.065, 0.045), rough=0.5)
    for blob in range(3):
        radius = tall * draw.span(0.2, 0.28) * (0.7 if slim else 1.0)
        spread = 0.0 if slim else radius * 0.5
        height = trunk + (tall - trunk) * (0.25 + 0.27 * blob)
        where = (x + draw.span(-spread, spread), height, z + draw.span(-spread, spread))
        radii = (radius, radius * draw.span(0.8, 1.2), radius)
        solids.append(
            ellipsoid(
                where, radii, LEAF, leaf, key=(key + 31 * blob) % 256, numbers=(0.75, 0, 0, 0)
            )
        )


def lamp(solids: list[Solid], x: float, z: float, angle: float, side: int, tall: float) -> None:
    """Adds a street lamp whose arm reaches over the road.

    Args:
        solids: the list to append to.
        x: world x of the pole, metres.
        z: world z of the pole, metres.
        angle: direction of the road, radians; 0 along z, > 0 turned to the right.
        side: the side of the road, -1 for left, +1 for right.
        tall: height, metres.
    """
    right = frame(angle)[2]
    column(solids, x, z, 0.08, tall, (0.22, 0.23, 0.24))
    x = x - side * 0.7 * right[0]
    z = z - side * 0.7 * right[2]
    block(solids, x, z, tall - 0.08, tall + 0.08, 0.25, 1.5, angle, (0.25, 0.26, 0.27))


def sign(solids: list[Solid], draw: Draw, x: float, z: float) -> None:
    """Adds a traffic sign on a pole, which roughly faces the camera.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        x: world x of the pole, metres.
        z: world z of the pole, metres.
    """
    ahead, up, right = frame(draw.span(-0.2, 0.2))
    tall = draw.span(2.0, 2.6)
    colour, corners = _SIGNS[draw.whole(len(_SIGNS))]
    column(solids, x, z, 0.035, tall + 0.1, (0.3, 0.3, 0.3))
    back = (x - 0.06 * ahead[0], tall + 0.2, z - 0.06 * ahead[2])
    solids.append(prism(ring(0.42, corners), back, (right, up, ahead), 0.02, PLAIN, colour))


def bin_(solids: list[Solid], draw: Draw, x: float, z: float) -> None:
    """Adds a box of the size of a dustbin or a switch cabinet.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        x: world x of the centre, metres.
        z: world z of the centre, metres.
    """
    size = draw.span(0.5, 0.9)
    angle = draw.span(-0.2, 0.2)
    colour = draw.tint(CLOTHES)
    block(solids, x, z, 0, size * 1.5, size, size, angle, colour, rough=0.15)


def person(solids: list[Solid], draw: Draw, x: float, z: float) -> None:
    """Adds a standing person, made of three ellipsoids for legs, trunk and head.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        x: world x, metres.
        z: world z, metres.
    """
    tall = draw.span(1.55, 1.9) / 1.75
    legs, trunk = draw.tint(CLOTHES), draw.tint(CLOTHES)
    parts = (
        (0.42, (0.17, 0.45, 0.16), legs),
        (1.12, (0.24, 0.38, 0.17), trunk),
        (1.62, (0.11, 0.14, 0.12), (0.45, 0.3, 0.22)),
    )
    for height, radii, colour in parts:
        solids.append(ellipsoid((x, height * tall, z), [r * tall for r in radii], PLAIN, colour))
