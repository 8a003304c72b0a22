"""Reads and writes pictures and depth maps; every failure names its file.

Pictures are decoded by torchvision.io, 16-bit PNG is written with Pillow (torchvision's own dependency), because
torchvision encodes 8 bits only. Left out: formats that KITTI, NYU and the toolboxes don't use.
"""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file

from tiekd.errors import DataError

TEACHER_MAP_LEVELS = 65535  # a cached teacher map stores round(depth / max_depth * 65535) in 16 bits


def read_image(path: Path) -> Tensor:
    """An RGB picture as (3, H, W) uint8. Raises DataError for a file that is missing, torn or no picture."""
    return _decode(path, ImageReadMode.RGB, "picture")


def read_depth_png(path: Path, units_per_m: float) -> Tensor:
    """A 16-bit depth PNG as (1, H, W) float32 metres, 0 where not measured.

    `units_per_m` is 256 for KITTI and 1000 for NYU. Raises DataError for a missing or torn file and for 8 bits.
    """
    raw = _decode(path, ImageReadMode.UNCHANGED, "depth map")
    if raw.dtype != torch.uint16 or raw.shape[0] != 1:
        raise DataError(
            f"{path}: a depth map must be a one-channel 16-bit PNG, this has {raw.shape[0]} channel(s) of "
            f"{raw.dtype.itemsize * 8} bits; convert it from the original depth (a coloured picture can't be used)"
        )
    return raw.float() / units_per_m


def read_teacher_map(path: Path, max_depth: float) -> Tensor:
    """A cached teacher map, uint16 of depth / max_depth * 65535, as (1, H, W) float32 metres, 0 where not valid."""
    return read_depth_png(path, TEACHER_MAP_LEVELS / max_depth)


def write_depth_png(path: Path, depth_m: np.ndarray, unit_per_m: float = 256.0) -> None:
    """Writes (H, W) metres as a 16-bit PNG of round(depth * unit), 0 where none, saturating at 65535; atomically."""
    levels = np.clip(np.rint(np.nan_to_num(depth_m) * unit_per_m), 0, 65535).astype(np.uint16)
    _write_png(path, levels)


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB as PNG, atomically."""
    _write_png(path, rgb)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(pixels).save(partial, format="PNG", compress_level=1)
    os.replace(partial, path)


def _decode(path: Path, mode: ImageReadMode, kind: str) -> Tensor:
    try:
        return decode_image(read_file(str(path)), mode)
    except RuntimeError as error:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such {kind}; check data.root and the split file") from None
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: can't be decoded as a {kind} ({reason}); the file is torn or no {kind}") from None
