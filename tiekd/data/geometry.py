"""Where a sample's pixels go: crop, flip and rotation as at most one resampling, and scaling to cover a crop.

The window is cut first, as a view; a rotation reads the smallest box of the picture that the turned window covers and
nothing else. Pictures stay in 8 bits and depths in the 16 of their files: some 0.05 ms for a straight window of 352x704
on one core, 2.5 ms for a turned one with two depth maps.
"""

from math import cos, floor, radians, sin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tiekd.data.transforms import Decisions, Sample, in_metres

_STRIP = 88  # rows that are turned at once, which a core's cache holds
_FRACTION = 14  # bits, of 32 with a sign: pictures of up to 131,071 pixels a side

def move(sample: Sample, decisions: Decisions) -> Sample:
    """The window that the decisions take out of the sample, with a uint8 image: flipped, turned, cut.

    The image is bilinear and rounded to a grey level, depths take the nearest pixel. What turns in from outside the
    picture is black and has depth 0, that is, not valid. A straight window may share the sample's memory.
    """
    d = decisions
    if d.angle != 0:
        return _turned(sample, d)
    left = sample.image.shape[-1] - d.left - d.width if d.flip else d.left
    window = crop_window(sample, d.top, left, d.height, d.width)
    window = _flipped(window) if d.flip else window
    return window if window.image.dtype == torch.uint8 else window._replace(image=_grey_levels(window.image))


def crop_window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The window of the picture and of everything that belongs to it, as views."""
    rows, cols = slice(top, top + height), slice(left, left + width)
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 2] -= left
    intrinsics[1, 2] -= top
    teacher_depth = sample.teacher_depth if sample.teacher_depth is None else sample.teacher_depth[:, rows, cols]
    return sample._replace(
        image=sample.image[:, rows, cols],
        depth=sample.depth[:, rows, cols],
        inside=sample.inside[:, rows, cols],
        teacher_depth=teacher_depth,
        intrinsics=intrinsics,
    )


def scale_to_cover(sample: Sample, height: int, width: int) -> Sample:
    """The sample scaled by one factor so that it just covers height x width: float32 image, bilinear and antialiased;
    depths (in metres) and `inside` take the nearest pixel, for a mean across an edge would be a depth that nothing has.
    """
    old = sample.image.shape[-2:]
    factor = max(height / old[0], width / old[1])
    new = max(height, round(old[0] * factor)), max(width, round(old[1] * factor))
    if new == old:
        return sample
    sample = in_metres(sample)
    image = F.interpolate(sample.image.float()[None], new, mode="bilinear", align_corners=False, antialias=True)[0]

    def nearest(plane):
        return F.interpolate(plane[None], new, mode="nearest-exact")[0]

    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 0] *= scale_x
    intrinsics[1, 1] *= scale_y
    # Pixel i covers i - 0.5 to i + 0.5, so a coordinate is scaled about the picture's corner at -0.5.
    intrinsics[0, 2] = (intrinsics[0, 2] + 0.5) * scale_x - 0.5
    intrinsics[1, 2] = (intrinsics[1, 2] + 0.5) * scale_y - 0.5
    return sample._replace(
        image=image,
        depth=nearest(sample.depth),
        inside=nearest(sample.inside.float()) > 0,
        teacher_depth=None if sample.teacher_depth is None else nearest(sample.teacher_depth),
        intrinsics=intrinsics,
    )


def _turned(sample: Sample, d: Decisions) -> Sample:
    height, width = sample.image.shape[-2:]
    centre = complex((width - 1) / 2, (height - 1) / 2)
    rotation = complex(cos(radians(d.angle)), sin(radians(d.angle)))
    # Where each pixel of the window comes from, x + iy: window -> unflipped -> rotated back about the centre. It is a
    # sum of what its column and what its row says.
    x, y = d.left + np.arange(d.width), d.top + np.arange(d.height)
    of_column = rotation * ((width - 1 - x if d.flip else x) - centre.real)
    of_row = rotation * 1j * (y - centre.imag) + centre
    image = np.empty((len(sample.image), d.height, d.width), np.uint8)
    for top in range(0, d.height, _STRIP):
        strip = slice(top, top + _STRIP)
        _grey_levels(_bilinear(sample.image, of_column, of_row[strip]), image[:, strip])
    nearest = _Nearest(of_column, of_row, height, width)
    return sample._replace(
        image=torch.from_numpy(image),
        depth=nearest.of(sample.depth),
        inside=nearest.of(sample.inside),
        teacher_depth=None if sample.teacher_depth is None else nearest.of(sample.teacher_depth),
        intrinsics=_moved_intrinsics(sample.intrinsics, d, width, height),
    )


def _bilinear(image: Tensor, of_column: np.ndarray, of_row: np.ndarray) -> Tensor:
    """(3, H, W) float32 of a picture, black around it; reads the smallest box that has all that is asked for."""
    corners = of_column[[0, -1], None] + of_row[None, [0, -1]]
    left, right = _span(corners.real, image.shape[-1])
    top, bottom = _span(corners.imag, image.shape[-2])

    def scaled(places: np.ndarray, shift: float) -> Tensor:  # -1 and 1 are the outer edges of the box's pixels
        x = (2 * places.real + shift) / (right - left) - shift
        y = (2 * places.imag + shift) / (bottom - top) - shift
        return torch.from_numpy((x + 1j * y).astype(np.complex64))

    grid = torch.view_as_real(scaled(of_column, 0.0)[None] + scaled(of_row - complex(left, top), 1.0)[:, None])
    # Straight to planes of float32: grid_sample would copy any other order of the pixels.
    planes = image[:, top:bottom, left:right].to(torch.float32, memory_format=torch.contiguous_format)
    return F.grid_sample(planes[None], grid[None], "bilinear", "zeros", align_corners=False)[0]


def _span(values: np.ndarray, size: int) -> tuple[int, int]:
    """The pixels (first, last + 1) that interpolation between the least and the largest value asks for; at least one,
    where all lie outside."""
    first = min(max(floor(values.min()), 0), size - 1)
    return first, max(min(floor(values.max()) + 2, size), first + 1)


class _Nearest:
    """For each pixel of the window, the nearest one of a picture of height x width; 0 where that lies outside."""

    def __init__(self, of_column: np.ndarray, of_row: np.ndarray, height: int, width: int):
        self.size, self.places = (height, width), {}
        self.rows, self.columns = _floor(of_column.imag, of_row.imag + 0.5), _floor(of_column.real, of_row.real + 0.5)
        self.inside = self.rows.view(np.uint32) < height  # what is below 0 is far above, without a sign
        self.inside &= self.columns.view(np.uint32) < width
        self.ones = self.inside.astype(np.int32)  # numpy multiplies one type several times faster than two

    def of(self, plane: Tensor) -> Tensor:
        """(1, H, W) of a plane (1, height, width)."""
        strides = plane.stride()[1:]
        if strides == (0, 0):  # one number everywhere
            found = self.inside.astype(plane[0, 0, 0].numpy().dtype)
            found *= plane[0, 0, 0].numpy()
        else:
            reach = sum((size - 1) * stride for size, stride in zip(self.size, strides, strict=True)) + 1
            found = plane.as_strided((reach,), (1,)).index_select(0, self._place(strides)).numpy()
            found = found.reshape(self.inside.shape)
            found *= self.inside
        return torch.from_numpy(found)[None]

    def _place(self, strides: tuple[int, int]) -> Tensor:
        """(H * W,) int32: where the pixel is in a plane of such strides; the first one for what lies outside."""
        if strides not in self.places:
            place = self.rows * np.int32(strides[0])
            place += self.columns if strides[1] == 1 else self.columns * np.int32(strides[1])
            place *= self.ones
            self.places[strides] = torch.from_numpy(place.reshape(-1))
        return self.places[strides]


def _floor(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(H, W) int32: the sums of columns and rows, rounded down; off by less than 1e-4 before that."""
    parts = (np.rint(places * 2**_FRACTION).astype(np.int32) for places in (columns, rows[:, None]))
    places = np.add(*parts)
    places >>= _FRACTION
    return places


def _grey_levels(image: Tensor, out: np.ndarray | None = None) -> Tensor:
    """Rounded to uint8, in one pass; torch takes twice as long."""
    levels = np.empty(image.shape, np.uint8) if out is None else out
    np.rint(image.numpy(), out=levels, casting="unsafe")
    return torch.from_numpy(levels)


def _moved_intrinsics(intrinsics: Tensor, d: Decisions, width: int, height: int) -> Tensor:
    """The principal point after rotation, flip and crop (the roll itself is no part of a camera matrix)."""
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    dx, dy = float(intrinsics[0, 2]) - centre_x, float(intrinsics[1, 2]) - centre_y
    cosine, sine = cos(radians(d.angle)), sin(radians(d.angle))
    x, y = centre_x + cosine * dx + sine * dy, centre_y - sine * dx + cosine * dy
    moved = intrinsics.clone()
    moved[0, 2] = (width - 1 - x if d.flip else x) - d.left
    moved[1, 2] = y - d.top
    return moved


def _flipped(sample: Sample) -> Sample:
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 2] = sample.image.shape[-1] - 1 - intrinsics[0, 2]
    return sample._replace(
        image=sample.image.flip(-1),
        depth=sample.depth.flip(-1),
        inside=sample.inside.flip(-1),
        teacher_depth=None if sample.teacher_depth is None else sample.teacher_depth.flip(-1),
        intrinsics=intrinsics,
    )
