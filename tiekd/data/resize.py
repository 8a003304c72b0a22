"""The working resolution: the size at which a network sees an image, and resizing to and from it.

`data.resize` is the first transform wherever images are read: training, evaluation, prediction,
`load_student`, caching and export. Training resizes depth maps, masks and intrinsics with the
image; evaluation resizes only the image. The setting is stored with the weights, so that it needn't
be repeated for them.

Images are resized by an antialiasing triangle filter in fixed-point arithmetic: weights are
multiples of 1/2048, and grey levels between the two passes are multiples of 1/16. float32
represents all sums exactly, so that every device, library and exported graph gives the same grey
levels. Measured depth is never interpolated: a new pixel takes the valid pixel nearest to its
centre. A teacher's map is averaged over the area of a new pixel if the area is on one surface. The
network's depth is resized to the image's own size by `at_own_size`, bilinearly or nearest, as the
network's readout requires.

Costs 4 ms in a worker for a KITTI image at half its size, 60 ms for one of 12 megapixels. Not
covered: sizes that change from batch to batch.
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

from tiekd.config import data_sets
from tiekd.config.build import settings
from tiekd.config.recipe import is_overridden
from tiekd.config.schema import check_value
from tiekd.data.sample import Sample, in_grey_levels
from tiekd.errors import DataError, RecipeError

MODES = ("stretch", "cover", "contain", "fit")
# An image is shrunk for `at_most` only if it has more than this many times the wanted number of
# pixels.
SLACK = 1.5
# The depths in the area of one new pixel count as those of one surface if the largest is at most
# this many times the smallest.
ONE_SURFACE = 1.1
LARGEST = 16384  # largest number of pixels of a side
# Denominators: filter weights are multiples of 1/2048, and grey levels between the two passes are
# multiples of 1/16.
_WEIGHTS = 2048
_BETWEEN = 16
# Number of new pixels whose weights are one matrix in exported graphs. Fewer pixels would save
# little and make more operators.
BAND_PIXELS = 32


class Placement(NamedTuple):
    """The size and position of one resized image in the network's input.

    Mode `contain` pads the resized image with black; the padded image is called the canvas. Without
    padding `scaled` equals `canvas`, and `top` and `left` are 0.

    Attributes:
        scaled: (height, width) that the image is resized to.
        canvas: (height, width) of the padded image, i.e. of the network's input.
        top: Row of the image's upper left corner on the canvas.
        left: Column of the image's upper left corner on the canvas.
    """

    scaled: tuple[int, int]
    canvas: tuple[int, int]
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class Resize:
    """The setting `data.resize`, which gives a size in one of four ways.

    With all attributes None, images keep their own size.

    Attributes:
        height: Target height in pixels; needs `width` and `mode`.
        width: Target width in pixels.
        mode: "stretch": to exactly the target size. "cover": by one factor to at least the target
            size, to which training then crops. "contain": by one factor to fit into the target
            size, centred and padded with black, which losses and metrics ignore. "fit": like
            "contain", without the padding.
        short_side: Length of the shorter side in pixels; both sides are resized by one factor.
        scale: Factor for both sides, above 0, at most 16.
        at_most: (height, width); an image with more than SLACK times as many pixels is shrunk by
            one factor to about that number of pixels. It isn't an option of recipes: `of_data` sets
            it if all frames of a recipe have one size, for larger images of other cameras.
    """

    height: int | None = None
    width: int | None = None
    mode: str | None = None
    short_side: int | None = None
    scale: float | None = None
    at_most: tuple[int, int] | None = None

    def __post_init__(self):
        # Check that the size is given in at most one way, and that it is valid.
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
        """Returns a dict of the attributes that are set; `of_node` restores this object from it."""
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
                f"the image's own size, from {SLACK:g} times {_size_text(self.at_most)} on shrunk "
                "to as many pixels"
            )
        return "the image's own size"

    @property
    def is_padded(self) -> bool:
        """True if images may be padded to a larger canvas (mode "contain")."""
        return self.mode == "contain"

    @property
    def crop(self) -> tuple[int, int] | None:
        """The (height, width) to which training crops by default; None unless `mode` is "cover"."""
        return (self.height, self.width) if self.mode == "cover" else None

    def placement_of(self, height: int, width: int, name: str = "an image") -> Placement:
        """Returns the `Placement` of an image: its size after resizing, and its padding.

        Args:
            height: Rows of the image.
            width: Columns of the image.
            name: The image's file, for the error message.

        Raises:
            DataError: A side of the resized image would be longer than LARGEST pixels.
        """
        placement = self._placement_of(height, width)
        if self != OWN_SIZE and max(placement.canvas) > LARGEST:
            raise DataError(
                f"{name}: {height}x{width} would be {_size_text(placement.canvas)} at the working "
                f"resolution ({self}), larger than {LARGEST} pixels a side; leave it out, or set "
                "another data.resize",
                "size",
            )
        return placement

    def _placement_of(self, height: int, width: int) -> Placement:
        if self.mode == "stretch":
            return _whole(self.height, self.width)
        if self.mode == "cover":
            factor = max(self.height / height, self.width / width)
            return _whole(
                max(self.height, round(height * factor)), max(self.width, round(width * factor))
            )
        if self.mode in ("contain", "fit"):
            # Scale height and width by one factor so that they fit into the given size, also after
            # rounding.
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
    """Returns the resizing that `data.augment` implies if there is no `data.resize`.

    With `keep_aspect`, images are resized to cover the crop; with other values they keep their
    size.

    Args:
        sizes: `data.augment.sizes`.
        crop: (height, width) of `data.augment.crop`, or None.

    Raises:
        RecipeError: `sizes` is keep_aspect, but there is no crop.
    """
    if sizes == "keep_aspect":
        if crop is None:
            raise RecipeError(
                "data.augment.sizes: keep_aspect scales images to cover data.augment.crop; give "
                "a crop, or data.resize"
            )
        return Resize(height=crop[0], width=crop[1], mode="cover")
    return OWN_SIZE


def of_node(node: object, where: str = "data.resize") -> Resize:
    """Returns the `Resize` that a config node describes.

    Args:
        node: The node of a recipe or a weights file, a mapping such as {"short_side": 384}; None
            means no resizing.
        where: The node's name, for the error message.

    Raises:
        RecipeError: The node isn't a valid resizing.
    """
    if node is None:
        return OWN_SIZE
    if not isinstance(node, Mapping):
        raise RecipeError(
            f"{where}: got {node!r:.80}; it must be {{height: H, width: W, mode: stretch}} (or "
            "cover, contain, fit), {short_side: S}, {scale: X} or null"
        )
    return settings({where: dict(node)}, where, Resize)


def of_data(data: Mapping | list) -> Resize:
    """Returns how images are resized by a recipe's `data` section.

    The first of these that applies determines the size: the option `resize`; with
    `augment.sizes: keep_aspect`, the smallest size that covers the crop; if all frames are known to
    have one size, at most about that size (`at_most`). Otherwise images keep their own size.

    Args:
        data: The recipe's `data` section, or its list of data sets, which share one resizing.

    Raises:
        RecipeError: If an option is invalid.
    """
    if isinstance(data, list):
        data = data_sets.shared_of(data)
    if data.get("resize") is not None:
        resize = of_node(data["resize"])
        if resize.at_most is not None:
            raise RecipeError(
                "data.resize: there is no at_most; give {height, width, mode}, {short_side} or "
                "{scale}"
            )
        if resize == OWN_SIZE:
            raise RecipeError(
                "data.resize: got no size; give {height, width, mode}, {short_side} or {scale}, or "
                "null for no resizing"
            )
        return resize
    # Without data.resize, let the crop (with data.augment.sizes=keep_aspect) or the size that all
    # frames have determine how images are resized.
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
    """Returns how images are resized for trained weights.

    All programs use this function, so that they agree on the precedence of settings.

    Args:
        state: The content of a weights file; tiekd writes the resizing under "resize".
        recipe: The recipe with its overrides applied, None if there is none.
        overrides: `--set` arguments for the recipe. One for `data.resize` takes precedence over the
            weights; `data.resize=null` keeps the images' own size.

    Returns:
        The resizing of the override, else the one stored with the weights, else the recipe's. If
        none of them exists, images keep their own size.

    Raises:
        RecipeError: The resizing isn't valid.
    """
    # Use an override of data.resize first, then the resizing saved with the weights, then the
    # recipe's.
    data = {} if recipe is None else recipe.get("data") or {}
    data = data_sets.shared_of(data) if isinstance(data, list) else data
    if is_overridden(("data", "resize"), recipe or {}, overrides):
        return OWN_SIZE if data.get("resize") is None else of_data(data)
    if state.get("resize") is not None:
        return of_node(state["resize"], "the weights' resize")
    return of_data(data)


def parse_size(text: str | None) -> Resize | None:
    """Returns the resizing that the option `--size` of bin/predict.py sets.

    Args:
        text: The option's value: HEIGHTxWIDTH in pixels, into which images are resized to fit by
            one factor; or "full" for the images' own size. None, for which the result is None, if
            the option isn't given.

    Raises:
        RecipeError: The text is neither a size nor "full".
    """
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
    """Returns (height, width) of all frames of a recipe's data before resizing.

    The size is known for the option `kb_crop`, the built-in scenes and NYU. The result is None if
    frames may differ in size.

    Args:
        data: The recipe's `data` section.

    Raises:
        RecipeError: An option isn't a valid size.
    """
    if data.get("kb_crop") is not None:
        return _checked_size(data["kb_crop"], "data.kb_crop")
    if data.get("name") == "scenes" and "height" in data and "width" in data:
        return _checked_size((data["height"], data["width"]), "data.height, data.width")
    return (480, 640) if data.get("name") == "nyu" else None


def resized_image(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images by an antialiasing triangle filter (bilinear when enlarging).

    The grey levels are the same on every machine, since the sums are exact.

    Args:
        pixels: (..., 3, H, W) uint8.
        size: (height, width) of the result.

    Returns:
        (..., 3, *size) uint8.
    """
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    if pixels.dim() > 3:
        return torch.stack([resized_image(each, size) for each in pixels])
    # Resample rows, round to 1/16 of a grey level, then resample columns.
    planes = pixels.permute(1, 2, 0).contiguous().numpy()  # no copy if pixels are interleaved
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
    """Returns the (new, old) float32 filter matrix by which `resized_image` resizes one side.

    Args:
        old: Pixels of the side before resizing.
        new: Pixels of the side after resizing.
    """
    index, weights = _taps(old, new)
    # Sum up weights for the same old pixel, of which a new pixel at the border has several.
    matrix = torch.zeros(new, old)
    return matrix.scatter_add_(1, torch.from_numpy(index), torch.from_numpy(weights))


def open_weights(old: int, new: int) -> Tensor:
    """Computes `dense_weights` by tensor operations, for graphs in which `old` is symbolic.

    Integer arithmetic makes the weights equal to those of `dense_weights`.

    Args:
        old: Pixels of the side before resizing, at least 2; a symbolic number while a graph is
            traced.
        new: Pixels of the side after resizing.

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


class Band(NamedTuple):
    """Some rows of a filter matrix, without the zeros to the left and right of their weights.

    Attributes:
        start: The first old pixel that the band's new pixels are computed from.
        weights: (n, m) float32, the weights of m old pixels for n new ones.
    """

    start: int
    weights: Tensor


def bands(old: int, new: int) -> list[Band]:
    """Cuts `dense_weights` into bands of BAND_PIXELS new pixels each.

    A new pixel has weights for a few old pixels only, so the products with all bands cost a small
    part of the product with the whole matrix.

    Args:
        old: Pixels of the side before resizing.
        new: Pixels of the side after resizing.
    """
    found = []
    for weights in dense_weights(old, new).split(BAND_PIXELS):
        used = weights.any(0).nonzero()
        start, end = int(used[0]), int(used[-1]) + 1
        found.append(Band(start, weights[:, start:end].contiguous()))
    return found


def resized_by_products(
    pixels: Tensor, rows: Sequence[Band] | Tensor, columns: Sequence[Band] | Tensor
) -> Tensor:
    """Resizes images as `resized_image` does, by matrix products, which exporters support.

    The result is the same as long as the matrix products run in float32.

    Args:
        pixels: (B, 3, H, W) float32 grey levels.
        rows: `bands` of the height, or (h, H) float32, its `dense_weights`.
        columns: `bands` of the width, or (w, W) float32, its `dense_weights`.

    Returns:
        (B, 3, h, w) float32.
    """
    # Round between the two passes as in `resized_image`.
    if isinstance(rows, Tensor):
        between = torch.matmul(rows, pixels)
    else:
        between = torch.cat(
            [torch.matmul(each, pixels.narrow(2, at, each.shape[1])) for at, each in rows], dim=2
        )
    between = (between * _BETWEEN).round() / _BETWEEN
    if isinstance(columns, Tensor):
        return torch.matmul(between, columns.t()).round()
    return torch.cat(
        [torch.matmul(between.narrow(3, at, each.shape[1]), each.t()) for at, each in columns],
        dim=3,
    ).round()


def resized_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes measured depth without interpolation, so that no depth is invented.

    Each new pixel covers an area of the old map. It gets the value of the valid old pixel nearest
    to the area's centre, among those whose centres are inside the area (the first in row order if
    several are equally near), or 0 if there is none. If the new map is finer, an area may contain
    no old pixel's centre; it gets the old pixel that contains the area's centre.

    Args:
        depth: (1, H, W) of any dtype, 0 where invalid.
        size: (height, width) of the result.

    Returns:
        (1, *size) of that dtype.
    """
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    plane = depth[0].numpy()
    return torch.from_numpy(_nearest_valid(plane, size))[None]


def resized_teacher_map(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a teacher's depth, averaging only within one surface.

    Each new pixel covers an area of the old map. It gets the mean over the area if all depths there
    are valid and the ratio of the largest to the smallest is at most ONE_SURFACE. Otherwise it gets
    a value as in `resized_depth`, since a mean across an edge would be the depth of no surface.

    Args:
        depth: (P, H, W) uint16 levels or float32, 0 where invalid; each plane is resized by itself.
        size: (height, width) of the result.

    Returns:
        (P, *size) of that dtype.
    """
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    if len(depth) > 1:
        return torch.cat([resized_teacher_map(plane[None], size) for plane in depth])
    plane = depth[0].numpy()
    (row_index, row_weights), (column_index, column_weights) = (
        _overlaps(old, new) for old, new in zip(plane.shape, size, strict=True)
    )
    # Sum the depths of the old pixels that each new pixel overlaps, weighted by the overlap, and
    # find their minimum and maximum.
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
    # Use the mean if a new pixel's old depths are valid and similar (one surface), and the nearest
    # valid pixel otherwise.
    one_surface = (least > 0) & (most <= ONE_SURFACE * least)
    mean = np.where(one_surface, total, 0)
    mean = (
        np.rint(mean).astype(plane.dtype) if plane.dtype.kind in "iu" else mean.astype(plane.dtype)
    )
    return torch.from_numpy(np.where(one_surface, mean, _nearest_valid(plane, size)))[None]


def zoomed(placement: Placement, zoom: float, window: tuple[int, int]) -> Placement:
    """Returns the placement of an image that is resized by a further factor, its zoom.

    The canvas of the result, i.e. the padded image, has the size of the zoomed image, so that a
    crop may take any part of it. If the zoomed image is smaller than the crop, it is centred on a
    canvas of the crop's size.

    Args:
        placement: The placement without zoom, which is returned unchanged if `zoom` is 1.
        zoom: The factor by which the image is resized further.
        window: (height, width) of the crop. A side that is longer than the same side of
            `placement.canvas` is shortened to it.
    """
    if zoom == 1:
        return placement
    height, width = (_side(side * zoom) for side in placement.scaled)
    least = (min(sides) for sides in zip(window, placement.canvas, strict=True))
    below, beside = map(max, (height, width), least)
    return Placement((height, width), (below, beside), (below - height) // 2, (beside - width) // 2)


def resized_sample(
    sample: Sample, resize: Resize, placement: Placement | None = None
) -> tuple[Sample, Placement]:
    """Resizes a sample's image, depth maps, mask and intrinsics, without padding.

    Args:
        sample: The sample; depths may be stored levels.
        resize: How images are resized.
        placement: The size to resize to, e.g. with a zoom; None for the size that `resize` gives.

    Returns:
        The sample with a uint8 image and depths in their dtype, and the image's placement on the
        canvas, i.e. in the padded image. A sample that already has the size is returned unchanged.
    """
    height, width = sample.image.shape[-2:]
    placement = placement or resize.placement_of(height, width, sample.name)
    if placement.scaled == (height, width):
        return sample, placement
    return sample._replace(
        image=resized_image(in_grey_levels(sample).image, placement.scaled),
        depth=resized_depth(sample.depth, placement.scaled),
        inside=_resized_inside(sample.inside, placement.scaled),
        teacher_depth=None
        if sample.teacher_depth is None
        else resized_teacher_map(sample.teacher_depth, placement.scaled),
        intrinsics=resized_intrinsics(sample.intrinsics, (height, width), placement.scaled),
    ), placement


def resized_intrinsics(intrinsics: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Returns the (3, 3) intrinsics of an image after resizing.

    Pixel i covers i - 0.5 to i + 0.5, so a coordinate is scaled about the image's corner at -0.5.

    Args:
        intrinsics: (3, 3), in pixels before resizing.
        old: (height, width) of the image before resizing.
        new: (height, width) of the image after resizing.
    """
    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    resized = intrinsics.clone()
    resized[0, 0] *= scale_x
    resized[1, 1] *= scale_y
    resized[0, 2] = (resized[0, 2] + 0.5) * scale_x - 0.5
    resized[1, 2] = (resized[1, 2] + 0.5) * scale_y - 0.5
    return resized


def network_input(pixels: Tensor, resize: Resize, name: str = "an image") -> Tensor:
    """Resizes images and pads them with black, as the network sees them.

    Args:
        pixels: (..., 3, H, W) uint8.
        resize: How images are resized.
        name: The image's file, with which error messages begin.

    Returns:
        (..., 3, *canvas) uint8, where canvas is the (height, width) of the padded images.

    Raises:
        DataError: A side of the resized image would be longer than LARGEST pixels.
    """
    placement = resize.placement_of(*pixels.shape[-2:], name)
    return on_canvas(resized_image(pixels, placement.scaled), placement)


def on_canvas(values: Tensor, placement: Placement) -> Tensor:
    """Pads a resized image with zeros to the size of the network's input.

    Args:
        values: (..., *placement.scaled).
        placement: The image's size and its position in the padded image.

    Returns:
        (..., *placement.canvas).
    """
    (height, width), (below, beside) = placement.scaled, placement.canvas
    if (height, width) == (below, beside):
        return values
    top, left = placement.top, placement.left
    return pad(values, (left, beside - left - width, top, below - top - height))


def at_own_size(values: Tensor, resize: Resize, size: tuple[int, int], smooth: bool) -> Tensor:
    """Crops the padding off a network's output and resizes it to the image's own size.

    Args:
        values: (B, 1, *canvas) float32, the network's output, of the padded images' size.
        resize: How the images were resized.
        size: (height, width) of the images before resizing.
        smooth: True interpolates bilinearly. False takes the nearest pixel, which creates no depth
            between the two sides of an edge.

    Returns:
        (B, 1, *size).

    Raises:
        ValueError: `values` has another size than the padded images.
    """
    placement = resize.placement_of(*size)
    if tuple(values.shape[-2:]) != placement.canvas:
        got = tuple(values.shape)
        raise ValueError(
            f"at_own_size: got {got}; of an image of {size} a network sees {placement.canvas}"
        )
    (height, width), top, left = placement.scaled, placement.top, placement.left
    return resized_map(values[..., top : top + height, left : left + width], size, smooth)


def resized_map(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """Resizes maps such as depths, as torch's `interpolate` does with align_corners=False.

    Args:
        values: (B, 1, h, w) float32.
        size: (height, width) of the result.
        smooth: True interpolates bilinearly; False takes the nearest pixel.

    Returns:
        (B, 1, *size) float32.
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return stretched_map(values, size, smooth)


def stretched_map(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """Resizes as `resized_map`, but without a branch on the sizes, for graphs that fit any size.

    Args:
        values: (B, 1, h, w) float32.
        size: (height, width) of the result.
        smooth: True interpolates bilinearly; False takes the nearest pixel.

    Returns:
        (B, 1, *size) float32.
    """
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=False)
    return resized_by_index(values, size, nearest_index)


def resized_by_index(
    values: Tensor, size: tuple[int, int], index: Callable[[int, int, torch.device], Tensor]
) -> Tensor:
    """Resizes by selecting one source pixel for each new pixel, without interpolation.

    Args:
        values: (B, 1, h, w).
        size: (height, width) of the result.
        index: Function of the number of a side's source pixels, the number of its new pixels and
            the device, which returns the index of the source pixel for each new pixel, (new
            pixels,) int64.

    Returns:
        (B, 1, *size).
    """
    rows, columns = (
        index(coarse, fine, values.device)
        for coarse, fine in zip(values.shape[-2:], size, strict=True)
    )
    return values.index_select(2, rows).index_select(3, columns)


def nearest_index(coarse: int, fine: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns for each fine pixel the index of the coarse pixel that contains its centre.

    Args:
        coarse: Number of pixels of a side of the coarse grid.
        fine: Number of pixels of the same side of the fine grid.
        device: Device of the result.

    Returns:
        (fine,) int64.
    """
    return ((2 * torch.arange(fine, device=device) + 1) * coarse) // (2 * fine)


def _resized_inside(inside: Tensor, size: tuple[int, int]) -> Tensor:
    # Return a view of one value, which takes no memory, if all pixels are inside the image, as is
    # usual.
    if inside.all():
        return torch.ones(1, 1, 1, dtype=torch.bool).expand(1, *size)
    return resized_depth(inside, size)


def _checked_size(size: object, where: str) -> tuple[int, int]:
    """Checks a size from a recipe, and returns it as (height, width).

    Args:
        size: The option's value.
        where: The option's name, for the error message.

    Raises:
        RecipeError: The value isn't two whole numbers from 1.
    """
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
    """Returns the placement of an image of height x width pixels without resizing or padding."""
    return Placement((height, width), (height, width))


def _side(length: float) -> int:
    """Rounds the length of a side to a whole number of pixels, at least 1."""
    return max(1, round(length))


def _size_text(size: tuple[int, int]) -> str:
    """Returns "HEIGHTxWIDTH" for messages.

    Args:
        size: (height, width) in pixels.
    """
    return f"{size[0]}x{size[1]}"


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each new pixel the old pixels that the filter sums, and their weights.

    Distances are computed in units of 1 / (2 new) of an old pixel, in which they are integers.
    Weights are rounded to multiples of 1/2048 such that they add up to 1.

    Args:
        old: Pixels of a side before resizing.
        new: Pixels of that side after resizing.

    Returns:
        Indices (new, T) int64 and weights (new, T) float32, for T old pixels per new one.
    """
    # Find the first old pixel of each new pixel's filter, which reaches one old or one new pixel to
    # each side, whichever is larger.
    reach = 2 * max(old, new)
    centres = (2 * np.arange(new, dtype=np.int64) + 1) * old
    first = np.maximum((centres - reach - new) // (2 * new) + 1, 0)
    count = 2 * -(-max(old, new) // new) + 1
    index = first[:, None] + np.arange(count)
    weights = np.maximum(reach - abs((2 * index + 1) * new - centres[:, None]), 0)
    weights[index >= old] = 0
    # Round cumulative sums of the weights, so that the rounded weights add up exactly.
    upto = weights.cumsum(1)
    total = upto[:, -1:]
    rounded = (2 * _WEIGHTS * upto + total) // (2 * total)
    shares = np.diff(rounded, axis=1, prepend=0)
    return np.minimum(index, old - 1), (shares / _WEIGHTS).astype(np.float32)


def _resampled(lines: np.ndarray, new: int) -> np.ndarray:
    """Resizes the first dimension of an array by the triangle filter.

    Args:
        lines: (old, N) uint8 or float32.
        new: Size of the first dimension afterwards.

    Returns:
        (new, N) float32; each row is a weighted sum of old rows.
    """
    index, weights = _taps(len(lines), new)
    total = np.zeros((new, lines.shape[1]), np.float32)
    term = np.empty((new, lines.shape[1]), np.float32)
    for lines_of, weight in zip(index.T, weights.T, strict=True):
        if weight.any():
            np.multiply(lines[lines_of], weight[:, None], out=term)
            total += term
    return total


def _overlaps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each new pixel the old pixels that it overlaps, and their shares of its area.

    Args:
        old: Pixels of a side before resizing.
        new: Pixels of that side after resizing.

    Returns:
        Indices (new, T) int64 and shares (new, T) float64, which add up to 1 for each new pixel;
        T is the largest number of overlapped pixels.
    """
    starts = np.arange(new, dtype=np.int64) * old  # in units of 1 / new of an old pixel
    index = (starts // new)[:, None] + np.arange(-(-old // new) + 1)
    ends = np.minimum((index + 1) * new, (starts + old)[:, None])
    shares = np.maximum(ends - np.maximum(index * new, starts[:, None]), 0) / old
    shares[index >= old] = 0
    return np.minimum(index, old - 1), shares


def _members(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each new pixel the old pixels whose centres it contains along a side.

    A new pixel that contains no such centre gets the old pixel that contains its own centre.

    Args:
        old: Pixels of the side before resizing.
        new: Pixels of the side after resizing.

    Returns:
        Indices (new, T) int64, and distances (new, T) float64 from the new pixel's centre in old
        pixels, infinite for padding entries; T is the largest number of old pixels.
    """
    index = ((np.arange(new, dtype=np.int64) * old) // new)[:, None] + np.arange(-(-old // new) + 1)
    is_member = ((2 * index + 1) * new) // (2 * old) == np.arange(new)[:, None]
    is_member &= index < old
    # Find the new pixels that contain no old pixel's centre, as in a finer grid, and use for them
    # the old pixel that contains the new pixel's centre.
    alone = ~is_member.any(1)
    index[alone, 0] = ((2 * np.flatnonzero(alone) + 1) * old) // (2 * new)
    is_member[alone, 0] = True
    centres = (2 * np.arange(new)[:, None] + 1) * old
    distances = abs((2 * index + 1) * new - centres) / (2 * new)
    return np.minimum(index, old - 1), np.where(is_member, distances, np.inf)


def _nearest_valid(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a depth map: each new pixel gets the nearest valid old pixel, as in `resized_depth`.

    Args:
        plane: (H, W) depths of any dtype, 0 where invalid.
        size: (height, width) of the result.

    Returns:
        (*size) of that dtype.
    """
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
