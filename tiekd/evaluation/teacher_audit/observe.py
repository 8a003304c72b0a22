"""Calls a teacher for some frames, and resizes its depth maps to the audit's coarse grid (grid.py).

Each frame is a batch of its own, neither cropped nor augmented, as when a teacher's maps are
cached. A teacher that is a network can also be called for changed images (`ChangedImages`), each
of which costs further calls. Frames that can't be read are left out; training and bin/check_data.py
report them.
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
from tiekd.data.frame_table import spaced
from tiekd.data.loading.loader import validation_batches
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import Target, mean_depth
from tiekd.errors import DataError
from tiekd.evaluation.teacher_audit import grid
from tiekd.evaluation.teacher_audit.grid import AuditFrame

ZOOM = 1.25
_NOISE = 0.1  # standard deviation of the noise added to a normalised image, some 6 grey levels
_COVERED = 3  # the covered part of an image is 1 / _COVERED of its width
_UNCHANGED = 1e-3  # mean |log ratio| of two maps up to which they count as equal


@dataclass(frozen=True)
class ChangedImages:
    """States for which changed images a teacher is called, in addition to the image itself.

    A teacher whose maps are stored can't be called for changed images, so all attributes are False
    for it.

    Attributes:
        swapped: True for the image with red and blue exchanged.
        covered: True for the image whose left third is covered.
        changed: True for the mirrored, the enlarged and the noisy image.
    """

    swapped: bool = False
    covered: bool = False
    changed: bool = False


@dataclass(frozen=True)
class Observer:
    """Calls a teacher for frames of a dataset, and measures its depth maps for the audit.

    Attributes:
        teacher: Function from a batch to the teacher's depth, (B, 1, H, W) float32, metres, or to a
            `Target`.
        frames: The dataset of the frames.
        max_depth_m: The student's largest depth in metres.
        device: Device to which batches are moved.
        resize: How images are resized for the teacher.
        changed_images: The changed images for which the teacher is called, in addition to the
            image itself.
        focals: Function from a frame's index to a dict of source -> focal length in pixels of the
            frame at its own size; None if only the dataset's intrinsics are known.
    """

    teacher: Callable[[Batch], Tensor | Target]
    frames: Dataset
    max_depth_m: float
    device: torch.device
    resize: Resize = OWN_SIZE
    changed_images: ChangedImages = ChangedImages()
    focals: Callable[[int], Mapping[str, float]] | None = None

    def observe(self, count: int) -> list[AuditFrame]:
        """Calls the teacher for evenly spaced frames of the dataset, and measures its depth maps.

        Args:
            count: Maximum number of frames.

        Returns:
            One entry for each frame that could be read. Its maps have the size of the grid that
            `grid.grid_of` gives for the first frame.
        """
        found, size = [], None
        for index in spaced(len(self.frames), count).tolist():
            for batch in self.batches(index):
                own_size = tuple(batch.depth.shape[-2:])
                size = size or grid.grid_of(*own_size)
                found.append(self._frame(index, batch, size))
        return found

    def batches(self, index: int) -> Iterator[Batch]:
        """Yields one batch with a single frame, or nothing if the frame can't be read.

        Args:
            index: The frame's index in the dataset.
        """
        one = Subset(self.frames, [index])
        try:
            for _, batch in validation_batches(one, 1, self.device, resize=self.resize):
                yield batch
        except DataError:
            return

    @torch.no_grad()
    def depth(self, batch: Batch) -> Tensor:
        """Returns the teacher's depth of a single frame at the image's own size.

        A network's depth is resized to that size by taking the nearest value, without
        interpolation.

        Args:
            batch: A batch of one frame.

        Returns:
            (H, W) float32 on the CPU, metres.
        """
        own_size = tuple(batch.depth.shape[-2:])
        depth = mean_depth(self.teacher(batch)).float()
        # Cached maps come at the image's own size, a network's depth at that of its input.
        if tuple(depth.shape[-2:]) == own_size:
            return depth[0, 0].cpu()
        return resizes.at_own_size(depth, self.resize, own_size, smooth=False)[0, 0].cpu()

    def image(self, batch: Batch) -> Tensor:
        """Returns the image of a single frame, resized back to its own size.

        Args:
            batch: A batch of one frame.

        Returns:
            (3, H, W) on the CPU, normalised.
        """
        own_size = tuple(batch.depth.shape[-2:])
        return resizes.at_own_size(batch.image, self.resize, own_size, smooth=True)[0].cpu()

    def _frame(self, index: int, batch: Batch, size: tuple[int, int]) -> AuditFrame:
        # Call the teacher for the image, and for those changed images that `changed_images` names.
        own_size = tuple(batch.depth.shape[-2:])
        raw = self.depth(batch)
        valid = torch.isfinite(raw) & (raw > 0)
        known = raw[valid]
        swapped, response, changed = None, None, {}
        if self.changed_images.swapped:
            swapped = grid.depth_on_grid(self.depth(with_swapped_channels(batch)), size)
        if self.changed_images.covered:
            response = self._response(batch, raw)
        if self.changed_images.changed:
            changed = self._changes(batch, raw)
        # Compute the focal length that the dataset lists. Its intrinsics are NaN if it lists none.
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
            # Focal lengths from other sources are only compared with that of the dataset, so leave
            # them out if the dataset lists none.
            focals=listed and listed | self._estimated(batch) | self._other_focals(index),
            **changed,
        )

    def _changes(self, batch: Batch, raw: Tensor) -> dict[str, float | tuple[float, float]]:
        """Calls the teacher for the mirrored, the enlarged and the noisy image of a frame.

        Args:
            batch: A batch of one frame.
            raw: (H, W), the teacher's depth of this frame, metres.

        Returns:
            The attributes `flip`, `zoom` and `noise_change` of the frame's `AuditFrame`, by name.
        """
        # Mirror the depth of the mirrored image back, and enlarge the depth of the image as it is.
        flipped = self.depth(mirrored(batch)).flip(-1)
        enlarged = self.depth(zoomed(batch))
        expected = _enlarged(raw[None, None], "nearest")[0, 0]
        ratio = _log_ratio(enlarged, expected)
        scale = float(ratio.median()) if ratio.numel() else float("nan")
        flip = _log_ratio(flipped, raw).abs()
        swapped = with_swapped_channels(batch)
        noise_change = [
            self._noise_change(batch, raw),
            self._noise_change(swapped, self.depth(swapped)),
        ]
        return {
            "noise_change": tuple(noise_change),
            "flip": float(flip.median()) if flip.numel() else float("nan"),
            "zoom": (scale, float((ratio - scale).abs().median()) if ratio.numel() else scale),
        }

    def _response(self, batch: Batch, raw: Tensor) -> float:
        """Compares the teacher's depth for an image whose left third is covered with that without.

        Args:
            batch: A batch of one frame.
            raw: (H, W), the teacher's depth of the frame without the cover, metres.

        Returns:
            The attribute `response` of the frame's `AuditFrame`; NaN if the depth hardly changes.
        """
        changed = _log_ratio_map(self.depth(covered(batch)), raw).abs()
        width = raw.shape[-1] // _COVERED
        return cover_response(
            float(changed[:, :width].nanmean()), float(changed[:, -width:].nanmean())
        )

    def _noise_change(self, batch: Batch, depth: Tensor) -> float:
        return float(_log_ratio_map(self.depth(noisy(batch)), depth).abs().nanmean())

    def _other_focals(self, index: int) -> dict[str, float]:
        return {} if self.focals is None else dict(self.focals(index))

    def _estimated(self, batch: Batch) -> dict[str, float]:
        """Returns the focal length of a frame that the teacher itself estimates, as a dict.

        A teacher that estimates focal lengths has a method `estimate_focal`, which maps a batch to
        (B,) focal lengths in pixels of `batch.image`, or to None if its network makes no estimate.

        Args:
            batch: A batch of one frame.

        Returns:
            {"teacher": focal length in pixels of the image at its own size}, or {} if the teacher
            makes no estimate.
        """
        estimate = getattr(self.teacher, "estimate_focal", None)
        focal = None if estimate is None else estimate(batch)
        if focal is None:
            return {}
        scaled = self.resize.placement_of(*batch.depth.shape[-2:]).scaled
        return {"teacher": float(focal[0]) * batch.depth.shape[-1] / scaled[1]}


def cover_response(covered_change: float, opposite_change: float) -> float:
    """Compares how much covering a part of an image changes depth there and in the opposite part.

    Args:
        covered_change: Mean |log(depth with the cover / depth without it)| in the covered part.
        opposite_change: The same mean in the part at the opposite side of the image, of equal size.

    Returns:
        log(covered_change / opposite_change): above 0 if depth changes where the image does, below
        0 if the maps are mirrored. NaN if depth changes in neither part, as in stored maps.
    """
    if not max(covered_change, opposite_change) > _UNCHANGED:
        return float("nan")
    return float(np.log((covered_change + _UNCHANGED) / (opposite_change + _UNCHANGED)))


def with_swapped_channels(batch: Batch) -> Batch:
    """Returns a copy of `batch` with red and blue of its images exchanged."""
    mean, std = (
        torch.tensor(values, device=batch.image.device).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return batch._replace(image=((batch.image * std + mean)[:, [2, 1, 0]] - mean) / std)


def mirrored(batch: Batch) -> Batch:
    """Returns a copy of `batch` with images and intrinsics mirrored left to right."""
    intrinsics = batch.intrinsics.clone()
    intrinsics[:, 0, 2] = batch.depth.shape[-1] - 1 - intrinsics[:, 0, 2]
    return batch._replace(
        image=batch.image.flip(-1), inside=batch.inside.flip(-1), intrinsics=intrinsics
    )


def zoomed(batch: Batch) -> Batch:
    """Returns a copy of `batch` with images enlarged by the factor ZOOM, and intrinsics to match.

    Only the enlarged images' middle part is kept, so their size in pixels stays the same.
    """
    intrinsics = batch.intrinsics.clone()
    for row, side in enumerate((batch.depth.shape[-1], batch.depth.shape[-2])):
        middle = (side - 1) / 2
        intrinsics[:, row, row] *= ZOOM
        intrinsics[:, row, 2] = middle + ZOOM * (intrinsics[:, row, 2] - middle)
    return batch._replace(image=_enlarged(batch.image, "bilinear"), intrinsics=intrinsics)


def noisy(batch: Batch) -> Batch:
    """Returns a copy of `batch` with Gaussian noise added to its images.

    The noise has a fixed seed, so it is the same in every call with images of the same size.
    """
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.image.shape, generator=draw) * _NOISE
    return batch._replace(image=batch.image + noise.to(batch.image.device))


def covered(batch: Batch) -> Batch:
    """Returns a copy of `batch` with the left third of each image replaced by its mean colour."""
    image = batch.image.clone()
    width = image.shape[-1] // _COVERED
    image[..., :width] = image.mean((-2, -1), keepdim=True)
    return batch._replace(image=image)


def _enlarged(values: Tensor, mode: str) -> Tensor:
    """Enlarges images or maps by the factor ZOOM, and crops them to their original size.

    Args:
        values: (B, C, H, W).
        mode: Interpolation, "bilinear" or "nearest".

    Returns:
        (B, C, H, W).
    """
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
