"""A second camera as the teacher: depth from the disparity of rectified image pairs.

    teacher: {name: stereo, baseline: 0.54, right: [image_02, image_03]}

The student learns on the left images; the right images are found by their file names. Depth is
focal length * baseline / disparity, 0 in pixels without a match, and its sigma follows from the
error of a disparity (tiekd/teachers/pairs/matching.py); a DPM head learns depth and sigma. The
teacher needs no network, no GPU and no training, only OpenCV: `pip install 'tiekd[stereo]'`. The
teacher reads whole images from their files and ignores augmentation, so its maps have to be cached.
Not covered: rectifying images, and depth for right images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiekd import console
from tiekd.data import image_io
from tiekd.data.batch import Batch
from tiekd.data.frames import Frame
from tiekd.data.resize import OWN_SIZE
from tiekd.data.stored import ShardMember
from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.teachers.outputs import digest
from tiekd.teachers.pairs import calibration, checks, matching, right_images
from tiekd.teachers.pairs.calibration import Calibration
from tiekd.teachers.pairs.matching import Rig
from tiekd.teachers.pairs.right_images import Pair

_SAME_FOCAL = 0.01  # the largest relative difference of the focal lengths of calibration and image
_PACKAGES = ("opencv-python-headless", "opencv-python")


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: stereo}`.

    Attributes:
        baseline: The distance between the two cameras in metres; None to take it from
            `calibration`.
        calibration: The path of one of KITTI's calibration files (pairs/calibration.py); None
            without one. The offset, and an unknown focal length of an image, are also taken from
            this file.
        right: [TEXT, REPLACEMENT]: the path of a right image is that of the left image, with the
            last TEXT replaced. None for [image_02, image_03], the folders of KITTI.
        offset: The column of the right camera's principal point minus that of the left one's, in
            pixels; None to take it from `calibration`, or for 0 without a calibration.
        max_disparity: The disparities below it are searched, in pixels, after it is rounded up to a
            multiple of 16; None for a sixth of the image's width. Nearer surfaces get no depth.
        min_disparity: The smallest disparity, including the offset, that gives a depth, in pixels.
        disparity_error: The standard deviation of a disparity in pixels, from which sigma follows;
            0 for depth without sigma.
    """

    baseline: float | None = None
    calibration: Path | None = None
    right: tuple[str, str] | None = None
    offset: float | None = None
    max_disparity: int | None = None
    min_disparity: float = 3.0
    disparity_error: float = 0.75

    def __post_init__(self):
        if (self.baseline is None) == (self.calibration is None):
            raise TeacherError(
                "teacher: stereo needs either `baseline`, in metres, or `calibration`, a file of "
                "KITTI's"
            )
        if self.baseline is not None:
            calibration.check_baseline(self.baseline, "teacher.baseline")
        if self.right is not None and (not self.right[0] or self.right[0] == self.right[1]):
            raise TeacherError(
                f"teacher.right: got {list(self.right)}; it must be two different texts, of which "
                "the first is in the left images' paths"
            )
        if not self.min_disparity > 0:
            raise TeacherError(
                f"teacher.min_disparity: got {self.min_disparity}; it must be pixels above 0"
            )
        if not self.disparity_error >= 0:
            raise TeacherError(
                f"teacher.disparity_error: got {self.disparity_error}; it must be pixels above 0, "
                "or 0 for depth without sigma"
            )
        if self.max_disparity is not None and self.max_disparity <= self.min_disparity:
            raise TeacherError(
                f"teacher.max_disparity: got {self.max_disparity}; it must be pixels above "
                f"min_disparity ({self.min_disparity:g})"
            )


class Estimate(NamedTuple):
    """The depth of an image.

    Attributes:
        depth: (H, W) float32, metres, 0 where invalid.
        sigma: (H, W) float32, metres, the standard deviation of the depth; 0 where invalid. None if
            `disparity_error` is 0.
    """

    depth: np.ndarray
    sigma: np.ndarray | None


class StereoTeacher:
    """Returns the depth of left images, from their files and those of the right images.

    Attributes:
        resize: How images are resized for the teacher when maps are cached: always OWN_SIZE, i.e.
            not at all.
        reads_files: Always True: the teacher computes depth from the image files and not from the
            images in the batch, so augmentation has no effect on it.
        uses_focal: Always True: depth depends on the focal length, so it is recorded with cached
            maps.
        description: The name, the origin and the settings of the teacher, for the log and for the
            manifest of cached maps.
        sigma: The settings on which sigma depends, for the manifest; None if the teacher gives
            depth alone.
        max_depth_m: The largest depth that the teacher gives, in metres; None before
            `check_frames`.
    """

    resize = OWN_SIZE
    reads_files = True
    uses_focal = True

    def __init__(self, options: Options):
        matching.opencv()  # report a missing package before anything is read
        self.options = options
        self.calibration: Calibration | None = None
        if options.calibration is not None:
            self.calibration = calibration.read(options.calibration.expanduser())
        self.baseline_m = options.baseline
        self.offset_px = options.offset or 0.0
        if self.calibration is not None:
            self.baseline_m = self.calibration.rig.baseline_m
            if options.offset is None:
                self.offset_px = self.calibration.rig.offset_px
        self.max_depth_m: float | None = None
        self._frames: dict[str, Frame] = {}
        self._rights: dict[str, str] = {}
        self.description = {
            "name": "stereo",
            "model": "StereoSGBM of OpenCV",
            "revision": None,
            "licence": "Apache-2.0",
            "package": _package(),
            "output": "metres",
            "baseline_m": self.baseline_m,
            "offset_px": self.offset_px,
            "calibration_focal_px": self.calibration and self.calibration.rig.focal_px,
            "right": options.right or right_images.KITTI,
            "max_disparity": options.max_disparity,
            "min_disparity": options.min_disparity,
            "matching": matching.SETTINGS,
        }
        self.sigma: dict | None = None
        if options.disparity_error:
            self.sigma = {"disparity_error": options.disparity_error, **matching.SIGMA}
            self.description["sigma"] = self.sigma
        self.description["digest"] = digest.of_settings(self.description)

    def check_frames(self, frames: Sequence[Frame]) -> list[str]:
        """Finds the right images of all frames, and checks them and some of the pairs.

        Call this method before the teacher's first call.

        Args:
            frames: All frames of a dataset; empty if the dataset can't list them.

        Returns:
            Messages for the log: how many frames have no right image, and the measurements on the
            checked pairs.

        Raises:
            TeacherError: The frames have no files or no focal lengths, more than half of them have
                no right image, or the pairs differ in size, aren't rectified or are exchanged.
        """
        if not frames or isinstance(frames[0].image, ShardMember):
            raise TeacherError(
                "teacher: stereo reads image files, and this data set doesn't list any; use kitti, "
                "nyu or folder as data.name"
            )
        unknown = sum(self._focal(frame) is None for frame in frames)
        if unknown:
            raise TeacherError(
                f"teacher: {unknown} of {len(frames)} frames have no focal length, without which a "
                "disparity gives no depth; give data.intrinsics, or teacher.calibration"
            )
        self._check_calibration(frames)
        pairs, missing = right_images.pairs_of(frames, self.options.right)
        self._frames = {frame.name: frame for frame in frames}
        self._rights = {pair.frame.name: pair.right for pair in pairs}
        self.max_depth_m = self.largest_depth_m(frames)
        told = []
        if missing:
            told.append(
                f"Teacher: {len(missing)} of {len(frames)} frames have no right image, such as "
                f"{missing[0].name}; their maps are empty"
            )
        return told + self._check_pairs(pairs)

    def largest_depth_m(self, frames: Sequence[Frame]) -> float:
        """Returns the largest depth in metres that the teacher gives for frames; 0 without any.

        It is that of the smallest disparity (`min_disparity`, which includes the offset).

        Args:
            frames: The frames; those without a focal length are left out.
        """
        focals = [self._focal(frame) or 0.0 for frame in frames]
        return max(focals, default=0.0) * self.baseline_m / self.options.min_disparity

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor | Target:
        """Returns the depth of the batch's images, which must be neither augmented nor resized.

        Args:
            batch: The batch; only its names, intrinsics and sizes are used.

        Returns:
            (B, 1, H, W) float32, metres, 0 where there is no match; or a `Target` of this depth and
            its sigma.

        Raises:
            TeacherError: An image isn't one of those that `check_frames` has seen.
            DataError: An image can't be read.
        """
        size = tuple(batch.image.shape[-2:])
        found = []
        for name, matrix in zip(batch.names, batch.intrinsics.cpu().numpy(), strict=True):
            if name not in self._frames:
                raise TeacherError(
                    f"teacher: stereo reads whole image pairs, and {name} isn't one that it has "
                    "looked for; make maps "
                    f"with {console.command('cache_teacher')}"
                )
            found.append(self._cropped(self._frames[name], size, matrix))
        device = batch.image.device
        depth, sigma = (
            None if maps[0] is None else torch.from_numpy(np.stack(maps)[:, None]).to(device)
            for maps in zip(*found, strict=True)
        )
        return depth if sigma is None else Target(depth, sigma)

    def _focal(self, frame: Frame) -> float | None:
        """Returns a frame's horizontal focal length in pixels.

        It is that of the frame's camera, or, if that isn't known, of the calibration file. None
        without either.
        """
        if frame.camera is not None:
            return frame.camera.focal_x
        return None if self.calibration is None else self.calibration.rig.focal_px

    def _rig(self, frame: Frame) -> Rig:
        """Returns the two cameras of a frame's left and right image as a `Rig`."""
        return Rig(self._focal(frame), self.baseline_m, self.offset_px)

    def _check_calibration(self, frames: Sequence[Frame]) -> None:
        """Raises TeacherError if the calibration file is for images of another size.

        Args:
            frames: All frames.
        """
        if self.calibration is None:
            return
        where = f"teacher.calibration: {self.options.calibration}"
        of_file = self.calibration.rig.focal_px
        for frame in frames:
            focal = self._focal(frame)
            if abs(focal / of_file - 1) > _SAME_FOCAL:
                raise TeacherError(
                    f"{where} has a focal length of {of_file:g} pixels, {frame.name} has "
                    f"{focal:g}; give the calibration of these images, or teacher.baseline"
                )
            if frame.camera is None and self.calibration.size is not None:
                size = image_io.read_image_size(Path(frame.image))
                if size != self.calibration.size:
                    height, width = self.calibration.size
                    raise TeacherError(
                        f"{where} is of images of {height}x{width} (height x width), {frame.name} "
                        f"is {size[0]}x{size[1]}; give data.intrinsics"
                    )

    def _check_pairs(self, pairs: Sequence[Pair]) -> list[str]:
        """Checks some of the image pairs, and returns their measurements as lines for the log.

        Args:
            pairs: All image pairs.

        Raises:
            TeacherError: The pairs aren't rectified, or left and right are exchanged.
        """
        count = min(checks.NUM_PAIRS, len(pairs))
        chosen = [pairs[index * len(pairs) // count] for index in range(count)]
        measurements, depths = [], []
        for pair in chosen:
            greys = [_grey(path) for path in (pair.frame.image, pair.right)]
            measurements.append(checks.measure_pair(*greys, self.options.max_disparity))
            depths.append(self._rig(pair.frame).metres(measurements[-1].disparity))
        told = checks.check_pairs(measurements, chosen[0].frame.name)
        known = [depth for depth in depths if np.isfinite(depth)]
        median = f"{np.median(known):.2f} m" if known else "unknown"
        return [f"{told}, median depth {median}"]

    def estimate(self, frame: Frame) -> Estimate | None:
        """Computes the depth of a whole left image from its file and that of the right image.

        Args:
            frame: A frame that `check_frames` has seen.

        Returns:
            The depth and its sigma as an `Estimate`; None if the frame has no right image.

        Raises:
            DataError: An image can't be read.
        """
        right = self._rights.get(frame.name)
        if right is None:
            return None
        rig = self._rig(frame)
        left_grey, right_grey = _grey(frame.image), _grey(right)
        count = matching.searched(self.options.max_disparity, left_grey.shape[1])
        disparity = matching.disparity_of(left_grey, right_grey, count)
        depth = matching.depth_of(disparity, rig, self.options.min_disparity)
        error = self.options.disparity_error
        sigma = matching.sigma_of(depth, disparity, rig, error) if error else None
        return Estimate(depth, sigma)

    def _cropped(self, frame: Frame, size: tuple[int, int], matrix: np.ndarray) -> Estimate:
        """Computes the depth of the part of a left image that is in the batch.

        Args:
            frame: The image's frame.
            size: (height, width) in pixels of the image in the batch, which may be cropped.
            matrix: (3, 3), the camera matrix of the image in the batch, which tells where it is
                cropped.

        Returns:
            The depth and its sigma as an `Estimate`, at the size `size`; 0 everywhere if the frame
            has no right image.
        """
        # Match the whole images and crop the depth: in cropped images, pixels near the left border
        # would have no match.
        found = self.estimate(frame)
        if found is None:
            none = np.zeros(size, np.float32)
            return Estimate(none, None if self.sigma is None else none)
        top, left = _place(frame, found.depth.shape, size, matrix)
        place = slice(top, top + size[0]), slice(left, left + size[1])
        return Estimate(*(None if values is None else values[place] for values in found))


def _place(
    frame: Frame, whole: tuple[int, int], size: tuple[int, int], matrix: np.ndarray
) -> tuple[int, int]:
    """Returns the position (top, left) of a crop in the whole image.

    Args:
        frame: The image's frame. Its camera states the principal point in the whole image, and
            `matrix` that in the crop.
        whole: (height, width) of the whole image.
        size: (height, width) of the crop.
        matrix: (3, 3), the camera matrix of the crop.

    Raises:
        TeacherError: The image is cropped, but its camera isn't known.
    """
    if size == whole:
        return 0, 0
    if frame.camera is None:
        raise TeacherError(
            f"teacher: {frame.name} is cropped from {whole[0]}x{whole[1]} to {size[0]}x{size[1]}, "
            "and without intrinsics nothing says where; give data.intrinsics, or no data.kb_crop"
        )
    _, _, column, row = frame.camera
    column = (whole[1] - 1) / 2 if column is None else column
    row = (whole[0] - 1) / 2 if row is None else row
    return round(row - float(matrix[1, 2])), round(column - float(matrix[0, 2]))


def _grey(path: str) -> np.ndarray:
    return matching.grey(image_io.read_image(Path(path)).permute(1, 2, 0).numpy())


def _package() -> str:
    """Returns the name and version of the package that installed OpenCV, as one text."""
    for name in _PACKAGES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"cv2 {matching.opencv().__version__}"


def build(options: Options) -> StereoTeacher:
    """Returns a teacher that computes depth from image pairs, a `StereoTeacher`.

    Args:
        options: The keys of the recipe's section `teacher`.

    Raises:
        TeacherError: OpenCV is missing, or the calibration is missing or can't be used.
    """
    return StereoTeacher(options)
