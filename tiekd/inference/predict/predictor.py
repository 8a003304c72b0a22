"""A student, how pictures go through it, and where its depth goes: what pictures and videos share.

In memory are a batch at its working size, and the pictures of that batch and those that wait to be written at their
own (tiekd/inference/predict/prediction.py counts them).
Left out: several devices, and half precision.
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


class Picture(NamedTuple):
    """name: of its outputs; pixels: (3, H, W) uint8 RGB; small: the same as the network sees it."""

    name: str
    path: Path
    pixels: Tensor
    small: Tensor
    camera: Camera | None


class Predictor:
    """batch_size: pictures of one working size that go through the network at once; cameras: for points.
    `network_s` is the time spent in the network."""

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

    def prepare(self, name: str, path: Path, pixels: Tensor) -> Picture:
        """Raises DataError where points are wanted and the picture's camera isn't known."""
        height, width = pixels.shape[1:]
        small = network_input(pixels, self.student.resize)
        return Picture(
            name, path, pixels, small, self.cameras and self.cameras.of(path, height, width)
        )

    def depths(self, batch: Sequence[Picture]) -> list[tuple[Tensor, Tensor | None]]:
        """Depth and, if it is wanted, confidence of pictures of one working size, (H, W) float32 on the CPU, at each
        picture's own size. Raises DataError where they don't fit in the device's memory."""
        started = time.monotonic()
        wants_confidence = self.outputs.confidence
        try:
            reading = self.student.read(
                torch.stack([picture.small for picture in batch]), wants_confidence
            )
        except torch.cuda.OutOfMemoryError:
            size = "x".join(map(str, batch[0].small.shape[1:]))
            raise DataError(
                f"{batch[0].path}: {len(batch)} of {size} don't fit in the device's memory; give a "
                "smaller --batch-size or --size"
            ) from None
        depth = reading.depth.cpu()
        confidence = reading.confidence.cpu() if wants_confidence else None
        self.network_s += time.monotonic() - started
        found = []
        for index, picture in enumerate(batch):
            one = slice(index, index + 1)
            reading = Reading(depth[one], confidence[one] if wants_confidence else None)
            own = self.student.at_own_size(reading, tuple(picture.pixels.shape[1:]))
            found.append((own.depth[0, 0], own.confidence[0, 0] if wants_confidence else None))
        return found

    def write(
        self, picture: Picture, depth: Tensor, confidence: Tensor | None, colour: bool = True
    ) -> None:
        """The files of one picture; for threads."""
        rgb = picture.pixels.permute(1, 2, 0).numpy()
        sure = None if confidence is None else confidence.numpy()
        self.outputs.write(picture.name, rgb, depth.numpy(), sure, picture.camera, colour)


class Writes:
    """Writes that threads are at, a few of which may wait; what one of them raises is raised here."""

    def __init__(self):
        self._waiting: deque = deque()

    def __enter__(self) -> "Writes":
        return self

    def __exit__(self, kind, *_) -> None:
        while self._waiting and kind is None:
            self._waiting.popleft().result()

    def add(self, write) -> None:
        """write: a Future."""
        self._waiting.append(write)
        while len(self._waiting) > WAITING:
            self._waiting.popleft().result()
