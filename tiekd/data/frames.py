"""Frames from files: image, ground truth if any, cached teacher map, cropped to one window.

This is what KITTI, NYU and a folder of the user's own images share: each of these modules says
where its files are and how its depth is stored (`DatasetSplit`), and `Frames` reads them. A frame
without ground truth has depth 0 everywhere. Only paths are kept in memory. Left out: scaling
(tiekd/data/augment/augment.py), since evaluation needs images as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data import image_io, orientation, teacher_maps
from tiekd.data.augment.geometry import crop_window
from tiekd.data.sample import Sample, in_metres
from tiekd.errors import DataError


class Camera(NamedTuple):
    """Focal lengths and principal point in pixels of the whole, upright image.

    Without a centre, the principal point is the middle of the image.
    """

    focal_x: float
    focal_y: float
    centre_x: float | None = None
    centre_y: float | None = None


class Frame(NamedTuple):
    """The files of one frame.

    Attributes:
        name: The frame's name in messages and in names of teacher maps.
        image: Path of the image, as text, since creating 24,000 `Path`s takes seconds.
        depth: Path of the depth map; None without ground truth.
        camera: The camera; None if unknown.
    """

    name: str
    image: str
    depth: str | None
    camera: Camera | None


class Window(NamedTuple):
    """The part of each image that is kept.

    Attributes:
        option: The option that sets it, for messages.
        place: (height, width) of an image -> (top, left, height, width) of the window. `Frames`
            checks that it lies inside the image.
    """

    option: str
    place: Callable[[int, int], tuple[int, int, int, int]]


@dataclass(frozen=True)
class DepthFormat:
    """How a dataset stores its ground truth.

    Attributes:
        read: Reads a file as (1, H, W), uint16 of which `units_per_m` make a metre, or float32
            metres.
        units_per_m: Levels of uint16 per metre; None if no file is uint16.
        float_units_per_m: Units per metre of floating-point files; None unless the recipe can set
            them.
        invalid: Levels of uint16 that mean not measured, in addition to those that `read` drops.
    """

    read: Callable[[Path], Tensor]
    units_per_m: float | None
    float_units_per_m: float | None = None
    invalid: Sequence[float] = ()


@dataclass(frozen=True)
class DatasetSplit:
    """One split of a dataset: its frames, and how their files are read.

    Attributes:
        frames: The frames, also those without ground truth.
        source: Where they are listed, for messages.
        depth_format: How their ground truth is stored.
        window: The part of each image that is kept; None for all of it.
        map_prefix: The prefix of the names of teacher maps.
        notes: Lines for the log on how the files were found.
    """

    frames: Sequence[Frame]
    source: Path
    depth_format: DepthFormat
    window: Window | None = None
    map_prefix: str = ""
    notes: Sequence[str] = ()


class Frames(torch.utils.data.Dataset):
    """Frames as `Sample`s with uint8 images and depths in metres.

    Args:
        split: The frames' files.
        max_depth: The network's range in metres.
        needs_ground_truth: Skip frames without ground truth (`num_skipped` counts them).
        maps: Folder of cached teacher maps; None reads none. A map is as large as the image, and is
            then cropped like it, or as large as the window.

    Raises:
        DataError: If the folder of maps is missing, or no frame is left.
    """

    def __init__(
        self,
        split: DatasetSplit,
        max_depth: float,
        needs_ground_truth: bool,
        maps: Path | None = None,
    ):
        self.frames = [f for f in split.frames if f.depth is not None or not needs_ground_truth]
        self.num_skipped = len(split.frames) - len(self.frames)
        self.source = split.source
        self.depth_format = split.depth_format
        self.max_depth = max_depth
        self.window = split.window
        self.maps = maps
        self.map_prefix = split.map_prefix
        self.notes = split.notes
        # A cache (tiekd/data/decoded_cache.py) that is read instead of the files.
        self.decoded = None
        if not self.frames:
            raise DataError(
                f"{self.source}: none of its {len(split.frames)} frames has ground truth, which "
                "evaluation and training without a teacher need; use other frames"
            )
        if maps is not None and not maps.is_dir():
            raise DataError(f"teacher.maps: no folder at {maps}; make it with bin/cache_teacher.py")
        self.maps_of_stored_pixels = teacher_maps.are_of_stored_pixels(maps)
        self.map_full_scale_m = (
            max_depth if maps is None else teacher_maps.full_scale_m(maps, max_depth)
        )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        return in_metres(self.stored(index))

    def stored(self, index: int) -> Sample:
        """Returns the sample with depths as stored (16-bit); its tensors are views.

        A caller that needs only a part of it converts only that part.
        """
        return self.assemble(index, **{name: read() for name, read in self.parts(index).items()})

    def parts(self, index: int) -> dict[str, Callable[[], Tensor]]:
        """Returns the functions that read a frame's files, by `image`, `depth` and `teacher_depth`.

        Parts that the frame doesn't have are absent.
        """
        parts = {}
        for name, (path, decode) in self.files(index).items():
            cached = self.decoded is not None and image_io.needs_decoding(path)
            read = partial(self.decoded.read, measured=name == "depth") if cached else decode
            parts[name] = partial(read, path)
        return parts

    def is_turned(self, index: int) -> bool:
        """Returns True if a frame's stored pixels aren't upright; reads the head of its file."""
        return orientation.mark_in(Path(self.frames[index].image)) != orientation.UPRIGHT

    def measured(self, index: int) -> Tensor:
        """Returns a frame's ground truth before cropping.

        Returns:
            (1, H, W) float32, metres, 0 where not measured.
        """
        depth = self.parts(index)["depth"]()
        if depth.dtype == torch.uint16:
            known = image_io.without_levels(depth, self.depth_format.invalid)
            depth = known.float() / self.depth_format.units_per_m
        return depth

    def files(self, index: int) -> dict[str, tuple[Path, Callable[[Path], Tensor]]]:
        """Returns a frame's files with the functions that decode them, by the names of `parts`."""
        frame = self.frames[index]
        files = {"image": (Path(frame.image), image_io.read_image)}
        if frame.depth is not None:
            files["depth"] = Path(frame.depth), self.depth_format.read
        if self.maps is not None:
            files["teacher_depth"] = self.maps / self.map_name(index), image_io.read_levels
        return files

    def assemble(
        self,
        index: int,
        image: Tensor,
        depth: Tensor | None = None,
        teacher_depth: Tensor | None = None,
    ) -> Sample:
        """Combines the parts of a frame to one sample, cropped to the window.

        Args:
            index: Index of the frame.
            image: (3, H, W) uint8.
            depth: (1, H, W) uint16 levels or float32 metres; None without ground truth.
            teacher_depth: (1, h, w) uint16 levels, of the image's or the window's size; None
                without.

        Raises:
            DataError: If the sizes don't fit each other.
        """
        frame = self.frames[index]
        whole = self._whole(frame, image, depth)
        if teacher_depth is None:
            return self._cut(whole, frame)
        # Sizes alone don't reveal maps of unturned pixels: some marks leave the sides as they are.
        if self.maps_of_stored_pixels and self.is_turned(index):
            raise DataError(
                f"{self.maps / self.map_name(index)}: made before images were turned upright, as "
                f"the EXIF orientation of {frame.name} says; make the maps anew in another folder "
                "with bin/cache_teacher.py",
                "size",
            )
        # A map of the whole image is cropped with it; one of the window's size is used as it is.
        if _size(teacher_depth) == _size(image):
            return self._cut(self._with_map(whole, teacher_depth), frame)
        sample = self._cut(whole, frame)
        if _size(teacher_depth) != _size(sample.image):
            cut = (
                "" if self.window is None else f", {_size(sample.image)} after {self.window.option}"
            )
            raise DataError(
                f"{self.maps / self.map_name(index)}: teacher map of {_size(teacher_depth)} for an "
                f"image of {_size(image)}{cut}{_unturned(frame, image, teacher_depth)}; make the "
                "maps from the same images",
                "size",
            )
        return self._with_map(sample, teacher_depth)

    def map_name(self, index: int) -> str:
        """Returns the file name of a frame's teacher map: the image's path joined by `_`."""
        return self.map_prefix + joined_name(self.frames[index].name)

    def image_sizes(self) -> list[tuple[int, int]]:
        """Returns (height, width) of every frame as it is read; takes 0.1 ms per file."""
        return [
            self._place(frame, *image_io.read_image_size(Path(frame.image)))[2:]
            for frame in self.frames
        ]

    def _whole(self, frame: Frame, image: Tensor, depth: Tensor | None) -> Sample:
        height, width = image.shape[-2:]
        # A frame without ground truth gets a view of one zero, which takes no memory.
        if depth is None:
            depth = torch.zeros(1, 1, 1, dtype=torch.uint16).expand(1, height, width)
        elif _size(depth) != _size(image):
            message = (
                f"{frame.depth}: {_size(depth)} does not fit its image {frame.name}, {_size(image)}"
            )
            raise DataError(message + _unturned(frame, image, depth), "size")
        # Floating-point depths were cleaned when they were read.
        invalid = self.depth_format.invalid
        if invalid and depth.dtype == torch.uint16:
            depth = image_io.without_levels(depth, invalid)
        inside = torch.ones(1, 1, 1, dtype=torch.bool).expand(1, height, width)
        units = 1.0
        if depth.dtype == torch.uint16 and self.depth_format.units_per_m:
            units = self.depth_format.units_per_m
        camera = _camera_matrix(frame.camera, height, width)
        return Sample(image, depth, inside, None, camera, frame.name, depth_units=units)

    def _with_map(self, sample: Sample, levels: Tensor) -> Sample:
        units = image_io.TEACHER_MAP_LEVELS / self.map_full_scale_m
        return sample._replace(teacher_depth=levels, teacher_units=units)

    def _cut(self, sample: Sample, frame: Frame) -> Sample:
        return crop_window(sample, *self._place(frame, *sample.image.shape[-2:]))

    def _place(self, frame: Frame, height: int, width: int) -> tuple[int, int, int, int]:
        if self.window is None:
            return 0, 0, height, width
        top, left, rows, columns = self.window.place(height, width)
        if top < 0 or left < 0 or top + rows > height or left + columns > width:
            option = self.window.option
            raise DataError(
                f"{frame.image}: {height}x{width} is smaller than {option} asks for "
                f"({rows}x{columns} from row {top}, column {left}); set another {option}, or null",
                "size",
            )
        return top, left, rows, columns


def joined_name(name: str) -> str:
    """Converts a name to its teacher map's: `2011_09_26/1.jpg` becomes `2011_09_26_1.png`."""
    return str(PurePosixPath(name.replace("/", "_")).with_suffix(".png"))


def data_root(root: str, content: str) -> Path:
    """Returns `data.root` as a path with `~` expanded.

    Args:
        root: The option's value.
        content: What belongs into the folder, for the message.

    Raises:
        DataError: If it is no folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        found = "a file, not a folder" if path.exists() else "no folder"
        raise DataError(
            f"data.root: {found} at {path}; put {content} there or say --set data.root=FOLDER"
        )
    return path


def _camera_matrix(camera: Camera | None, height: int, width: int) -> Tensor:
    """Returns the (3, 3) float32 matrix of a camera in pixels; NaN if the camera isn't known."""
    if camera is None:
        focal_x = focal_y = centre_x = centre_y = float("nan")
    else:
        focal_x, focal_y, centre_x, centre_y = camera
        centre_x = (width - 1) / 2 if centre_x is None else centre_x
        centre_y = (height - 1) / 2 if centre_y is None else centre_y
    return torch.tensor(
        [[focal_x, 0, centre_x], [0, focal_y, centre_y], [0, 0, 1]], dtype=torch.float32
    )


def _unturned(frame: Frame, image: Tensor, other: Tensor) -> str:
    """Explains a size mismatch if a depth map fits the image only before it is turned.

    Empty if the orientation isn't the reason.
    """
    mark = orientation.mark_in(Path(frame.image))
    if mark == orientation.UPRIGHT or other.shape[-2:] != image.shape[-2:][::-1]:
        return ""
    return (
        " once upright: it fits the pixels as stored, which the image's EXIF orientation "
        f"({mark}) turns; turn it likewise, or remove the mark from the image"
    )


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[-2:]))
