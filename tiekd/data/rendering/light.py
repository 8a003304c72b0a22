"""Generates a scene's random light, sunny or overcast, and shades the sky."""

import math
from typing import NamedTuple

import numpy as np

from tiekd.data.rendering.objects import Draw
from tiekd.data.rendering.texture import noise


class Light(NamedTuple):
    """The light of a scene. Colours are linear RGB (3,), float32.

    Attributes:
        sun: (3,), unit vector to the sun, world axes.
        sun_colour: colour times intensity of the sunlight.
        ambient: colour times intensity of the sky's light on surfaces.
        zenith: colour of the sky at the zenith.
        horizon: colour of the sky at the horizon; the haze's colour is derived from it.
        clouds: cloud cover, 0 (clear) to 1 (overcast).
        haze_m: distance over which haze attenuates light to about 1/e, metres.
        exposure: factor by which all colours are multiplied before the tone curve.
        hills: height of the hills on the horizon divided by their distance.
    """

    sun: np.ndarray
    sun_colour: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    haze_m: float
    exposure: float
    hills: float


def random_light(draw: Draw) -> Light:
    """Returns random light, sunny with probability 0.67, otherwise overcast.

    Args:
        draw: the random number generator.
    """
    azimuth = draw.span(-math.pi, math.pi)
    height = draw.span(0.4, 1.05)
    sun = [
        math.sin(azimuth) * math.cos(height),
        math.sin(height),
        math.cos(azimuth) * math.cos(height),
    ]
    # A sunny scene has warm sunlight and a bluish sky; an overcast one has almost no sunlight and a
    # grey sky.
    if draw.chance(0.67):
        warm = draw.span(0.7, 1.0)
        strength = draw.span(1.5, 2.2)
        sky = draw.span(0.75, 1.1)
        sun_colour = strength, strength * (0.82 + 0.15 * warm), strength * (0.6 + 0.3 * warm)
        ambient = [draw.span(0.4, 0.6) * c for c in (0.85, 0.95, 1.15)]
        zenith = [sky * c for c in (0.14, 0.3, 0.68)]
        horizon = [sky * c for c in (0.62, 0.74, 0.88)]
        clouds = draw.span(0.0, 0.75)
        haze_m = draw.span(160, 600)
        exposure = draw.span(0.75, 1.15)
    else:
        grey, strength = draw.span(0.6, 1.0), draw.span(0.0, 0.2)
        sun_colour = strength, strength, strength
        ambient = [draw.span(1.0, 1.4) * c for c in (0.96, 1.0, 1.04)]
        zenith = [grey * c for c in (0.82, 0.9, 1.0)]
        horizon = [grey * c for c in (1.0, 1.03, 1.05)]
        clouds = draw.span(0.5, 1.0)
        haze_m = draw.span(100, 350)
        exposure = draw.span(0.75, 1.1)
    colours = (np.array(colour, np.float32) for colour in (sun_colour, ambient, zenith, horizon))
    return Light(np.array(sun), *colours, clouds, haze_m, exposure, draw.span(0.01, 0.06))


def sky(ray: list[np.ndarray], light: Light) -> np.ndarray:
    """Returns the colours of sky, sun glow, clouds and distant hills, (n, 3) float32, linear RGB.

    Args:
        ray: three (n,) arrays, the ray directions of n pixels in world axes, not normalised.
        light: the scene's light.
    """
    # Blend the sky's colours at horizon and zenith by the height of the viewing direction.
    flat = np.maximum(ray[1], 0) + np.float32(0.02)
    blend = np.minimum(flat * np.float32(2.2), 1)[:, None]
    colour = light.horizon + blend * (light.zenith - light.horizon)
    # Add a glow around the sun: the 8th power of the cosine of the angle between ray and sun.
    sun = light.sun.astype(np.float32)
    glow = np.maximum(ray[0] * sun[0] + ray[1] * sun[1] + ray[2] * sun[2], 0)
    glow /= np.sqrt(ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2])
    for _ in range(3):
        glow *= glow
    colour += glow[:, None] * (light.sun_colour * np.float32(0.3))
    # Add clouds: three octaves of value noise on a horizontal plane above the camera.
    scale = 1 / (flat + np.float32(0.06))
    a, b = ray[0] * scale, ray[2] * scale
    cover = np.float32(0.6) * noise(a * np.float32(0.6) + np.float32(11), b * np.float32(0.6))
    medium = np.float32(0.28) * noise(a * np.float32(1.7), b * np.float32(1.7))
    cover += medium + np.float32(0.12) * noise(a * 5, b * 5)
    cover = np.maximum((cover - np.float32(0.85 - 0.6 * light.clouds)) * 4, 0)
    cover = np.minimum(cover, np.float32(0.8))
    cover *= np.minimum(flat * 12, 1)
    cloud = light.horizon * np.float32(0.95) + light.sun_colour * np.float32(0.15)
    colour += cover[:, None] * (cloud - colour)

    # Add distant hills: the height of the ridge is noise over the horizontal viewing direction.
    across, up = ray[0] / ray[2], ray[1] / ray[2]
    row = np.zeros_like(across)
    ridge = noise(across * 3 + 40, row) + np.float32(0.35) * noise(across * 23, row)
    far = np.minimum(np.maximum((np.float32(light.hills) * ridge - up) * 150, 0), 1)
    colour += far[:, None] * (light.horizon * np.array([0.5, 0.58, 0.62], np.float32) - colour)
    return colour
