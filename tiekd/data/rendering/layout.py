"""Generates a random street: the road's parameters, the light, and a list of solids.

There are three kinds of surroundings (town, suburb, country), straight and curved roads, side
roads, and parked and driving vehicles. Not covered: hills (the ground is flat), kerb heights,
motion between frames.
"""

import math
from typing import NamedTuple

from tiekd.data.rendering import objects
from tiekd.data.rendering.casting import Solid
from tiekd.data.rendering.light import Light, random_light
from tiekd.data.rendering.objects import Draw
from tiekd.data.rendering.vehicles import vehicle

_BUILT_TO_M, _PLANTED_TO_M, _DRIVEN_TO_M = 150.0, 120.0, 100.0
_GRASS = ((0.1, 0.17, 0.04), (0.16, 0.19, 0.06), (0.22, 0.19, 0.08))
_GRAVEL = ((0.3, 0.28, 0.25), (0.24, 0.2, 0.16))


class Road(NamedTuple):
    """The road and what is beside it on the ground. The centre line is x = offset + bend * z^2.

    Attributes:
        offset: x of the centre line at z = 0, metres.
        bend: coefficient of z^2 in the centre line, 1/m; > 0 curves to the right.
        half_width: metres from the centre line to the kerb.
        lane_edge: metres from the centre line to the outer edge of the traffic lane; between it and
            the kerb is parking space or a shoulder.
        pavement: width of the pavement, metres; 0 for none.
        dashed: True if the centre line is dashed.
        edge_lines: True if the outer edges of the traffic lanes are marked.
        crossing: z of the side road's centre line, metres; 1e6 for none.
        asphalt: colour of the asphalt, linear RGB.
        slabs: colour of the pavement, linear RGB.
        verge: colour of the ground beyond the pavement, linear RGB.
    """

    offset: float
    bend: float
    half_width: float
    lane_edge: float  # metres from the centre line
    pavement: float  # width in metres; 0 for none
    dashed: bool
    edge_lines: bool
    crossing: float  # z of the side road's centre line, metres; 1e6 for none
    asphalt: tuple
    slabs: tuple
    verge: tuple

    def heading(self, z: float) -> float:
        """Returns the horizontal direction of the road's centre line, radians, > 0 to the right.

        Args:
            z: world z of the point on the centre line, metres.
        """
        return math.atan(2 * self.bend * z)

    def place(self, across: float, z: float) -> tuple[float, float]:
        """Returns the world (x, z) of a point beside the centre line, metres.

        Args:
            across: metres to the right of the centre line; < 0 is to the left.
            z: z of the point on the centre line, metres.
        """
        angle = self.heading(z)
        x = self.offset + self.bend * z * z + across * math.cos(angle)
        return x, z - across * math.sin(angle)

    def open_at(self, z: float, room: float) -> bool:
        """Returns True if an object beside the road doesn't block the side road, which is 8 m wide.

        Args:
            z: z of the object's centre, metres.
            room: half the length that the object needs along z, metres.
        """
        return abs(z - self.crossing) > room + 4.0


class Street(NamedTuple):
    """A scene without its camera: the ground, the light, and the objects.

    Attributes:
        road: the ground.
        light: sun, sky and haze.
        solids: all objects on the ground.
    """

    road: Road
    light: Light
    solids: list[Solid]


def random_street(draw: Draw) -> Street:
    """Returns a random street; the camera's position, x = z = 0, is on its right lane.

    Args:
        draw: the random number generator, whose seed determines the street.
    """
    kind = ("town", "town", "suburb", "suburb", "country")[draw.whole(5)]
    road = _road(draw, kind)
    light = random_light(draw)
    solids = []

    # Add the objects on each side of the road: buildings, trees, small objects, parked vehicles.
    for side in (-1, 1):
        _frontage(solids, draw, road, kind, side)
        _trees_and_lamps(solids, draw, road, kind, side)
        _small_things(solids, draw, road, side)
        if kind != "country" and draw.chance(0.85):
            parked = side * (road.half_width - 1.0)
            _lane(
                solids, draw, road, parked, draw.span(2, 14), draw.span(0.8, 12), oncoming=side < 0
            )
    # Add driving vehicles: away from the camera on the right lane, towards it on the left lane.
    lane = road.lane_edge / 2
    if draw.chance(0.8):
        _lane(solids, draw, road, lane, draw.span(8, 40), draw.span(10, 50), oncoming=False)
    if draw.chance(0.8):
        _lane(solids, draw, road, -lane, draw.span(6, 40), draw.span(8, 50), oncoming=True)
    return Street(road, light, solids)


def _road(draw: Draw, kind: str) -> Road:
    """Returns a random road.

    Args:
        draw: the random number generator.
        kind: the surroundings of the road, "town", "suburb" or "country".
    """
    lane = draw.span(2.8, 3.6)
    parking = {"town": 2.2, "suburb": 2.0, "country": 0.6}[kind] * draw.span(0.9, 1.1)
    bend = 0.0
    if not draw.chance(0.4):
        sharpest = 0.0022 if kind == "country" else 0.0013
        bend = draw.span(-1, 1) * sharpest
    return Road(
        offset=-lane / 2 + draw.span(-0.35, 0.35),
        bend=bend,
        half_width=lane + parking,
        lane_edge=lane,
        pavement=0.0 if kind == "country" else draw.span(1.6, 3.8),
        dashed=draw.chance(0.7),
        edge_lines=draw.chance(0.9 if kind == "country" else 0.4),
        crossing=draw.span(18, 60) if draw.chance(0.35) else 1e6,
        asphalt=draw.tint(
            ((0.14, 0.14, 0.145), (0.2, 0.195, 0.19), (0.1, 0.1, 0.11), (0.27, 0.26, 0.25))
        ),
        slabs=draw.tint(((0.34, 0.33, 0.31), (0.28, 0.22, 0.19), (0.4, 0.38, 0.34))),
        verge=draw.tint(_GRAVEL if kind == "town" else _GRASS),
    )


def _frontage(solids: list[Solid], draw: Draw, road: Road, kind: str, side: int) -> None:
    """Adds the buildings along one side of a road, in a suburb with hedges or walls in front.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        road: the road.
        kind: the surroundings, "town", "suburb" or "country".
        side: -1 for the left side, +1 for the right side.
    """
    z = draw.span(-25, -5)
    edge = road.half_width + road.pavement
    terraced = kind == "town" and draw.chance(0.75)
    while z < _BUILT_TO_M:
        # Choose a random size for the next plot of land. A plot at the side road stays empty.
        length = draw.span(9, 24) if kind == "town" else draw.span(8, 15)
        depth = draw.span(8, 14)
        if terraced:
            gap, back = draw.span(0, 0.3), draw.span(0.2, 0.8)
        else:
            gap = draw.span(*{"town": (2, 14), "suburb": (3, 14), "country": (25, 110)}[kind])
            back = draw.span(*{"town": (0.5, 5), "suburb": (2.5, 9), "country": (6, 40)}[kind])
        middle = z + length / 2
        z = z + length + gap
        if not road.open_at(middle, length / 2 + 2):
            continue
        # Add the building.
        if kind == "town":
            storeys = 2 + draw.whole(4)
            gabled = draw.chance(0.3)
        else:
            storeys = 1 + draw.whole(2)
            gabled = draw.chance(0.9)
        x_z = road.place(side * (edge + back + depth / 2), middle)
        angle = road.heading(middle)
        objects.building(
            solids, draw, *x_z, angle + draw.span(-0.03, 0.03), length, depth, storeys, gabled
        )
        # In a suburb, add a hedge or a wall between the plot and the street.
        if kind == "suburb" and draw.chance(0.6):
            hedge = draw.chance(0.6)
            x_z = road.place(side * (edge + 0.5), middle)
            colour = draw.tint(objects.LEAVES if hedge else objects.WALLS)
            tall = draw.span(0.7, 1.7)
            long = length + min(gap, 4) * 0.5
            rough = 0.9 if hedge else 0.25
            objects.block(
                solids, *x_z, 0, tall, long, 0.5, angle, colour, rough, key=draw.whole(256)
            )


def _trees_and_lamps(solids: list[Solid], draw: Draw, road: Road, kind: str, side: int) -> None:
    """Adds rows of trees and street lamps along one side of the road.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        road: the road.
        kind: the surroundings, "town", "suburb" or "country".
        side: -1 for the left side, +1 for the right side.
    """
    edge = road.half_width + (0.7 if road.pavement else 2.0)
    if draw.chance(0.7):
        z, step = draw.span(3, 20), draw.span(7, 22)
        reach = draw.span(0.0, 0.4) if kind == "town" else draw.span(0.5, 6)
        while z < _PLANTED_TO_M:
            across = side * (edge + reach + draw.span(-0.3, 0.3))
            size = draw.span(0.7, 1.3)
            if road.open_at(z, 1.0):
                objects.tree(solids, draw, *road.place(across, z), size)
            z += step * draw.span(0.6, 1.4)
    if draw.chance(0.7):
        z = draw.span(5, 25)
        step = draw.span(18, 35)
        tall = draw.span(5, 8.5)
        while z < _PLANTED_TO_M:
            if road.open_at(z, 1.0):
                objects.lamp(
                    solids, *road.place(side * (edge - 0.2), z), road.heading(z), side, tall
                )
            z += step


def _small_things(solids: list[Solid], draw: Draw, road: Road, side: int) -> None:
    """Adds up to four signs, people and bins along one side of the road.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        road: the road.
        side: -1 for the left side, +1 for the right side.
    """
    edge = road.half_width + (0.7 if road.pavement else 2.0)
    for _ in range(draw.whole(5)):
        what = (objects.sign, objects.person, objects.bin_)[draw.whole(3)]
        z = draw.span(6, 50)
        across = side * (edge + draw.span(-0.3, 0.6))
        if road.open_at(z, 0.5):
            what(solids, draw, *road.place(across, z))


def _lane(
    solids: list[Solid], draw: Draw, road: Road, across: float, z: float, gap: float, oncoming: bool
) -> None:
    """Adds a row of parked or driving vehicles along the road.

    Args:
        solids: the list to append to.
        draw: the random number generator.
        road: the road.
        across: metres from the centre line to the vehicles, > 0 to the right.
        z: near end of the first vehicle, metres along the road.
        gap: mean distance between vehicles, metres.
        oncoming: True if the vehicles face the camera.
    """
    while z < _DRIVEN_TO_M:
        # Place no vehicle at the junction with the side road, which crosses at z = road.crossing.
        if road.crossing - 12 < z < road.crossing + 5:
            z = road.crossing + 5 + draw.span(0, 3)
        swerve = draw.span(-0.15, 0.15)
        z += vehicle(solids, draw, road.place, road.heading, across + swerve, z, oncoming)
        z += 0.6 + gap * draw.span(0.6, 1.6)
