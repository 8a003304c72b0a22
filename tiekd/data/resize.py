"""The working resolution: at which size a network sees a picture, and how everything that belongs to it follows.

`data.resize` is the first step for picture, teacher map, validity and intrinsics, at every door: training, evaluation,
prediction, `load_student`, caching and export. It is stored with the weights, so that no door has to be told.

Pictures are resized in integers (a triangle filter as wide as what a pixel covers, weights of 1/2048, 1/16 of a grey
level between the two passes), whose sums float32 holds exactly: every device, library and exported graph gives the
same grey levels. Measured depth is never mixed: a cell takes the valid pixel nearest to its centre. A teacher's map is
averaged over a cell that lies on one surface. Depth goes back up by the readout's own rule (`restored`).

Costs a worker 4 ms for a KITTI picture at half its size, 60 ms for one of 12 megapixels.
Left out: sizes that change from batch to batch.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from tiekd.config.build import settings
from tiekd.config.recipe import is_overridden
from tiekd.config.schema import check_value
from tiekd.data.augment.augment import Sample
from tiekd.data.augment.geometry import in_grey_levels
from tiekd.errors import DataError, RecipeError

MODES = ("stretch", "cover", "contain", "fit")
SLACK = 1.5  # `at_most`: a picture with up to so many times the pixels keeps its size
ONE_SURFACE = 1.1  # the largest ratio of two depths that count as one surface within a cell
LARGEST = 16384  # pixels of a side
# Weights are multiples of 1/2048, grey levels between the passes of 1/16.
_WEIGHTS = 2048
_BETWEEN = 16


class Placement(NamedTuple):
    """How one picture becomes the network's input: resized to `scaled` (height, width), which lies at (top, left) of a
    black `canvas` (height, width). Without padding they are the same and top and left are 0."""

    scaled: tuple[int, int]
    canvas: tuple[int, int]
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class Resize:
    """`data.resize`, one of these forms; without any, pictures keep their size.

    height, width, mode: `stretch` to just that size; `cover`: by one factor to at least it (training crops to it);
    `contain`: by one factor to fit in it, centred on black, which counts nowhere; `fit`: likewise without the black.
    short_side: by one factor, so that the shorter side has so many pixels. scale: by that factor.
    at_most: (height, width); a picture with more than SLACK times as many pixels is shrunk by one factor to about so
    many. It stands for recipes whose frames have one size, for other cameras' pictures; no recipe says it.
    """

    height: int | None = None
    width: int | None = None
    mode: str | None = None
    short_side: int | None = None
    scale: float | None = None
    at_most: tuple[int, int] | None = None

    def __post_init__(self):
        sized = (self.height, self.width, self.mode) != (None, None, None)
        forms = [
            sized,
            self.short_side is not None,
            self.scale is not None,
            self.at_most is not None,
        ]
        if sum(forms) > 1:
            raise RecipeError(
                f"data.resize: got {self.node()}; give one of {{height, width, mode}}, "
                f"{{short_side}} and {{scale}}, and null for the others"
            )
        if sized:
            if None in (self.height, self.width) or self.mode not in MODES:
                raise RecipeError(
                    f"data.resize: got {self.node()}; it must have height and width in pixels and "
                    f"a mode: {', '.join(MODES)}"
                )
            _check_side("height", self.height)
            _check_side("width", self.width)
        if self.short_side is not None:
            _check_side("short_side", self.short_side)
        if self.scale is not None and not 0 < self.scale <= 16:
            raise RecipeError(
                f"data.resize.scale: got {self.scale}; it must be a factor above 0, at most 16"
            )

    def node(self) -> dict:
        """The recipe's node, which `of_node` reads."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        if self.mode is not None:
            return f"{self.height}x{self.width}, {self.mode}"
        if self.short_side is not None:
            return f"shorter side {self.short_side}"
        if self.scale is not None:
            return f"scaled by {self.scale:g}"
        if self.at_most is not None:
            return (
                f"the picture's own size, from {SLACK:g} times {_by(self.at_most)} on shrunk to as "
                "many pixels"
            )
        return "the picture's own size"

    @property
    def is_padded(self) -> bool:
        """True where a picture may lie on a larger canvas."""
        return self.mode == "contain"

    @property
    def crop(self) -> tuple[int, int] | None:
        """(height, width) that training crops to where the recipe has no other crop; None for whole pictures."""
        return (self.height, self.width) if self.mode == "cover" else None

    def place(self, height: int, width: int) -> Placement:
        """Where a picture of height x width goes. Raises DataError where that is no size to work at."""
        placement = self._place(height, width)
        if self != OWN_SIZE and max(placement.canvas) > LARGEST:
            raise DataError(
                f"a picture of {height}x{width} would be {_by(placement.canvas)} at the working "
                f"resolution ({self}), larger than {LARGEST} pixels a side; leave it out, or set "
                "another data.resize",
                "size",
            )
        return placement

    def _place(self, height: int, width: int) -> Placement:
        if self.mode == "stretch":
            return _whole(self.height, self.width)
        if self.mode == "cover":
            factor = max(self.height / height, self.width / width)
            return _whole(
                max(self.height, round(height * factor)), max(self.width, round(width * factor))
            )
        if self.mode in ("contain", "fit"):
            factor = min(self.height / height, self.width / width)
            scaled = (
                min(self.height, _side(height * factor)),
                min(self.width, _side(width * factor)),
            )
            if self.mode == "fit":
                return _whole(*scaled)
            top, left = (self.height - scaled[0]) // 2, (self.width - scaled[1]) // 2
            return Placement(scaled, (self.height, self.width), top, left)
        if self.short_side is not None:
            factor = self.short_side / min(height, width)
        elif self.scale is not None:
            factor = self.scale
        elif self.at_most is not None and height * width > SLACK * math.prod(self.at_most):
            factor = math.sqrt(math.prod(self.at_most) / (height * width))
        else:
            return _whole(height, width)
        return _whole(_side(height * factor), _side(width * factor))


OWN_SIZE = Resize()


def of_augment(sizes: str, crop: tuple[int, int] | None) -> Resize:
    """The working resolution that `data.augment` alone asks for: `keep_aspect` covers the crop. Raises RecipeError."""
    if sizes == "keep_aspect":
        if crop is None:
            raise RecipeError(
                "data.augment.sizes: keep_aspect scales pictures to cover data.augment.crop; give "
                "a crop, or data.resize"
            )
        return Resize(height=crop[0], width=crop[1], mode="cover")
    return OWN_SIZE


def of_node(node: object, where: str = "data.resize") -> Resize:
    """The `Resize` of a recipe's or a weights file's node, null for none. Raises RecipeError."""
    if node is None:
        return OWN_SIZE
    if not isinstance(node, Mapping):
        raise RecipeError(
            f"{where}: got {node!r:.80}; it must be {{height: H, width: W, mode: stretch}} (or "
            "cover, contain), {short_side: S}, {scale: X} or null"
        )
    return settings({where: dict(node)}, where, Resize)


def of_data(data: Mapping) -> Resize:
    """The working resolution of a recipe's `data`: its `resize`; for `augment.sizes: keep_aspect` covering the crop;
    `at_most` its size where its frames have one; else the pictures' own. Raises RecipeError."""
    if data.get("resize") is not None:
        resize = of_node(data["resize"])
        if resize.at_most is not None:
            raise RecipeError(
                "data.resize: there is no at_most; give {height, width, mode}, {short_side} or "
                "{scale}"
            )
        return resize
    augment = data.get("augment") or {}
    check_value(augment, dict, "data.augment")
    if augment.get("crop") is not None:
        check_value(augment["crop"], tuple[int, int], "data.augment.crop")
    resize = of_augment(augment.get("sizes", "crop"), augment.get("crop"))
    size = frame_size(data)
    return resize if resize != OWN_SIZE or size is None else Resize(at_most=size)


def resize_of(
    state: Mapping, recipe: Mapping | None = None, overrides: Sequence[str] = ()
) -> Resize:
    """The working resolution of trained weights: the one choice that every door makes.

    Args:
        state: what a weights file holds; those that tiekd writes say theirs under "resize".
        recipe: the recipe at hand with its overrides applied, None where there is none.
        overrides: `--set` words of the recipe; one for data.resize wins over the weights, and
            `data.resize=null` leaves pictures their own size.

    Returns:
        That of an override, else that of the weights, else the recipe's, else the picture's own size.

    Raises:
        RecipeError: one of them is no working resolution.
    """
    data = {} if recipe is None else recipe.get("data") or {}
    if is_overridden(("data", "resize"), recipe or {}, overrides):
        return OWN_SIZE if data.get("resize") is None else of_data(data)
    if state.get("resize") is not None:
        return of_node(state["resize"], "the weights' resize")
    return of_data(data)


def parse_size(text: str | None) -> Resize | None:
    """The option --size HxW|full of `bin/predict.py`; None for the option left out. Raises RecipeError."""
    if text is None:
        return None
    if text == "full":
        return OWN_SIZE
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= LARGEST for side in size):
        raise RecipeError(
            f"--size: got {text!r:.80}; allowed: HEIGHTxWIDTH in pixels, such as 352x1216, up to "
            f"{LARGEST}, or full"
        )
    return Resize(height=size[0], width=size[1], mode="fit")


def frame_size(data: Mapping) -> tuple[int, int] | None:
    """(height, width) of all frames of a recipe's data, before any resize: kb_crop, the built-in scenes' or NYU's.

    None where frames may differ. Raises RecipeError for what is no size.
    """
    if data.get("kb_crop") is not None:
        return _checked_size(data["kb_crop"], "data.kb_crop")
    if data.get("name") == "scenes" and "height" in data and "width" in data:
        return _checked_size((data["height"], data["width"]), "data.height, data.width")
    return (480, 640) if data.get("name") == "nyu" else None


def resized_picture(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 3, H, W) uint8 -> (..., 3, *size) uint8; shrinking averages over what a pixel covers. The same grey levels
    on every machine, for sums are exact."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    if pixels.dim() > 3:
        return torch.stack([resized_picture(each, size) for each in pixels])
    planes = pixels.permute(1, 2, 0).contiguous().numpy()  # most decoders have them so already
    height, width, channels = planes.shape
    rows = _resampled(planes.reshape(height, width * channels), size[0])
    np.rint(rows * np.float32(_BETWEEN), out=rows)
    rows /= _BETWEEN
    columns = (
        rows.reshape(size[0], width, channels).transpose(1, 0, 2).reshape(width, size[0] * channels)
    )
    columns = (
        np.rint(_resampled(columns, size[1])).astype(np.uint8).reshape(size[1], size[0], channels)
    )
    return torch.from_numpy(np.ascontiguousarray(columns.transpose(1, 0, 2))).permute(2, 0, 1)


def dense_weights(old: int, new: int) -> Tensor:
    """(new, old) float32: what `resized_picture` makes of a side, as one matrix."""
    index, weights = _taps(old, new)
    matrix = torch.zeros(new, old)
    return matrix.scatter_add_(1, torch.from_numpy(index), torch.from_numpy(weights))


def open_weights(old: int, new: int) -> Tensor:
    """`dense_weights` for graphs in which `old` is open: the same numbers by tensors' whole-number arithmetic.

    Args:
        old: pixels of the side before, from 2; a symbol while tracing.
        new: pixels of the side after.

    Returns:
        (new, old) float32.
    """
    pixels = 2 * torch.arange(old) + 1
    length = (pixels[-1:] + 1) // 2
    centres = (2 * torch.arange(new)[:, None] + 1) * length
    reach = 2 * length.clamp(min=new)
    upto = (reach - (pixels * new - centres).abs()).clamp(min=0).cumsum(1)
    total = upto[:, -1:]
    rounded = (2 * _WEIGHTS * upto + total) // (2 * total)
    shares = rounded - pad(rounded, (1, 0))[:, :-1]
    return shares.float() / _WEIGHTS


def resized_by_products(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`resized_picture` of (B, 3, H, W) float32 grey levels as matrix products, which exporters know.

    rows: (h, H), columns: (w, W), of `dense_weights`. The same numbers as long as products run in float32.
    """
    between = (torch.matmul(rows, pixels) * _BETWEEN).round() / _BETWEEN
    return torch.matmul(between, columns.t()).round()


def resized_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, H, W) measured depth of any dtype, 0 where there is none -> (1, *size) of that dtype.

    A cell of the new grid takes the valid one among the pixels whose centres lie in it that is nearest to the cell's
    own centre, the first in row order among equals; 0 without any. Where the new grid is finer, a cell without a
    pixel's centre has the pixel that its centre lies in. So no depth is made up, and no point is lost.
    """
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    plane = depth[0].numpy()
    return torch.from_numpy(_nearest_valid(plane, size))[None]


def resized_teacher_map(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, H, W) of a teacher's depth, uint16 levels or float32, 0 where not valid -> (1, *size) of that dtype.

    The mean over a cell's area where all its depths are valid and within ONE_SURFACE of each other, else as
    `resized_depth`: a mean across an edge would be a depth that nothing has.
    """
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    plane = depth[0].numpy()
    (row_index, row_weights), (column_index, column_weights) = (
        _overlaps(old, new) for old, new in zip(plane.shape, size, strict=True)
    )
    total = np.zeros(size, np.float64)
    least, most = np.full(size, np.inf), np.zeros(size)
    for row, row_weight in zip(row_index.T, row_weights.T, strict=True):
        line = plane[row].astype(np.float64)
        for column, column_weight in zip(column_index.T, column_weights.T, strict=True):
            weight = row_weight[:, None] * column_weight
            values = line[:, column]
            total += values * weight
            counts = weight > 0
            np.minimum(least, values, out=least, where=counts)
            np.maximum(most, values, out=most, where=counts)
    one_surface = (least > 0) & (most <= ONE_SURFACE * least)
    mean = np.where(one_surface, total, 0)
    mean = (
        np.rint(mean).astype(plane.dtype) if plane.dtype.kind in "iu" else mean.astype(plane.dtype)
    )
    return torch.from_numpy(np.where(one_surface, mean, _nearest_valid(plane, size)))[None]


def resized_sample(sample: Sample, resize: Resize) -> tuple[Sample, Placement]:
    """The sample at its working resolution, without padding, and where it lies. Image uint8; depths as they came."""
    height, width = sample.image.shape[-2:]
    placement = resize.place(height, width)
    if placement.scaled == (height, width):
        return sample, placement
    return sample._replace(
        image=resized_picture(in_grey_levels(sample).image, placement.scaled),
        depth=resized_depth(sample.depth, placement.scaled),
        inside=_resized_inside(sample.inside, placement.scaled),
        teacher_depth=None
        if sample.teacher_depth is None
        else resized_teacher_map(sample.teacher_depth, placement.scaled),
        intrinsics=resized_intrinsics(sample.intrinsics, (height, width), placement.scaled),
    ), placement


def resized_intrinsics(intrinsics: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(3, 3) of a picture of (height, width) `old` as those of the picture at `new`.

    Pixel i covers i - 0.5 to i + 0.5, so a coordinate is scaled about the picture's corner at -0.5.
    """
    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    resized = intrinsics.clone()
    resized[0, 0] *= scale_x
    resized[1, 1] *= scale_y
    resized[0, 2] = (resized[0, 2] + 0.5) * scale_x - 0.5
    resized[1, 2] = (resized[1, 2] + 0.5) * scale_y - 0.5
    return resized


def network_input(pixels: Tensor, resize: Resize) -> Tensor:
    """(..., 3, H, W) uint8 pictures -> (..., 3, *canvas) uint8, as the network sees them: resized, on black."""
    placement = resize.place(*pixels.shape[-2:])
    return on_canvas(resized_picture(pixels, placement.scaled), placement)


def on_canvas(values: Tensor, placement: Placement) -> Tensor:
    """(..., *scaled) -> (..., *canvas), 0 around it."""
    (height, width), (below, beside) = placement.scaled, placement.canvas
    if (height, width) == (below, beside):
        return values
    top, left = placement.top, placement.left
    return pad(values, (left, beside - left - width, top, below - top - height))


def restored(values: Tensor, resize: Resize, size: tuple[int, int], smooth: bool) -> Tensor:
    """A network's (B, 1, *canvas) for pictures of (height, width) `size` -> (B, 1, *size), padding cut off.

    smooth: bilinear; False takes the nearest, which adds no depth between the two sides of an edge.
    """
    placement = resize.place(*size)
    if tuple(values.shape[-2:]) != placement.canvas:
        got = tuple(values.shape)
        raise ValueError(
            f"restored: got {got}; of a picture of {size} a network sees {placement.canvas}"
        )
    (height, width), top, left = placement.scaled, placement.top, placement.left
    return resized_map(values[..., top : top + height, left : left + width], size, smooth)


def resized_map(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """(B, 1, h, w) float32 -> (B, 1, *size), bilinear, or the nearest with `smooth` False; pixels' outer edges meet."""
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return stretched_map(values, size, smooth)


def stretched_map(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """`resized_map` that decides nothing by the sizes, so that a graph traced from it holds for any."""
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=False)
    return picked(values, size, nearest_index)


def picked(
    values: Tensor, size: tuple[int, int], index: Callable[[int, int, torch.device], Tensor]
) -> Tensor:
    """(B, 1, h, w) -> (B, 1, *size): of each side's cells those that `index` (coarse, fine, device) names, unmixed."""
    rows, columns = (
        index(coarse, fine, values.device)
        for coarse, fine in zip(values.shape[-2:], size, strict=True)
    )
    return values.index_select(2, rows).index_select(3, columns)


def nearest_index(coarse: int, fine: int, device: torch.device | str = "cpu") -> Tensor:
    """(fine,) int64: in which of `coarse` cells each of `fine` cells' centres lies."""
    return ((2 * torch.arange(fine, device=device) + 1) * coarse) // (2 * fine)


def _resized_inside(inside: Tensor, size: tuple[int, int]) -> Tensor:
    if inside.all():
        return torch.ones(1, 1, 1, dtype=torch.bool).expand(1, *size)
    return resized_depth(inside, size)


def _checked_size(size: object, where: str) -> tuple[int, int]:
    check_value(size, tuple[int, int], where)
    if min(size) < 1:
        raise RecipeError(f"{where}: got {size}; it must be height and width in pixels, from 1")
    return tuple(size)


def _check_side(name: str, value: int) -> None:
    if not 1 <= value <= LARGEST:
        raise RecipeError(
            f"data.resize.{name}: got {value}; it must be pixels, from 1 to {LARGEST}"
        )


def _whole(height: int, width: int) -> Placement:
    return Placement((height, width), (height, width))


def _side(length: float) -> int:
    return max(1, round(length))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """(new, T) int64 and float32: the pixels that each new one is a sum of, and their weights, multiples of 1/2048.

    In units of 1 / (2 new) of a pixel all distances are whole numbers. Weights are rounded such that they add up to 1.
    """
    reach = 2 * max(old, new)
    centres = (2 * np.arange(new, dtype=np.int64) + 1) * old
    first = np.maximum((centres - reach - new) // (2 * new) + 1, 0)
    count = 2 * -(-max(old, new) // new) + 1
    index = first[:, None] + np.arange(count)
    weights = np.maximum(reach - abs((2 * index + 1) * new - centres[:, None]), 0)
    weights[index >= old] = 0
    upto = weights.cumsum(1)
    total = upto[:, -1:]
    rounded = (2 * _WEIGHTS * upto + total) // (2 * total)
    shares = np.diff(rounded, axis=1, prepend=0)
    return np.minimum(index, old - 1), (shares / _WEIGHTS).astype(np.float32)


def _resampled(lines: np.ndarray, new: int) -> np.ndarray:
    """(old, N) -> (new, N) float32: each new line the sum of its old ones."""
    index, weights = _taps(len(lines), new)
    total = np.zeros((new, lines.shape[1]), np.float32)
    term = np.empty((new, lines.shape[1]), np.float32)
    for lines_of, weight in zip(index.T, weights.T, strict=True):
        if weight.any():
            np.multiply(lines[lines_of], weight[:, None], out=term)
            total += term
    return total


def _overlaps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """(new, T) int64 and float64: the pixels that each cell overlaps, and their shares of it."""
    starts = np.arange(new, dtype=np.int64) * old  # in units of 1 / new of a pixel
    index = (starts // new)[:, None] + np.arange(-(-old // new) + 1)
    ends = np.minimum((index + 1) * new, (starts + old)[:, None])
    shares = np.maximum(ends - np.maximum(index * new, starts[:, None]), 0) / old
    shares[index >= old] = 0
    return np.minimum(index, old - 1), shares


def _members(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """(new, T) int64 and float64: the pixels whose centres lie in each cell and their distances from the cell's centre
    in pixels; infinite for those that fill up. A cell without any has the pixel that its own centre lies in."""
    index = ((np.arange(new, dtype=np.int64) * old) // new)[:, None] + np.arange(-(-old // new) + 1)
    is_member = ((2 * index + 1) * new) // (2 * old) == np.arange(new)[:, None]
    is_member &= index < old
    alone = ~is_member.any(1)
    index[alone, 0] = ((2 * np.flatnonzero(alone) + 1) * old) // (2 * new)
    is_member[alone, 0] = True
    centres = (2 * np.arange(new)[:, None] + 1) * old
    distances = abs((2 * index + 1) * new - centres) / (2 * new)
    return np.minimum(index, old - 1), np.where(is_member, distances, np.inf)


def _nearest_valid(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    (rows, row_distances), (columns, column_distances) = (
        _members(old, new) for old, new in zip(plane.shape, size, strict=True)
    )
    found = np.zeros(size, plane.dtype)
    nearest = np.full(size, np.inf)
    for row, row_distance in zip(rows.T, row_distances.T, strict=True):
        line = plane[row]
        for column, column_distance in zip(columns.T, column_distances.T, strict=True):
            values = line[:, column]
            distance = row_distance[:, None] ** 2 + column_distance**2
            nearer = (values > 0) & (distance < nearest)
            np.copyto(found, values, where=nearer)
            np.copyto(nearest, distance, where=nearer)
    return found
