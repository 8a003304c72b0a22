"""Reads the samples of a micro-batch in a worker: decodes, resizes, augments and collates them.

Workers decode images, resize them (tiekd/data/resize.py) and crop them. Rotation, flip, colours,
normalisation and the conversion to metres run on the device (tiekd/data/batch.py).

Workers hold no random state: the key (epoch, index) and the seed determine the augmentation. A
`UserError` is returned as a value, so that the user sees its one-line message and not a wrapped
traceback.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.data import contract
from tiekd.data import focal as focals
from tiekd.data import resize as resizes
from tiekd.data.augment.augment import Augment, Decisions, colour_table
from tiekd.data.augment.geometry import crop_to_region
from tiekd.data.batch import WorkerBatch
from tiekd.data.loading.collate import check_sizes, collate
from tiekd.data.mixed import MixedFrames, Replacements
from tiekd.data.resize import OWN_SIZE, Placement, Resize
from tiekd.data.sample import Sample, in_grey_levels
from tiekd.distributed import limits
from tiekd.errors import DataError, LaunchError, UserError


class BatchReader:
    """Reads micro-batches by the keys (epoch, index) of their samples.

    Args:
        dataset: The dataset.
        augment: The training augmentation; None for evaluation, without augmentation.
        seed: Seed of the augmentation.
        max_errors: Largest number of consecutive samples that may be skipped; None raises the error
            of a sample that can't be read.
        resize: How images are resized; if they aren't, `augment.sizes: keep_aspect` may resize
            them.
        resized_depth: True to resize depths and intrinsics with the image. If False, only the image
            is resized, unless there is an augmentation.
        needs_focal: True to raise an error for a sample whose focal length isn't known, or whose
            aspect ratio the resizing changes by more than STRETCH (tiekd/data/focal.py). If
            `dataset` is several data sets, the indices of those whose samples are checked so.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: Augment | None,
        seed: int,
        *,
        max_errors: int | None = None,
        resize: Resize = OWN_SIZE,
        resized_depth: bool = False,
        needs_focal: bool | Collection[int] = False,
    ):
        # Let `augment.sizes` determine how images are resized, if data.resize doesn't.
        if augment is not None and resize == OWN_SIZE:
            resize = resizes.of_augment(augment.sizes, augment.crop)
        if augment is not None and augment.crop is None:
            augment = replace(augment, crop=resize.crop)
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.max_errors = max_errors
        self.needs_focal = needs_focal
        self.resize = resize
        # Resize depth with the image in training. Evaluation resizes only the image, and compares
        # depths at the image's own size, unless `resized_depth` is True.
        self.resizes_depth = augment is not None or resized_depth
        self._has_checked = False

    def read(self, keys: list[tuple[int, int]]) -> WorkerBatch | UserError:
        """Reads one micro-batch.

        Args:
            keys: The (epoch, index) of each sample.

        Returns:
            The batch, or the `UserError` that reading it raised.
        """
        skipped: list[str] = []
        try:
            samples = [self._readable_sample(*key, skipped) for key in keys]
            check_sizes(samples)
            zooms_out = self.augment is not None and self.augment.zoom_range[0] < 1
            is_padded = self.resizes_depth and (self.resize.is_padded or zooms_out)
            return collate(samples, is_padded=is_padded, skipped=tuple(skipped))
        except UserError as error:
            # Report that memory or file descriptors ran out, if so, instead of an error of the
            # file, which may be intact.
            told = limits.exhausted_resource_message(error)
            if told is None:
                return error
            return LaunchError(f"{error}: {told}, or set a smaller data.workers")
        except Exception:
            # Check this batch's samples, since a sample that isn't as `Sample` specifies may have
            # caused the error; a worker checks only its first sample beforehand.
            fault = self._out_of_contract(keys)
            if fault is None:
                raise
            return fault

    def describe(self, keys: list[tuple[int, int]]) -> str:
        """Returns the paths of a batch's images, joined by commas, for error messages.

        For a dataset that doesn't list its files, the text has the samples' indices instead.

        Args:
            keys: The (epoch, index) of each sample.
        """
        frames = getattr(self.dataset, "frames", None)
        # Map indices to the dataset: a repetition of a sample in a batch has an index beyond the
        # dataset's length (data/loading/sampler.py).
        indices = [index % len(self.dataset) for _, index in keys]
        return ", ".join(
            f"sample {index}" if frames is None else str(frames[index].image) for index in indices
        )

    def placement(self, epoch: int, index: int, sample: Sample) -> Placement:
        """Returns a `Placement`: the size of a sample's image after resizing and zoom, and padding.

        Without an augmentation there is no zoom.

        Args:
            epoch: Epoch, from 0.
            index: Index of the sample in the dataset. A repetition of the sample within a batch
                has its index plus a multiple of the dataset's length.
            sample: The sample as read.
        """
        placement = self.resize.placement_of(*sample.image.shape[-2:], sample.name)
        if self.augment is None:
            return placement
        zoom = self.augment.draw_zoom(self.seed, epoch, index)
        return resizes.zoomed(placement, zoom, self.augment.crop or placement.canvas)

    def decisions(
        self,
        epoch: int,
        index: int,
        name: str,
        placement: Placement,
        size: tuple[int, int],
    ) -> Decisions:
        """Returns the random parameters of a training sample's augmentation, as `Decisions`.

        Args:
            epoch: Epoch, from 0.
            index: Index of the sample in the dataset. A repetition of the sample within a batch
                has its index plus a multiple of the dataset's length.
            name: The image's name, for error messages.
            placement: The size of the resized and zoomed image, and its padding.
            size: (height, width) of the image as read.

        Raises:
            DataError: The image is smaller than the crop.
        """
        try:
            window = self.resize.placement_of(*size).canvas
            return self.augment.draw(self.seed, epoch, index, *placement.canvas, window=window)
        except DataError as error:
            raise DataError(f"{name}: {error}", error.kind) from None

    def replacements(self, index: int) -> Replacements:
        """Returns a `Replacements`, which gives the indices of samples that may replace a sample.

        Its method `at(step)` returns the sample's own index in the dataset for 0, and then those of
        the next samples of the same data set, by which the sample is replaced if it can't be read.

        Args:
            index: Index of the sample in the dataset. A repetition of the sample within a batch
                has its index plus a multiple of the dataset's length.
        """
        if isinstance(self.dataset, MixedFrames):
            return self.dataset.replacements(index)
        return Replacements(0, len(self.dataset), index)

    def _readable_sample(self, epoch: int, index: int, skipped: list[str]) -> Sample:
        """Returns sample `index`; if it can't be read, the next readable sample of the dataset.

        The next sample is augmented as sample `index` would have been. The result is resized and
        cropped, and is collated to a batch next.

        Args:
            epoch: Epoch, from 0.
            index: Index of the sample in the dataset. A repetition of the sample within a batch
                has its index plus a multiple of the dataset's length.
            skipped: List to which the error messages of skipped samples are appended.

        Raises:
            DataError: The sample can't be read, and `max_errors` is None or that many samples after
                it can't be read either.
        """
        if self.max_errors is None:
            return self._sample(epoch, index, index % len(self.dataset))
        # Try this sample, then the next ones in the dataset's order, until one can be read.
        # Of several data sets, the samples of one set are replaced by samples of the same set.
        replacements = self.replacements(index)
        tries = min(self.max_errors + 1, replacements.count)
        for step in range(tries):
            try:
                return self._sample(epoch, index, replacements.at(step))
            except DataError as error:
                if limits.exhausted_resource_message(error):
                    raise
                # Raise the error if the sample isn't as `Sample` specifies, instead of skipping the
                # sample: the dataset's code is wrong then, not a file.
                if error.kind == contract.KIND:
                    raise
                skipped.append(str(error))
        raise DataError(
            f"data.on_error: {tries} training samples in a row can't be read; the last: "
            f"{skipped[-1]}"
        )

    def _out_of_contract(self, keys: list[tuple[int, int]]) -> DataError | None:
        """Reads the samples of a batch again, to find one that isn't as `Sample` specifies.

        Args:
            keys: The (epoch, index) of each sample.

        Returns:
            The error of the first such sample; None if there is none.
        """
        try:
            for _, index in keys:
                read_index = index % len(self.dataset)
                contract.check_sample(self._stored(read_index), self.dataset, read_index)
        except DataError as error:
            return error if error.kind == contract.KIND else None
        # Return None for an error in the dataset's own code: the caller then raises the original
        # error again, which the user sees with its traceback.
        except Exception:
            return None
        return None

    def _stored(self, read_index: int) -> Sample:
        # Read depths as 16-bit levels by `stored`, which only `Frames` has; other datasets return
        # metres.
        return getattr(self.dataset, "stored", self.dataset.__getitem__)(read_index)

    def _sample(self, epoch: int, index: int, read_index: int) -> Sample:
        # Read the sample. Each worker checks only the first sample that it reads.
        sample = self._stored(read_index)
        if not self._has_checked:
            contract.check_sample(sample, self.dataset, read_index)
            self._has_checked = True
        _check_depth_sizes(sample)
        needs_focal = self.needs_focal
        if not isinstance(needs_focal, bool):
            needs_focal = sample.data_set in needs_focal
        if needs_focal:
            _check_focal(sample, self.resize)
        image = sample.image
        if not self.resizes_depth:
            resized = resizes.network_input(in_grey_levels(sample).image, self.resize, sample.name)
            return sample._replace(image=resized, table=_table(image))
        # Resize the image and its depths (including the zoom), and choose the parameters of the
        # augmentation.
        size = tuple(image.shape[-2:])
        placement = self.placement(epoch, index, sample)
        sample, placement = resizes.resized_sample(sample, self.resize, placement)
        if self.augment is not None and self.augment.zoom_depth == "divide":
            sample = _with_nearer_scene(sample, placement, self.resize, size)
        decisions = _no_change(placement.canvas)
        largest_deg = 0.0
        if self.augment is not None:
            decisions = self.decisions(epoch, index, sample.name, placement, size)
            largest_deg = self.augment.rotate_deg if self.augment.rotate_p > 0 else 0.0
        # Crop to the region that contains the augmented window, which the device resamples from
        # this region later.
        part = crop_to_region(sample, _on_image(decisions, placement), largest_deg)
        return part._replace(table=_table(image, decisions))


def _with_nearer_scene(
    sample: Sample, placement: Placement, resize: Resize, size: tuple[int, int]
) -> Sample:
    """Divides a zoomed sample's depths by the zoom factor, as if the scene were nearer.

    The sample's focal length becomes the one without zoom.

    Args:
        sample: The sample, resized and zoomed.
        placement: The size of its resized and zoomed image, and the padding.
        resize: How images are resized without zoom.
        size: (height, width) of the image as read.
    """
    plain = resize.placement_of(*size).scaled
    zoom_y, zoom_x = (new / old for new, old in zip(placement.scaled, plain, strict=True))
    zoom = (zoom_x + zoom_y) / 2
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 0] /= zoom_x
    intrinsics[1, 1] /= zoom_y
    # Divide the depths by multiplying their units: depth in metres is the stored depth / units.
    units = sample.teacher_units
    units = tuple(each * zoom for each in units) if isinstance(units, tuple) else units * zoom
    return sample._replace(
        intrinsics=intrinsics,
        depth_units=sample.depth_units * zoom,
        teacher_units=units,
    )


def _check_focal(sample: Sample, resize: Resize) -> None:
    """Raises DataError if a sample's focal length isn't known after resizing.

    That is the case if the sample has no intrinsics, or if resizing changes its aspect ratio by
    more than STRETCH (tiekd/data/focal.py).

    Args:
        sample: The sample as read.
        resize: How images are resized.
    """
    if not (sample.intrinsics[0, 0] > 0 and sample.intrinsics[1, 1] > 0):
        raise DataError(focals.no_focal(sample.name))
    try:
        focals.check_aspect(resize, tuple(sample.image.shape[-2:]))
    except DataError as error:
        raise DataError(f"{sample.name}: {error}", error.kind) from None


def _check_depth_sizes(sample: Sample) -> None:
    """Raises DataError if a sample's depth or teacher depth has another size than its image.

    Only a dataset from outside the project may return such a sample.

    Args:
        sample: The sample as read.
    """
    size = sample.image.shape[-2:]
    for kind, depth in (("depth", sample.depth), ("teacher_depth", sample.teacher_depth)):
        if depth is not None and depth.shape[-2:] != size:
            theirs, ours = "x".join(map(str, depth.shape[-2:])), "x".join(map(str, size))
            message = (
                f"{sample.name}: {kind} of {theirs} for an image of {ours}; give both one size"
            )
            raise DataError(message, "size")


def _no_change(canvas: tuple[int, int]) -> Decisions:
    """Returns augmentation parameters (`Decisions`) that leave an image unchanged.

    Args:
        canvas: (height, width) of the image with its padding.
    """
    return Decisions(0.0, False, 0, 0, *canvas, None, 1.0, (1.0, 1.0, 1.0))


def _on_image(decisions: Decisions, placement: Placement) -> Decisions:
    """Converts augmentation parameters of the padded image to those of the image without padding.

    The resulting window may extend beyond the image.

    Args:
        decisions: The parameters, whose window is in pixels of the padded image.
        placement: The size of the image and its position in the padded one.
    """
    # Compute the margin to the left of the image. A flip mirrors the padded image, so the margin on
    # the right becomes the left one.
    left = placement.left
    if decisions.flip:
        left = placement.canvas[1] - placement.scaled[1] - left
    return decisions._replace(top=decisions.top - placement.top, left=decisions.left - left)


def _table(image: Tensor, decisions: Decisions | None = None) -> Tensor:
    """Returns an image's colour table, (3, 256): the normalised value of each grey level.

    Normalisation follows the augmentation's colour change. All entries are NaN if the image has a
    non-finite value, which a dataset from outside may return. uint8 can't represent that value, and
    the NaNs make training skip the optimizer step.

    Args:
        image: (3, H, W), the image as read.
        decisions: The image's augmentation; None leaves the colours unchanged.
    """
    table = colour_table(decisions)
    if image.dtype == torch.uint8 or image.isfinite().all():
        return table
    return torch.full_like(table, torch.nan)
