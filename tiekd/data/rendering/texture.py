"""Box-filtered patterns and value noise, from which all textures are made; all arrays are float32.

Patterns are functions of coordinates on a surface. The argument `foot` is the size of a pixel on
the surface, in the unit of these coordinates. A pattern is averaged over the pixel, so a pattern
finer than a pixel gives its mean instead of aliasing.
"""

import numpy as np

_TILE = (
    np.random.Generator(np.random.PCG64(np.random.SeedSequence(257)))
    .random((256, 256), dtype=np.float32)
    .ravel()
)


def lattice(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Returns a pseudo-random float32 in [0, 1) for each pair of integers (i, j).

    The same pair always gives the same value. Values repeat every 256 in i and j.

    Args:
        i: integers of any shape.
        j: integers of the same shape, or one that broadcasts.
    """
    return _TILE.take(((i & 255) << 8) | (j & 255))


def noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns value noise in [0, 1), i.e. smoothly interpolated random values of a lattice.

    Args:
        a: first coordinate of each point, of any shape; the lattice spacing is 1.
        b: second coordinate of each point, of a shape that broadcasts with a.

    Returns:
        float32 of the broadcast shape of a and b.
    """
    i, j = np.floor(a), np.floor(b)
    fa, fb = a - i, b - j
    # Interpolate by a smoothstep, so that the noise has no visible creases along the lattice lines.
    fa = fa * fa * (3 - 2 * fa)
    fb = fb * fb * (3 - 2 * fb)
    i, j = i.astype(np.int32), j.astype(np.int32)
    top = lattice(i, j)
    low = lattice(i, j + 1)
    top += fa * (lattice(i + 1, j) - top)
    low += fa * (lattice(i + 1, j + 1) - low)
    return top + fb * (low - top)


def grain(a: np.ndarray, b: np.ndarray, cell: float, foot: np.ndarray) -> np.ndarray:
    """Returns noise in [-0.5, 0.5) that fades to 0 where a pixel is too large to show it.

    Args:
        a: first coordinate of each point, of any shape.
        b: second coordinate of each point, of a shape that broadcasts with a.
        cell: lattice spacing of the noise, in the unit of a and b.
        foot: size of the pixel at each point, in the unit of a and b.

    Returns:
        float32 of the broadcast shape of a, b and foot.
    """
    fade = np.minimum(np.maximum(cell / foot - np.float32(0.4), 0), 1)
    return fade * (noise(a * np.float32(1 / cell), b * np.float32(1 / cell)) - np.float32(0.5))


def strip(at: np.ndarray, centre, half, foot: np.ndarray) -> np.ndarray:
    """Returns the fraction 0..1 of each pixel that a straight strip of a surface covers.

    The strip is the set of points with |x - centre| <= half, for one coordinate x of the surface.

    Args:
        at: coordinate x of the pixels' centres.
        centre: centre of the strip.
        half: half the strip's width.
        foot: size of the pixels, in the unit of x.
    """
    end = np.minimum(at + foot * np.float32(0.5), centre + half)
    start = np.maximum(at - foot * np.float32(0.5), centre - half)
    return np.maximum(end - start, 0) / foot


def stripes(at: np.ndarray, period, duty, foot: np.ndarray) -> np.ndarray:
    """Returns the fraction 0..1 of each pixel that periodic stripes of a surface cover.

    The stripes are the points with x in [k period, (k + duty) period), for all integers k and one
    coordinate x of the surface.

    Args:
        at: coordinate x of the pixels' centres.
        period: distance from the start of one stripe to the next.
        duty: width of a stripe divided by the period, 0 to 1.
        foot: size of the pixels, in the unit of x.
    """
    foot = foot / period
    low = at / period - foot * np.float32(0.5)
    high = low + foot
    below, above = np.floor(low), np.floor(high)
    # Integrate the stripes' indicator function from `low` to `high`.
    covered = (above - below) * duty + np.minimum(high - above, duty)
    return (covered - np.minimum(low - below, duty)) / foot


def mix(base: np.ndarray, new, share: np.ndarray) -> None:
    """Blends new colours into `base`, in place.

    Args:
        base: (n, 3), linear RGB, changed in place.
        new: (n, 3) or (3,), or one number for grey.
        share: (n,), weight of the new colours, 0 to 1.
    """
    base += share[:, None] * (new - base)
