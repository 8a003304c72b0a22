"""Predicts a few fixed validation frames with the student, for images during training.

The frames are read once and the teacher runs once; the results are kept on the host, 15 bytes per
pixel, some 6 MB per KITTI frame. The code runs on the calling rank only, without collectives, and
costs about as much as evaluating these few frames. Not covered: flip averaging, i.e. averaging with
the prediction of the mirrored image, which the evaluation's metrics may include; the images show a
single forward pass.
"""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tiekd.data import focal as focals
from tiekd.data.batch import Batch
from tiekd.data.loading.loader import validation_batches
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import Target, mean_depth
from tiekd.errors import TeacherError
from tiekd.evaluation.metrics import crop_box
from tiekd.evaluation.range_errors import bounds_m
from tiekd.models.network import Network
from tiekd.visualization.views import View, views


class ShownFrames:
    """Evenly spaced validation frames, of which a network's and a teacher's depth are drawn.

    Args:
        dataset: The validation dataset.
        network: The network with which evaluations run; each evaluation loads the student's weights
            into it.
        teacher: Function from a `Batch` to the teacher's depth, (B, 1, H, W) in metres or a
            `Target`; None if there is no teacher.
        device: The network's device.
        crop: Name of the part of an image that is evaluated, as for `metrics.crop_box`.
        num_frames: Maximum number of frames.
        cap: Exclusive upper bound of valid ground truth, metres; None for the network's max_depth.
        resize: How frames are resized for the network; they are drawn at that size.
    """

    def __init__(
        self,
        dataset: Dataset,
        network: Network,
        teacher: Callable[[Batch], Tensor | Target | None] | None,
        device: torch.device,
        crop: str = "none",
        num_frames: int = 4,
        cap: float | None = None,
        resize: Resize = OWN_SIZE,
    ):
        count = min(num_frames, len(dataset))
        self.chosen = Subset(
            # Split the dataset into `count` equal ranges, and choose the middle frame of each.
            dataset,
            [(2 * i + 1) * len(dataset) // (2 * count) for i in range(count)],
        )
        self.network = network
        self.teacher = teacher
        self.device = device
        self.crop = crop
        self.cap = network.max_depth if cap is None else cap
        self.resize = resize
        self._kept: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []

    def views(self) -> list[View]:
        """Predicts the chosen frames, and returns a list with one View per frame.

        A View has all data of a frame that is drawn: image, truth, teacher's and student's depth.
        If the network has a DPM head, it also has entropies, and some pixels with their
        distributions over depth bins.

        Raises:
            DataError: A frame can't be read.
        """
        if not self._kept:
            # Read the frames on this rank only and without data workers, so that no collective is
            # needed.
            batches = validation_batches(
                self.chosen, 1, self.device, resize=self.resize, resized_depth=True
            )
            self._kept = [self._read(batch) for _, batch in batches]
        found = []
        for image, truth, teacher, focal in self._kept:
            image = image.to(self.device)
            found += views(self.network, image, truth, teacher, num_with_pixels=1, focal=focal)
        return found

    def errors_by_range(self, shown: Sequence[View]) -> dict[str, np.ndarray]:
        """Returns the student's depth minus the measured depth, per depth range.

        The pixels are those that an evaluation includes: those with ground truth, inside the crop
        and within the depth limits. The ranges are those of tiekd/evaluation/range_errors.py, named
        like `0-20m`. A range without such pixels isn't in the result.

        Args:
            shown: The views, as `views` returns them.

        Returns:
            A dict from a range's name to (N,) errors in metres, of the pixels of all views.
        """
        found = {}
        for low, high in bounds_m(self.cap):
            errors = []
            for view in shown:
                # Select the pixels that the evaluation includes and whose truth is in this range.
                box = crop_box(self.crop, *view.truth.shape)
                truth = view.truth[box]
                student = view.student[box]
                inside = (
                    (truth > self.network.min_depth)
                    & (truth >= low)
                    & (truth < high)
                    & np.isfinite(student)
                )
                errors.append(student[inside] - truth[inside])
            if sum(map(len, errors)):
                found[f"{low:.3g}-{high:.3g}m"] = np.concatenate(errors)
        return found

    @torch.no_grad()
    def _read(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        teacher = None
        if self.teacher is not None:
            # Leave out the teacher's depth if a validation frame lacks what the teacher needs, such
            # as a focal length, which training frames have.
            with contextlib.suppress(TeacherError):
                teacher = mean_depth(self.teacher(batch))
        focal = None
        if self.network.canonical is not None:
            focal = focals.of_batch(batch, self.resize)
        on_host = None if teacher is None else teacher.cpu()
        return batch.image.cpu(), batch.depth.cpu(), on_host, focal
