"""A few fixed validation frames, as the student of an evaluation sees them.

Frames are read and the teacher runs once; both are then kept on the host: 15 bytes a pixel, some 6
MB per KITTI frame. It runs on the calling rank, without collectives: to an evaluation of hundreds
of frames it adds the time of a few more. Left out: flip averaging, which the evaluation's figures
may include; the images show what one forward gives.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tiekd.data.batch import Batch
from tiekd.data.loading.loader import validation_batches
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.evaluation.metrics import crop_box
from tiekd.evaluation.range_errors import bounds_m
from tiekd.models.network import Network
from tiekd.visualization.views import View, views


class ShownFrames:
    """Evenly spaced frames of a dataset, with the network and teacher to show.

    Args:
        dataset: The validation set.
        network: The evaluation's network, which the evaluation fills.
        teacher: Returns the teacher's depth of a batch, as in the loop; None without a teacher.
        device: The network's device.
        crop: The evaluation's crop.
        num_frames: The largest number of frames.
        cap: The evaluation's cap in metres; None for the network's max_depth.
        resize: The working resolution, at which the frames are shown.
    """

    def __init__(
        self,
        dataset: Dataset,
        network: Network,
        teacher: Callable[[Batch], Tensor | None] | None,
        device: torch.device,
        crop: str = "none",
        num_frames: int = 4,
        cap: float | None = None,
        resize: Resize = OWN_SIZE,
    ):
        count = min(num_frames, len(dataset))
        self.chosen = Subset(
            # The middles of equal parts of the dataset.
            dataset,
            [(2 * i + 1) * len(dataset) // (2 * count) for i in range(count)],
        )
        self.network = network
        self.teacher = teacher
        self.device = device
        self.crop = crop
        self.cap = network.max_depth if cap is None else cap
        self.resize = resize
        self._kept: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def views(self) -> list[View]:
        """Returns one view of each frame, each with explained pixels. Raises DataError."""
        if not self._kept:
            # On this rank alone and without workers, so no collective is needed.
            batches = validation_batches(
                self.chosen, 1, self.device, resize=self.resize, resized_depth=True
            )
            self._kept = [self._read(batch) for _, batch in batches]
        found = []
        for image, truth, teacher in self._kept:
            found += views(self.network, image.to(self.device), truth, teacher, explained=1)
        return found

    def errors_by_range(self, shown: Sequence[View]) -> dict[str, np.ndarray]:
        """Returns student - truth by range of the truth, at all pixels that an evaluation counts.

        The ranges are the evaluation's (tiekd/evaluation/range_errors.py), named like `0-20m`. A
        range in which nothing was measured is left out.

        Args:
            shown: The views.

        Returns:
            (N,) metres by range.
        """
        found = {}
        for low, high in bounds_m(self.cap):
            errors = []
            for view in shown:
                # The pixels that the evaluation counts, in this range of the truth.
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
    def _read(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        teacher = None if self.teacher is None else self.teacher(batch)
        return batch.image.cpu(), batch.depth.cpu(), None if teacher is None else teacher.cpu()
