"""Box-filtered patterns and value noise, the base of all textures; float32 arrays in and out.

`foot` is the size of a pixel on the surface, in the unit of the coordinate. So a pattern finer
than a pixel gives its mean instead of aliasing.
"""

import numpy as np

_TILE = (
    np.random.Generator(np.random.PCG64(np.random.SeedSequence(257)))
    .random((256, 256), dtype=np.float32)
    .ravel()
)


def lattice(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Returns a fixed random float32 in [0, 1) for each pair of integers (period 256)."""
    return _TILE.take(((i & 255) << 8) | (j & 255))


def noise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns value noise in [0, 1) with features of size 1 in the plane (a, b)."""
    i, j = np.floor(a), np.floor(b)
    fa, fb = a - i, b - j
    # Smoothsteps, so that the noise has no creases at the lattice's lines.
    fa = fa * fa * (3 - 2 * fa)
    fb = fb * fb * (3 - 2 * fb)
    i, j = i.astype(np.int32), j.astype(np.int32)
    top = lattice(i, j)
    low = lattice(i, j + 1)
    top += fa * (lattice(i + 1, j) - top)
    low += fa * (lattice(i + 1, j + 1) - low)
    return top + fb * (low - top)


def grain(a: np.ndarray, b: np.ndarray, cell: float, foot: np.ndarray) -> np.ndarray:
    """Returns noise with features `cell` wide, -0.5..0.5, faded out where pixels are larger."""
    fade = np.minimum(np.maximum(cell / foot - np.float32(0.4), 0), 1)
    return fade * (noise(a * np.float32(1 / cell), b * np.float32(1 / cell)) - np.float32(0.5))


def strip(at: np.ndarray, centre, half, foot: np.ndarray) -> np.ndarray:
    """Returns the share 0..1 of the pixel around `at` that |x - centre| <= half covers."""
    end = np.minimum(at + foot * np.float32(0.5), centre + half)
    start = np.maximum(at - foot * np.float32(0.5), centre - half)
    return np.maximum(end - start, 0) / foot


def stripes(at: np.ndarray, period, duty, foot: np.ndarray) -> np.ndarray:
    """Returns the share 0..1 of the pixel around `at` that stripes cover.

    A stripe is x in [k period, (k + duty) period), for all integers k.
    """
    foot = foot / period
    low = at / period - foot * np.float32(0.5)
    high = low + foot
    below, above = np.floor(low), np.floor(high)
    # The integral of the stripes up to `high`, minus that up to `low`.
    covered = (above - below) * duty + np.minimum(high - above, duty)
    return (covered - np.minimum(low - below, duty)) / foot


def mix(base: np.ndarray, new, share: np.ndarray) -> None:
    """Blends `new` (n, 3) or (3,) into the colours `base` (n, 3), in place, by share (n,)."""
    base += share[:, None] * (new - base)
