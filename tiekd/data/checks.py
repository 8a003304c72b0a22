"""Checks a dataset: every file of every frame is read once, in worker processes.

Faults, which would stop training or evaluation, or make depths wrong:

    missing      an image, depth map or teacher map doesn't exist
    unreadable   such a file is truncated, isn't an image, or can't be opened
    bit depth    a depth map of 8 bits, or an image of 16 bits
    size         image, depth map and teacher map don't match in size, or are smaller than a crop
    unit         depths that can't be metres: half of a frame nearer than 0.1 m, where no camera
                 focuses and no sensor measures, or half of it farther than three times the
                 network's max_depth
    empty ground truth without a valid pixel inside the crop that is used

Warnings, about frames that can be used:

    duplicate    the same image (all bytes) as an earlier frame of its split
    shared       a training frame with the same image as a validation frame
    neighbour    a training frame a few frames from a validation frame in the same folder, so
                 that their images are nearly the same

A wrong unit within these bounds can't be detected from one frame (KITTI's levels read as
millimetres give a quarter of the distance). `Facts` therefore holds each frame's median, its depth
map's levels (tiekd/data/depth_values.py) and whether EXIF turns its image, for the user to inspect.
Costs one read of all files, two of the depth maps: some 30 ms per KITTI frame on one core. Not
covered: corruption that still decodes (a JPEG with wrong bytes in the middle), and images that look
alike but differ in a byte.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from tiekd.data import image_io
from tiekd.data.augment.augment import Augment
from tiekd.data.depth_values import FARTHEST, NEAREST_M, Levels, levels_of, unit_phrase
from tiekd.data.frames import Frames
from tiekd.data.loading.reader import BatchReader
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.sample import Sample, in_metres
from tiekd.data.stored import ShardMember, source_of
from tiekd.errors import DataError

FAULTS = ("missing", "unreadable", "bit depth", "size", "unit", "empty")
WARNINGS = ("duplicate", "shared", "neighbour")


class Facts(NamedTuple):
    """The result of checking one frame.

    Attributes:
        faults: (kind, message) pairs; the kind is one of FAULTS.
        digest: Hash of the image file's bytes; None if the image can't be decoded.
        median_m: Median of the measured depth in metres; None without measured depth.
        turned: True if the image isn't stored upright and was turned by its EXIF orientation.
        levels: Statistics of the values in the depth file; None without a readable depth map.
    """

    faults: list[tuple[str, str]]
    digest: bytes | None
    median_m: float | None
    turned: bool = False
    levels: Levels | None = None


class Finding(NamedTuple):
    """One fault of a frame, or one warning about it.

    Attributes:
        kind: One of FAULTS or WARNINGS.
        index: Index of the frame in its split.
        message: The fault or warning, for the user.
    """

    kind: str
    index: int
    message: str


class Examined:
    """Checks frames of a split by index, so that worker processes can share the work.

    Args:
        frames: The split's frames.
        augment: Augmentation of training frames, whose crop must not be larger than the images;
            None for validation frames.
        resize: How images are resized before they are cropped.
    """

    def __init__(self, frames: Frames, augment: Augment | None, resize: Resize = OWN_SIZE):
        self.frames = frames
        self.augment = augment
        self.resize = resize

    def facts(self, indices: list[int]) -> list[Facts]:
        """Checks some frames, and returns a list with the result (`Facts`) of each, in order.

        Args:
            indices: The frames' indices in the split.
        """
        return [self._facts(index) for index in indices]

    def _facts(self, index: int) -> Facts:
        # Read each file of the frame separately, so that every corrupt file is reported.
        frame = self.frames.frames[index]
        faults = []
        read = {}
        for name, read_file in self.frames.readers(index).items():
            try:
                read[name] = read_file()
            except DataError as error:
                faults.append((error.kind, str(error)))
        # Stop if the image can't be read, since nothing else can be checked then.
        if "image" not in read:
            return Facts(faults, None, None)
        digest = hashlib.blake2b(source_of(frame.image).read_bytes(), digest_size=16).digest()
        turned = self.frames.is_turned(index)
        levels = levels_of(source_of(frame.depth)) if "depth" in read else None
        median_m = None
        try:
            # Check that the sizes of the frame's files fit together, which `assemble` does. Then
            # check the depth values and the crop.
            sample = in_metres(self.frames.assemble(index, **read))
            if "depth" in read:
                fault, median_m = self._depth_fault(sample, frame.depth)
                faults += fault
            self._check_size(sample)
        except DataError as error:
            faults.append((error.kind, str(error)))
        return Facts(faults, digest, median_m, turned, levels)

    def _check_size(self, sample: Sample) -> None:
        """Raises DataError if a sample is too large after resizing, or smaller than the crop.

        Args:
            sample: The sample as read, at its own size.
        """
        reader = BatchReader(self.frames, self.augment, 0, resize=self.resize)
        placement = reader.resize.placement_of(*sample.image.shape[-2:], sample.name)
        if self.augment is not None:
            size = tuple(sample.image.shape[-2:])
            reader.decisions(0, 0, sample.name, placement, size)

    def _depth_fault(
        self, sample: Sample, path: str | ShardMember
    ) -> tuple[list[tuple[str, str]], float | None]:
        """Checks the measured depths of a sample: some must be valid, and their median plausible.

        Args:
            sample: The sample, with depth in metres.
            path: The depth file, for messages.

        Returns:
            The (kind, message) of each fault, with the kinds "empty" and "unit"; and the median
            depth in metres, None if no depth is valid.
        """
        measured = sample.depth[sample.depth > 0]
        if len(measured) == 0:
            return [
                ("empty", f"{path}: no measured depth in the part of the frame that is used")
            ], None
        median_m = measured.median().item()
        max_depth = self.frames.max_depth
        # Accept a median depth in the plausible range; another one suggests a wrong unit.
        if NEAREST_M <= median_m <= FARTHEST * max_depth:
            return [], median_m
        message = (
            f"{path}: half of it is {'nearer' if median_m < NEAREST_M else 'farther'} than "
            f"{median_m:.4g} m"
        )
        unit = unit_phrase(self.frames, image_io.kind_of_depth(source_of(path)))
        return [
            ("unit", f"{message}, with max_depth {max_depth:g}; is the unit right? {unit}")
        ], median_m


def duplicates(frames: Frames, facts: Sequence[Facts]) -> list[Finding]:
    """Returns a warning (`Finding`) for each frame with the same image as an earlier frame.

    Images are the same if all bytes of their files are.

    Args:
        frames: The split's frames.
        facts: The result of checking each frame, in order.
    """
    first: dict[bytes, int] = {}
    found = []
    for index, fact in enumerate(facts):
        if fact.digest is not None and first.setdefault(fact.digest, index) != index:
            other = frames.frames[first[fact.digest]].name
            found.append(
                Finding(
                    "duplicate", index, f"{frames.frames[index].name}: the same image as {other}"
                )
            )
    return found


def shared(
    train: Frames, train_facts: Sequence[Facts], val: Frames, val_facts: Sequence[Facts]
) -> list[Finding]:
    """Returns a warning (`Finding`) for each training frame with a validation frame's image.

    Images are the same if all bytes of their files are.

    Args:
        train: Training frames.
        train_facts: The result of checking each training frame, in order.
        val: Validation frames.
        val_facts: The result of checking each validation frame, in order.
    """
    # Compare images by the hashes of their files.
    names: dict[bytes, str] = {}
    for frame, fact in zip(val.frames, val_facts, strict=True):
        names.setdefault(fact.digest, frame.name)
    return [
        Finding(
            "shared",
            index,
            f"{frame.name}: the same image as validation frame {names[fact.digest]}",
        )
        for index, (frame, fact) in enumerate(zip(train.frames, train_facts, strict=True))
        if fact.digest is not None and fact.digest in names
    ]


def neighbours(train: Frames, val: Frames, distance: int) -> list[Finding]:
    """Returns a warning (`Finding`) for each training frame close to a validation frame.

    Only frames of the same folder are compared, by the frame numbers in their names.

    Args:
        train: Training frames.
        val: Validation frames.
        distance: Largest difference of frame numbers that counts. The number is the last one in the
            file's name; names without one have no neighbours.
    """
    # Index the validation frames by (folder, frame number), so that the search takes linear time.
    validation = {
        place: frame.name for frame in val.frames if (place := _place(frame.name)) is not None
    }
    found = []
    for index, frame in enumerate(train.frames):
        place = _place(frame.name)
        if place is None:
            continue
        for step in (signed for size in range(1, distance + 1) for signed in (-size, size)):
            other = validation.get((place[0], place[1] + step))
            if other is not None:
                found.append(
                    Finding(
                        "neighbour",
                        index,
                        f"{frame.name}: {abs(step)} from validation frame {other}",
                    )
                )
                break
    return found


def median_span(facts: Sequence[Facts]) -> str:
    """Returns a phrase with the median of the frames' median depths, in metres.

    The phrase also gives the 5th and the 95th percentile of the frames' median depths.

    Args:
        facts: The results of checking the frames; those without a median depth are left out.
    """
    medians = torch.tensor(
        [fact.median_m for fact in facts if fact.median_m is not None], dtype=torch.float64
    )
    if len(medians) == 0:
        return "no measured depth"
    low, middle, high = medians.quantile(
        torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    ).tolist()
    return f"the frames' median depths are {middle:.3g} m (90 % of them {low:.3g} to {high:.3g} m)"


def _place(name: str) -> tuple[str, int] | None:
    """Returns (folder, frame number) of a frame's name; None for a name without a number.

    Args:
        name: The name, such as "day/0000000005.png", whose folder is "day" and whose number is 5.
    """
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL)
    folder, _, _ = name.rpartition("/")
    return None if match is None or "/" in match[3] else (folder, int(match[2]))
