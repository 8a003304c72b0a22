"""Cars, vans and lorries, made of convex side profiles that are extruded over the vehicle's width.

The two wheels of an axle are one octagonal prism across the vehicle.
"""

import math

from tiekd.data.rendering.casting import Solid, prism
from tiekd.data.rendering.objects import CABIN, PAINT, PLAIN, WALLS, WHEEL, Draw, frame, ring

_PAINTS = (
    (
        (0.55, 0.56, 0.58),
        (0.02, 0.02, 0.025),
        (0.75, 0.75, 0.73),
        (0.16, 0.17, 0.19),
        (0.45, 0.03, 0.03),
    )
    + (
        (0.04, 0.08, 0.3),
        (0.3, 0.32, 0.34),
        (0.05, 0.2, 0.09),
        (0.5, 0.36, 0.05),
        (0.3, 0.24, 0.18),
    )
    + ((0.1, 0.3, 0.42), (0.02, 0.03, 0.06), (0.42, 0.43, 0.44), (0.7, 0.7, 0.68))
)
_KINDS = ("saloon", "saloon", "hatchback", "hatchback", "hatchback", "van", "lorry")
_LENGTH_M = {"saloon": 4.6, "hatchback": 4.0, "van": 5.2, "lorry": 7.5}
_WIDTH_M = {"saloon": 1.8, "hatchback": 1.72, "van": 2.0, "lorry": 2.35}
_GLASS = (0.03, 0.035, 0.04)


def vehicle(
    solids: list[Solid], draw: Draw, place, heading, across: float, z: float, oncoming: bool
) -> float:
    """Adds a random vehicle whose near end is at z metres along the road.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        place: function (across, z) -> world (x, z), as `Road.place`.
        heading: function z -> the road's direction, radians, as `Road.heading`.
        across: metres from the centre line to the vehicle, > 0 to the right.
        z: near end of the vehicle, metres along the road.
        oncoming: True if the vehicle faces the camera, False if it drives away.

    Returns:
        The vehicle's length in metres.
    """
    kind = _KINDS[draw.whole(len(_KINDS))]
    size = draw.span(0.93, 1.07)
    length = _LENGTH_M[kind] * size
    x, middle = place(across, z + length / 2)
    turned = math.pi if oncoming else 0.0
    axes = frame(heading(middle) + turned + draw.span(-0.03, 0.03))
    paint = draw.tint(_PAINTS)
    key = draw.whole(256)

    def add(profile, half_width, material, colour, numbers):
        # Add one convex part of the vehicle, extruded over its width. The material CABIN uses the
        # second colour, `paint`, for pillars and roof.
        solids.append(
            prism(profile, (x, 0, middle), axes, half_width, material, colour, paint, key, numbers)
        )

    # Add the body and the cabin.
    half = length / 2
    side = _WIDTH_M[kind] / 2
    if kind == "lorry":
        _lorry(add, half, side, draw.tint(WALLS))
    elif kind == "van":
        _van(add, half, side, paint)
    else:
        _car(add, half, side, paint, size, boot=kind == "saloon")
    # Add the front and rear wheels.
    radius = 0.45 if kind == "lorry" else 0.32
    for axle in (-0.62 * half, 0.62 * half):
        tyre = [(axle + a, radius * 0.98 + b) for a, b in ring(radius, 8)]
        add(tyre, side + 0.01, WHEEL, (0.012, 0.012, 0.013), (axle, radius, 0, 0))
    return length


def _car(add, h, side, paint, size, boot) -> None:
    belt = 0.9 * size
    roof = (1.46 if boot else 1.53) * size
    tail = (-0.3 if boot else -0.82) * h
    body = [
        (-h, 0.28),
        (h, 0.28),
        (h, 0.68),
        (0.86 * h, belt - 0.08),
        (0.4 * h, belt),
        (-0.9 * h, belt),
        (-h, belt - 0.12),
    ]
    rear_window = tail - 0.17 * h - (0.1 if boot else 0.0)
    cabin = [(rear_window, belt), (0.48 * h, belt), (0.14 * h, roof), (tail, roof)]
    add(body, side, PAINT, paint, (belt, h, side, 0))
    add(cabin, side - 0.08, CABIN, _GLASS, (belt, roof, h, 0))


def _van(add, h, side, paint) -> None:
    body = [(-h, 0.3), (h, 0.3), (h, 0.95), (0.78 * h, 1.2), (-h, 1.2)]
    upper = [(-h, 1.2), (0.78 * h, 1.2), (0.55 * h, 2.0), (-h + 0.05, 2.05)]
    add(body, side, PAINT, paint, (1.2, h, side, 0))
    add(upper, side, CABIN, _GLASS, (1.2, 2.05, h, 1))


def _lorry(add, h, side, cargo) -> None:
    cab = [(0.6 * h, 0.45), (h, 0.45), (h, 1.5), (0.93 * h, 2.4), (0.6 * h, 2.4)]
    add(cab, side - 0.05, CABIN, _GLASS, (1.3, 2.4, h, 1))
    box = [(-h, 0.75), (0.55 * h, 0.75), (0.55 * h, 3.1), (-h, 3.1)]
    add(box, side, PLAIN, cargo, (0.15, 0, 0, 0))
    chassis = [(-h, 0.45), (0.6 * h, 0.45), (0.6 * h, 0.75), (-h, 0.75)]
    add(chassis, side - 0.2, PAINT, (0.03, 0.03, 0.03), (0.75, h, side - 0.2, 0))
