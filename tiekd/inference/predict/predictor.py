"""Runs a student on batches and writes its depth: what images and videos share.

Memory holds a batch at its working size, and at their own size the images of that batch and those
that wait to be written (tiekd/inference/predict/prediction.py counts them). Left out: several
devices, and half precision.
"""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.frames import Camera
from tiekd.data.resize import network_input
from tiekd.errors import DataError
from tiekd.inference.predict.cameras import Cameras
from tiekd.inference.predict.outputs import Outputs
from tiekd.inference.student import Reading, Student

THREADS = 2
WAITING = 2


class LoadedImage(NamedTuple):
    """One image to predict.

    Attributes:
        name: Name of its outputs.
        path: Its file.
        pixels: (3, H, W) uint8 RGB.
        small: The same as the network sees it, (3, h, w) uint8.
        camera: Its camera, if points are written.
    """

    name: str
    path: Path
    pixels: Tensor
    small: Tensor
    camera: Camera | None


class Predictor:
    """A student with its outputs; `network_s` sums the time spent in the network.

    Args:
        student: The student.
        outputs: What is written.
        batch_size: Images of one working size that go through the network together.
        cameras: Cameras for points; None without points.
    """

    def __init__(
        self,
        student: Student,
        outputs: Outputs,
        batch_size: int,
        cameras: Cameras | None = None,
    ):
        self.student = student
        self.outputs = outputs
        self.batch_size = batch_size
        self.cameras = cameras
        self.network_s = 0.0

    def prepare(self, name: str, path: Path, pixels: Tensor) -> LoadedImage:
        """Returns an image with its resized copy and its camera.

        Raises:
            DataError: If points are wanted and the image's camera isn't known.
        """
        height, width = pixels.shape[1:]
        small = network_input(pixels, self.student.resize)
        return LoadedImage(
            name, path, pixels, small, self.cameras and self.cameras.of(path, height, width)
        )

    def depths(self, batch: Sequence[LoadedImage]) -> list[tuple[Tensor, Tensor | None]]:
        """Predicts images of one working size.

        Args:
            batch: The images.

        Returns:
            (depth, confidence) of each, (H, W) float32 on the CPU at the image's own size.
            Confidence is None unless it is wanted.

        Raises:
            DataError: If they don't fit in the device's memory.
        """
        started = time.monotonic()
        wants_confidence = self.outputs.confidence
        try:
            reading = self.student.read(
                torch.stack([image.small for image in batch]), wants_confidence
            )
        except torch.cuda.OutOfMemoryError:
            size = "x".join(map(str, batch[0].small.shape[1:]))
            raise DataError(
                f"{batch[0].path}: {len(batch)} of {size} don't fit in the device's memory; give a "
                "smaller --batch-size or --size"
            ) from None
        # Copying to the CPU waits for the device, so the time includes the computation.
        depth = reading.depth.cpu()
        confidence = reading.confidence.cpu() if wants_confidence else None
        self.network_s += time.monotonic() - started
        found = []
        for index, image in enumerate(batch):
            # Each image of the batch returns to its own size.
            one = slice(index, index + 1)
            reading = Reading(depth[one], confidence[one] if wants_confidence else None)
            own = self.student.at_own_size(reading, tuple(image.pixels.shape[1:]))
            found.append((own.depth[0, 0], own.confidence[0, 0] if wants_confidence else None))
        return found

    def write(
        self, image: LoadedImage, depth: Tensor, confidence: Tensor | None, colour: bool = True
    ) -> None:
        """Writes the files of one image; runs in a thread."""
        rgb = image.pixels.permute(1, 2, 0).numpy()
        sure = None if confidence is None else confidence.numpy()
        self.outputs.write(image.name, rgb, depth.numpy(), sure, image.camera, colour)


class Writes:
    """Writes in progress in threads, of which WAITING may wait; exceptions are raised here."""

    def __init__(self):
        self._waiting: deque = deque()

    def __enter__(self) -> "Writes":
        return self

    def __exit__(self, kind, *_) -> None:
        # After an exception the remaining writes aren't waited for.
        while self._waiting and kind is None:
            self._waiting.popleft().result()

    def add(self, write) -> None:
        """Adds a Future, and waits if too many are in progress."""
        self._waiting.append(write)
        while len(self._waiting) > WAITING:
            self._waiting.popleft().result()
