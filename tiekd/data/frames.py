"""Frames from files: picture, ground truth where there is any, cached teacher map, cut to one window.

What KITTI, NYU and a folder of one's own share: each of them says where its files are and how its depth is stored, and
`Frames` reads them. A frame without ground truth has depth 0 everywhere. Nothing is kept in memory but paths.
Left out: scaling (tiekd/data/augment/augment.py), since evaluation wants pictures as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data import image_io, orientation, teacher_maps
from tiekd.data.augment.augment import Sample, in_metres
from tiekd.data.augment.geometry import crop_window
from tiekd.errors import DataError


class Camera(NamedTuple):
    """Focal lengths and principal point in pixels of the whole, upright picture; no centre: its middle."""

    focal_x: float
    focal_y: float
    centre_x: float | None = None
    centre_y: float | None = None


class Frame(NamedTuple):
    """name: what messages and teacher maps call it; image, depth: paths, as text since 24,000 `Path`s take seconds;
    depth None without ground truth; camera None where unknown."""

    name: str
    image: str
    depth: str | None
    camera: Camera | None


class Window(NamedTuple):
    """The part of each picture that is kept. option: what users call it; place: (height, width) of a picture ->
    (top, left, height, width), which `Frames` checks to lie in it."""

    option: str
    place: Callable[[int, int], tuple[int, int, int, int]]


class Frames(torch.utils.data.Dataset):
    """Frames as `Sample`s with uint8 images; `stored` gives them with depths as their files have them.

    source: where the frames are listed, for messages. read_depth: file -> (1, H, W) uint16, of which `units_per_m` make
    a metre, or float32 metres. invalid: levels of uint16 ground truth that mean not measured. needs_ground_truth: skip
    the frames without any (`num_skipped` counts them). maps: folder of cached teacher maps, each as large as the
    picture, and then cut like it, or as large as the window; None reads none. map_prefix: what their names begin with.
    Raises DataError for missing files and when no frame is left.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        source: Path,
        read_depth: Callable[[Path], Tensor],
        units_per_m: float | None,
        max_depth: float,
        needs_ground_truth: bool,
        window: Window | None = None,
        maps: Path | None = None,
        map_prefix: str = "",
        invalid: Sequence[float] = (),
    ):
        self.frames = (
            [f for f in frames if f.depth is not None] if needs_ground_truth else list(frames)
        )
        self.num_skipped = len(frames) - len(self.frames)
        self.source = source
        self.read_depth = read_depth
        self.units_per_m = units_per_m
        self.max_depth = max_depth
        self.window = window
        self.maps = maps
        self.map_prefix = map_prefix
        self.invalid = tuple(invalid)
        self.float_units_per_m: float | None = (
            None  # of floating-point files, where a recipe says the units
        )
        self.notes: list[str] = []  # what a user should know of how the files were found
        self.decoded = None  # or a cache (tiekd/data/decoded_cache.py), read in the files' stead
        if not self.frames:
            raise DataError(
                f"{source}: none of its {len(frames)} frames has ground truth, which evaluation "
                "and training without a teacher need; use other frames"
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
        """The sample with 16-bit depths, for who wants a part of it only; its tensors are views."""
        return self.assemble(index, **{name: read() for name, read in self.parts(index).items()})

    def parts(self, index: int) -> dict[str, Callable[[], Tensor]]:
        """What reads a frame's files: `image`, and `depth` and `teacher_depth` where it has them."""
        parts = {}
        for name, (path, decode) in self.files(index).items():
            cached = self.decoded is not None and image_io.needs_decoding(path)
            read = partial(self.decoded.read, measured=name == "depth") if cached else decode
            parts[name] = partial(read, path)
        return parts

    def is_turned(self, index: int) -> bool:
        """True for a frame whose stored pixels aren't upright, by the head of its file."""
        return orientation.mark_in(Path(self.frames[index].image)) != orientation.UPRIGHT

    def measured(self, index: int) -> Tensor:
        """A frame's ground truth before it is cut, (1, H, W) float32, metres, 0 where not measured."""
        depth = self.parts(index)["depth"]()
        if depth.dtype == torch.uint16:
            depth = image_io.without_levels(depth, self.invalid).float() / self.units_per_m
        return depth

    def files(self, index: int) -> dict[str, tuple[Path, Callable[[Path], Tensor]]]:
        """A frame's files by the same names, each with what decodes it."""
        frame = self.frames[index]
        files = {"image": (Path(frame.image), image_io.read_image)}
        if frame.depth is not None:
            files["depth"] = Path(frame.depth), self.read_depth
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
        """The parts as one sample, cut to the window. Raises DataError where their sizes don't go together."""
        frame = self.frames[index]
        whole = self._whole(frame, image, depth)
        if teacher_depth is None:
            return self._cut(whole, frame)
        if self.maps_of_stored_pixels and self.is_turned(index):
            raise DataError(
                f"{self.maps / self.map_name(index)}: made before images were turned upright, as "
                f"the EXIF orientation of {frame.name} says; make the maps anew in another folder "
                "with bin/cache_teacher.py",
                "size",
            )
        if _size(teacher_depth) == _size(image):
            return self._cut(self._with_map(whole, teacher_depth), frame)
        sample = self._cut(whole, frame)
        if _size(teacher_depth) != _size(sample.image):
            cut = (
                "" if self.window is None else f", {_size(sample.image)} after {self.window.option}"
            )
            raise DataError(
                f"{self.maps / self.map_name(index)}: teacher map of {_size(teacher_depth)} for a "
                f"picture of {_size(image)}{cut}{_unturned(frame, image, teacher_depth)}; make the "
                "maps from the same pictures",
                "size",
            )
        return self._with_map(sample, teacher_depth)

    def map_name(self, index: int) -> str:
        """The file name of a frame's teacher map: the picture's path joined by `_`, as PNG."""
        return self.map_prefix + joined_name(self.frames[index].name)

    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every frame as it is read, from the files' heads alone; some 0.1 ms a frame."""
        return [
            self._place(frame, *image_io.read_image_size(Path(frame.image)))[2:]
            for frame in self.frames
        ]

    def _whole(self, frame: Frame, image: Tensor, depth: Tensor | None) -> Sample:
        height, width = image.shape[-2:]
        if depth is None:
            depth = torch.zeros(1, 1, 1, dtype=torch.uint16).expand(1, height, width)
        elif _size(depth) != _size(image):
            message = (
                f"{frame.depth}: {_size(depth)} does not fit its picture {frame.name}, "
                f"{_size(image)}"
            )
            raise DataError(message + _unturned(frame, image, depth), "size")
        if self.invalid and depth.dtype == torch.uint16:
            depth = image_io.without_levels(depth, self.invalid)
        inside = torch.ones(1, 1, 1, dtype=torch.bool).expand(1, height, width)
        units = self.units_per_m if depth.dtype == torch.uint16 and self.units_per_m else 1.0
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
    """`2011_09_26/drive/1.jpg` -> `2011_09_26_drive_1.png`, the published naming of teacher maps."""
    return str(PurePosixPath(name.replace("/", "_")).with_suffix(".png"))


def data_root(root: str, content: str) -> Path:
    """`data.root` as a path, `~` expanded. Raises DataError where it is no folder; `content` is what belongs there."""
    path = Path(root).expanduser()
    if not path.is_dir():
        found = "a file, not a folder" if path.exists() else "no folder"
        raise DataError(
            f"data.root: {found} at {path}; put {content} there or say --set data.root=FOLDER"
        )
    return path


def _camera_matrix(camera: Camera | None, height: int, width: int) -> Tensor:
    """(3, 3) float32, pixels; NaN where the camera isn't known."""
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
    """What to say where a depth map fits the picture only as its pixels are stored, before they are turned upright."""
    mark = orientation.mark_in(Path(frame.image))
    if mark == orientation.UPRIGHT or other.shape[-2:] != image.shape[-2:][::-1]:
        return ""
    return (
        " once upright: it fits the pixels as stored, which the picture's EXIF orientation "
        f"({mark}) turns; turn it likewise, or remove the mark from the picture"
    )


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[-2:]))
