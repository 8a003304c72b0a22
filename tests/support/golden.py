"""Generates the weights and inputs of the golden numbers, so that they needn't be stored.

Each array is determined by its tag: NumPy's legacy generator is seeded with crc32(tag), the
arithmetic is float64, and the result is float32.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
WIDE_TABLES = (
    "relative_position_bias_table",
    "positional_encodings",
    "level_embed",
    "absolute_pos_embed",
)


def load_json(name: str) -> dict:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def load_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as archive:
        return {key: archive[key] for key in archive.files}


def rs(tag: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(tag.encode("utf-8")) & 0xFFFFFFFF)


def normal(tag: str, shape) -> np.ndarray:
    return rs(tag).standard_normal(int(np.prod(shape))).reshape(shape)


def randn(tag: str, shape, scale: float = 1.0) -> Tensor:
    return _float32(scale * normal(tag, shape))


def rand(tag: str, shape, low: float = 0.0, high: float = 1.0) -> Tensor:
    return _float32(low + (high - low) * rs(tag).random_sample(shape))


def image(tag: str, shape) -> Tensor:
    """Returns a normalised network input (N, C, H, W): one wave per channel plus noise."""
    n, c, y, x = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    wave = (1 + c + n) * x / shape[3] + (2 - c + n) * y / shape[2]
    return _float32(1.2 * np.sin(2 * np.pi * wave + 0.7 * c + 0.3 * n) + 0.5 * normal(tag, shape))


def depth(tag: str, shape, low: float, high: float) -> Tensor:
    """Returns a smooth, slightly noisy depth map (N, 1, H, W) from low to high, in metres."""
    n, _, y, x = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    waves = np.sin(2 * np.pi * (1.5 * x / shape[3] + 0.5 * y / shape[2]) + 0.9 * n) * np.cos(
        1.5 * np.pi * y / shape[2]
    )
    t = np.clip(0.5 + 0.45 * waves + 0.03 * normal(tag, shape), 0.01, 0.99)
    return _float32(low + (high - low) * t**2)


def fill(
    name: str, shape, gain: float = 1.0, overrides: Mapping[str, float] | None = None
) -> Tensor:
    """Returns the generated value of a state dict's entry with this published name and shape."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = normal(name, shape)
    if name.endswith("running_mean"):
        n *= 0.1
    elif name.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif name.endswith(WIDE_TABLES):
        n *= 0.2
    elif len(shape) >= 2:
        n *= (overrides or {}).get(name, gain) / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(".weight"):
        n = 1 + 0.1 * n
    else:
        n *= 0.1
    return _float32(n)


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
