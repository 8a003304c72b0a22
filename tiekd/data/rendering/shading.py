"""Turns the result of ray casting into an image: sky, ground, solids, haze and tone curve.

Textures are functions of world or object coordinates, so their size in the image is a depth cue as
in a photograph. As in casting.py, arrays are computed with + - * / sqrt only, so the image is the
same on every CPU. Not covered: reflections, lens blur.
"""

import numpy as np

from tiekd.data.rendering.casting import GROUND, SKY, Camera, Hits, rays
from tiekd.data.rendering.ground import ground
from tiekd.data.rendering.layout import Street
from tiekd.data.rendering.light import sky
from tiekd.data.rendering.materials import solids


def shade(camera: Camera, street: Street, hits: Hits) -> np.ndarray:
    """Returns the image of a scene, (H, W, 3) float32, RGB display values 0..1.

    Args:
        camera: the camera that the image was cast with.
        street: the scene.
        hits: the nearest surface in every pixel, as `cast` returns it.
    """
    x, y = rays(camera)
    axes = camera.axes.astype(np.float32)
    light = street.light
    ray = [axes[0, k] * x + axes[2, k] + axes[1, k] * y for k in range(3)]
    image = np.empty((camera.height, camera.width, 3), np.float32)
    at = hits.face == SKY
    image[at] = sky([part[at] for part in ray], light)
    haze = light.horizon * np.float32(0.9)
    for at, colours in ((hits.face == GROUND, ground), (hits.face > GROUND, solids)):
        depth = 1 / hits.inverse_depth[at]
        way = [part[at] for part in ray]
        point = [np.float32(camera.position[k]) + depth * way[k] for k in range(3)]
        # Add haze. Its transmittance with L = haze_m is (1 + z / 4L)^-4, which approximates exp(-z
        # / L), because exp isn't bit-equal on every CPU.
        clear = 1 / (1 + depth * np.float32(0.25 / light.haze_m))
        clear *= clear
        clear *= clear
        lit = colours(camera, street, hits, at, depth, point, way)
        image[at] = haze + clear[:, None] * (lit - haze)
    return _tone(np.maximum(image, 0) * np.float32(light.exposure))


def _tone(linear: np.ndarray) -> np.ndarray:
    """Applies a camera-like tone curve to an image.

    Highlights are compressed, and a square root takes the place of the gamma curve. To add
    contrast, the result is averaged with its smoothstep, 3 v^2 - 2 v^3 of each value v.

    Args:
        linear: linear RGB values >= 0, of any shape.

    Returns:
        Display values 0..1 of the same shape.
    """
    display = np.minimum(np.sqrt(linear / (1 + np.float32(0.25) * linear)), 1)
    return np.float32(0.5) * display + np.float32(0.5) * display * display * (3 - 2 * display)
