"""Asks a teacher for the maps of some frames, and brings them onto the audit's grid.

Each frame is a batch of its own, whole and not augmented, as caching gives it. A teacher that sees
the image can be asked about changed images, too: `Questions`, each at the cost of another call.
Frames that can't be read are left out; training and bin/check_data.py report them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, Subset

from tiekd.data import resize as resizes
from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.data.batch import Batch
from tiekd.data.loading.loader import validation_batches
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import DataError
from tiekd.evaluation.teacher_audit import grid
from tiekd.evaluation.teacher_audit.grid import AuditFrame

ZOOM = 1.25
_NOISE = 0.1  # standard deviation, of a normalised image; some 6 grey levels
_COVERED = 3  # one part in so many of the image's width is covered
_UNCHANGED = 1e-3  # mean |log ratio| up to which a map counts as unchanged


@dataclass(frozen=True)
class Questions:
    """What else a teacher is asked about each frame; nothing where its maps are stored.

    Attributes:
        swapped: The depth of the image with red and blue exchanged.
        covered: The depth of the partly covered image.
        changed: The depth of the mirrored, the enlarged and the noisy image.
    """

    swapped: bool = False
    covered: bool = False
    changed: bool = False


@dataclass(frozen=True)
class Observer:
    """Asks a teacher for the maps of frames.

    Attributes:
        teacher: Gives a batch its depth, (B, 1, H, W) float32, metres.
        frames: The frames.
        max_depth_m: The student's range in metres.
        device: Of the batches.
        resize: The size at which the teacher sees images.
        questions: What else it is asked.
        focals: Other sources of a frame's focal length, in its own pixels, by the frame's index.
    """

    teacher: Callable[[Batch], Tensor]
    frames: Dataset
    max_depth_m: float
    device: torch.device
    resize: Resize = OWN_SIZE
    questions: Questions = Questions()
    focals: Callable[[int], Mapping[str, float]] | None = None

    def observe(self, count: int) -> list[AuditFrame]:
        """Returns evenly spaced frames with their maps, all on the grid of the first."""
        found, size = [], None
        for index in spaced(len(self.frames), count):
            for batch in self.batches(index):
                own_size = tuple(batch.depth.shape[-2:])
                size = size or grid.grid_of(*own_size)
                found.append(self._frame(index, batch, size))
        return found

    def batches(self, index: int) -> Iterator[Batch]:
        """Yields the batch of one frame; nothing if the frame can't be read."""
        one = Subset(self.frames, [index])
        try:
            for _, batch in validation_batches(one, 1, self.device, resize=self.resize):
                yield batch
        except DataError:
            return

    @torch.no_grad()
    def depth(self, batch: Batch) -> Tensor:
        """Returns the teacher's map of a batch of one, (H, W) at the image's own size, on the CPU.

        No depth is interpolated.
        """
        own_size = tuple(batch.depth.shape[-2:])
        depth = self.teacher(batch).float()
        return resizes.restored(depth, self.resize, own_size, smooth=False)[0, 0].cpu()

    def image(self, batch: Batch) -> Tensor:
        """Returns the image of a batch of one, (3, H, W) normalised at its own size, on the CPU."""
        own_size = tuple(batch.depth.shape[-2:])
        return resizes.restored(batch.image, self.resize, own_size, smooth=True)[0].cpu()

    def _frame(self, index: int, batch: Batch, size: tuple[int, int]) -> AuditFrame:
        own_size = tuple(batch.depth.shape[-2:])
        raw = self.depth(batch)
        valid = torch.isfinite(raw) & (raw > 0)
        known = raw[valid]
        swapped, response, changed = None, None, {}
        if self.questions.swapped:
            swapped = grid.depth_on_grid(self.depth(with_swapped_channels(batch)), size)
        if self.questions.covered:
            response = self._response(batch, raw)
        if self.questions.changed:
            changed = self._changes(batch, raw)
        matrix = batch.intrinsics[0].cpu()
        focal = float(matrix[0, 0] + matrix[1, 1]) / 2
        listed = {"listed": focal} if np.isfinite(focal) else {}
        count = max(1, known.numel())
        return AuditFrame(
            index=index,
            name=batch.names[0],
            image=grid.on_grid(self.image(batch), size),
            depth=grid.depth_on_grid(raw, size, 0.5 if valid.float().mean() > 0.5 else 0.0),
            truth=grid.depth_on_grid(batch.depth[0, 0].cpu(), size),
            intrinsics=grid.intrinsics_on_grid(matrix, own_size, size),
            levels=int(known.unique().numel()),
            pixels=known.numel(),
            beyond=float((known > self.max_depth_m).sum() / count),
            at_top=float((known == known.max()).sum() / count) if known.numel() else 0.0,
            valid=float(valid.float().mean()),
            swapped=swapped,
            response=response,
            focals=listed | self._estimated(batch) | self._other_focals(index),
            **changed,
        )

    def _changes(self, batch: Batch, raw: Tensor) -> dict[str, float | tuple[float, float]]:
        """Returns `flip`, `zoom` and `unrest` of one frame, as in AuditFrame."""
        flipped = self.depth(mirrored(batch)).flip(-1)
        enlarged = self.depth(zoomed(batch))
        expected = _enlarged(raw[None, None], "nearest")[0, 0]
        ratio = _log_ratio(enlarged, expected)
        scale = float(ratio.median()) if ratio.numel() else float("nan")
        flip = _log_ratio(flipped, raw).abs()
        swapped = with_swapped_channels(batch)
        unrest = [self._unrest(batch, raw), self._unrest(swapped, self.depth(swapped))]
        return {
            "unrest": tuple(unrest),
            "flip": float(flip.median()) if flip.numel() else float("nan"),
            "zoom": (scale, float((ratio - scale).abs().median()) if ratio.numel() else scale),
        }

    def _response(self, batch: Batch, raw: Tensor) -> float:
        """Returns `response` of one frame, as in AuditFrame; NaN if its map doesn't change."""
        changed = _log_ratio_map(self.depth(covered(batch)), raw).abs()
        width = raw.shape[-1] // _COVERED
        return response_of(
            float(changed[:, :width].nanmean()), float(changed[:, -width:].nanmean())
        )

    def _unrest(self, batch: Batch, depth: Tensor) -> float:
        return float(_log_ratio_map(self.depth(noisy(batch)), depth).abs().nanmean())

    def _other_focals(self, index: int) -> dict[str, float]:
        return {} if self.focals is None else dict(self.focals(index))

    def _estimated(self, batch: Batch) -> dict[str, float]:
        """Returns the focal length that a teacher estimates itself, if it offers one.

        Such a teacher has a method `estimate_focal`: batch -> (B,) pixels of `batch.image`.
        """
        estimate = getattr(self.teacher, "estimate_focal", None)
        if estimate is None:
            return {}
        scaled = self.resize.place(*batch.depth.shape[-2:]).scaled
        return {"teacher": float(estimate(batch)[0]) * batch.depth.shape[-1] / scaled[1]}


def response_of(there: float, opposite: float) -> float:
    """Returns the log of the change where an image was covered by that at the mirrored place.

    NaN where neither changes, as in maps that are stored.
    """
    if not max(there, opposite) > _UNCHANGED:
        return float("nan")
    return float(np.log((there + _UNCHANGED) / (opposite + _UNCHANGED)))


def spaced(total: int, count: int) -> list[int]:
    """Returns at most `count` evenly spaced indices of `total`."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def with_swapped_channels(batch: Batch) -> Batch:
    """Returns the batch with red and blue of its images exchanged."""
    mean, std = (
        torch.tensor(values, device=batch.image.device).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return batch._replace(image=((batch.image * std + mean)[:, [2, 1, 0]] - mean) / std)


def mirrored(batch: Batch) -> Batch:
    """Returns the batch with its images mirrored, and their intrinsics with them."""
    intrinsics = batch.intrinsics.clone()
    intrinsics[:, 0, 2] = batch.depth.shape[-1] - 1 - intrinsics[:, 0, 2]
    return batch._replace(
        image=batch.image.flip(-1), inside=batch.inside.flip(-1), intrinsics=intrinsics
    )


def zoomed(batch: Batch) -> Batch:
    """Returns the batch with the middle of its images enlarged by ZOOM to their size."""
    intrinsics = batch.intrinsics.clone()
    for row, side in enumerate((batch.depth.shape[-1], batch.depth.shape[-2])):
        middle = (side - 1) / 2
        intrinsics[:, row, row] *= ZOOM
        intrinsics[:, row, 2] = middle + ZOOM * (intrinsics[:, row, 2] - middle)
    return batch._replace(image=_enlarged(batch.image, "bilinear"), intrinsics=intrinsics)


def noisy(batch: Batch) -> Batch:
    """Returns the batch with noise on its images, the same in every call."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.image.shape, generator=draw) * _NOISE
    return batch._replace(image=batch.image + noise.to(batch.image.device))


def covered(batch: Batch) -> Batch:
    """Returns the batch with the left part of its images replaced by their mean colour."""
    image = batch.image.clone()
    width = image.shape[-1] // _COVERED
    image[..., :width] = image.mean((-2, -1), keepdim=True)
    return batch._replace(image=image)


def _enlarged(values: Tensor, mode: str) -> Tensor:
    """Returns (B, C, H, W) with its middle enlarged by ZOOM to the same size."""
    height, width = values.shape[-2:]
    rows, columns = round(height / ZOOM), round(width / ZOOM)
    top, left = (height - rows) // 2, (width - columns) // 2
    part = values[..., top : top + rows, left : left + columns]
    smooth = {"align_corners": False} if mode == "bilinear" else {}
    return interpolate(part, size=(height, width), mode=mode, **smooth)


def _log_ratio_map(first: Tensor, second: Tensor) -> Tensor:
    both = torch.isfinite(first) & torch.isfinite(second) & (first > 0) & (second > 0)
    ratio = torch.where(both, first, 1.0).log() - torch.where(both, second, 1.0).log()
    return torch.where(both, ratio, torch.nan)


def _log_ratio(first: Tensor, second: Tensor) -> Tensor:
    ratio = _log_ratio_map(first, second)
    return ratio[torch.isfinite(ratio)]
