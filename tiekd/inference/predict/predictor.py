"""Runs a student on batches of images and writes the depth; used for images and for videos.

Memory holds a batch at the size at which the network runs and, at their own size, the images of
that batch and those that wait to be written (counted in tiekd/inference/predict/prediction.py). Not
covered: several devices, and half precision.
"""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data import focal as focals
from tiekd.data.frames import Camera
from tiekd.errors import DataError
from tiekd.inference.predict.cameras import Cameras
from tiekd.inference.predict.outputs import Outputs
from tiekd.inference.student import Reading, Student

THREADS = 2  # number of reading threads, and of writing threads
WAITING = 2  # number of images that may wait to be written


class LoadedImage(NamedTuple):
    """An image that has been read and is ready to be predicted.

    Attributes:
        name: The image's `Input.name`; for a frame of a video, the video's name followed by the
            frame's number.
        path: The file of the image or video.
        pixels: (3, H, W) uint8 RGB, at the image's own size.
        small: (3, h, w) uint8 RGB, the image resized for the network.
        camera: The image's camera; None if neither a point cloud nor the network needs it.
        focal: Focal length in pixels of `small`; None if the network doesn't need it.
    """

    name: str
    path: Path
    pixels: Tensor
    small: Tensor
    camera: Camera | None
    focal: float | None = None


class Predictor:
    """Predicts batches of images with a student, and writes the output files.

    The attribute `network_s` is the total time spent in the network so far, in seconds.

    Args:
        student: The `Student`, which predicts depth.
        outputs: The kinds of files to write.
        batch_size: Maximum number of images per batch.
        cameras: Looks up the camera of each image; None if neither point clouds nor the network
            need them.
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
        self._needs_focal = getattr(student, "needs_focal", False)
        self.network_s = 0.0

    def prepare(self, name: str, path: Path, pixels: Tensor) -> LoadedImage:
        """Prepares an image for the network: resizes it, and looks up its camera if that is needed.

        Args:
            name: Name of the image's output files, as in `LoadedImage`.
            path: The file of the image or video.
            pixels: (3, H, W) uint8 RGB.

        Returns:
            A `LoadedImage` with the image at its own size and resized for the network.

        Raises:
            DataError: The image's camera is needed but isn't known, or resizing changes the aspect
                ratio more than the network allows.
        """
        height, width = pixels.shape[1:]
        small = self.student.working_image(pixels, str(path))
        camera = self.cameras and self.cameras.of(path, height, width)
        focal = None
        if self._needs_focal:
            try:
                focal = focals.of_camera(camera, (height, width), self.student.resize)
            except DataError as error:
                raise DataError(f"{path}: {error}", error.kind) from None
        return LoadedImage(name, path, pixels, small, camera, focal)

    def depths(self, batch: Sequence[LoadedImage]) -> list[Reading]:
        """Predicts the depth of images that have one size after resizing.

        Args:
            batch: The images; their own sizes may differ.

        Returns:
            A `Reading` per image, in order, whose maps are (H, W) float32 on the CPU at the image's
            own size. Confidence and sigma are None unless confidence/ is written.

        Raises:
            DataError: If the batch doesn't fit in the GPU's memory.
        """
        started = time.monotonic()
        wants_confidence = self.outputs.confidence
        given = ([image.focal for image in batch],) if self._needs_focal else ()
        try:
            reading = self.student.predict_resized(
                torch.stack([image.small for image in batch]), wants_confidence, *given
            )
        except torch.cuda.OutOfMemoryError:
            size = "x".join(map(str, batch[0].small.shape[1:]))
            raise DataError(
                f"{batch[0].path}: {len(batch)} of {size} don't fit in the device's memory; give a "
                "smaller --batch-size or --size"
            ) from None
        # Copy to the CPU, which forces a host sync, so that the measured time includes the
        # computation.
        reading = reading.mapped(Tensor.cpu)
        self.network_s += time.monotonic() - started
        found = []
        for index, image in enumerate(batch):
            # Resize each map to its image's own size.
            one = reading.mapped(lambda values, at=index: values[at : at + 1])
            own = self.student.at_own_size(one, tuple(image.pixels.shape[1:]))
            found.append(own.mapped(lambda values: values[0, 0]))
        return found

    def write(self, image: LoadedImage, reading: Reading, colour: bool = True) -> None:
        """Writes the output files of one image, as `Outputs.write` does; called in a thread.

        Args:
            image: The image.
            reading: The image's depth, confidence and sigma as `depths` returns them, each (H, W)
                float32 on the CPU.
            colour: False to leave out colour/, as for a frame of a video.
        """
        rgb = image.pixels.permute(1, 2, 0).numpy()
        self.outputs.write(image.name, rgb, reading, image.camera, colour)


class Writes:
    """Context manager that limits the number of unfinished file writes in threads to WAITING.

    When the `with` block ends, it waits for all writes, unless an exception is being raised.
    Waiting for a write that raised an exception raises this exception again.
    """

    def __init__(self):
        self._waiting: deque = deque()

    def __enter__(self) -> "Writes":
        return self

    def __exit__(self, kind, *_) -> None:
        # Wait for the writes, unless the `with` block raised an exception (of type `kind`).
        while self._waiting and kind is None:
            self._waiting.popleft().result()

    def add(self, write) -> None:
        """Adds a write running in a thread, and waits for old ones until at most WAITING are left.

        Args:
            write: The Future of the write. Waiting for a write that failed raises its exception.
        """
        self._waiting.append(write)
        while len(self._waiting) > WAITING:
            self._waiting.popleft().result()
