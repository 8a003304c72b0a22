"""Reads frames from files: image, ground truth and cached teacher map, with one crop for all three.

KITTI, NYU and a folder of the user's own images share this code: each of their modules describes
its files and depth format in a `DatasetSplit`, and `Frames` reads the files. A frame without ground
truth has depth 0 everywhere. Only paths are kept in memory, as a table of arrays
(tiekd/data/frame_table.py). Not covered: resizing (tiekd/data/resize.py), since evaluation compares
depths at the image's own size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiekd import console
from tiekd.data import image_io, orientation, teacher_maps
from tiekd.data.augment.geometry import crop_window
from tiekd.data.cameras.calibration import Camera
from tiekd.data.cameras.source import Intrinsics, cameras_of
from tiekd.data.frame_table import Frame, FrameTable
from tiekd.data.sample import Sample, in_metres
from tiekd.data.shards import maps as map_shards
from tiekd.data.shards.members import Members
from tiekd.data.stored import Source, source_of
from tiekd.errors import DataError, RecipeError


class Window(NamedTuple):
    """The rectangle to which each image of a dataset is cropped when it is read.

    Attributes:
        option: Name of the option that sets the crop, for error messages.
        rectangle_in: Function (height, width) of an image -> (top, left, height, width) of the
            rectangle, in pixels. `Frames` checks that it is inside the image.
    """

    option: str
    rectangle_in: Callable[[int, int], tuple[int, int, int, int]]


@dataclass(frozen=True)
class DepthFormat:
    """How a dataset stores its ground truth.

    Attributes:
        read: Function that reads a depth file as (1, H, W): uint16 levels, of which `units_per_m`
            make a metre, or float32 metres.
        units_per_m: uint16 levels per metre; None if no file is uint16.
        float_units_per_m: Units per metre of floating-point files, which `read` converts to metres
            itself; None if the dataset has no option for them.
        invalid: uint16 levels that mean "not measured", in addition to those that `read` replaces
            by 0.
    """

    read: Callable[[Path], Tensor]
    units_per_m: float | None
    float_units_per_m: float | None = None
    invalid: Sequence[float] = ()

    @classmethod
    def of_files(
        cls, depth_unit: float | None, float_depth_unit: float | None, invalid: Sequence[float]
    ) -> "DepthFormat":
        """Returns the format of a user's own PNG and NPY files.

        Args:
            depth_unit: Levels per metre of PNG and integer NPY files; None if there are none.
            float_depth_unit: Units per metre of floating-point NPY files; None means metres.
            invalid: Stored values that mean "not measured".
        """
        read = partial(
            image_io.read_depth,
            units_per_m=depth_unit,
            float_units_per_m=float_depth_unit,
            invalid=tuple(invalid),
        )
        return cls(read, depth_unit, float_depth_unit or 1.0, invalid)


def check_depth_units(depth_unit: float | None, float_depth_unit: float | None) -> None:
    """Raises RecipeError unless both units are finite numbers from 1, or None.

    Args:
        depth_unit: The value of `data.depth_unit`, in stored units per metre.
        float_depth_unit: The value of `data.float_depth_unit`, in stored units per metre.
    """
    for name, unit in (("depth_unit", depth_unit), ("float_depth_unit", float_depth_unit)):
        if unit is not None and not 1 <= unit < math.inf:
            raise RecipeError(
                f"data.{name}: got {unit}; it is how many levels make a metre, such as 1000 for "
                "millimetres"
            )


def check_val_fraction(val_fraction: float) -> None:
    """Raises RecipeError unless a share of frames to hold out is from 0 to below 1.

    Args:
        val_fraction: The value of `data.val_fraction`.
    """
    if not 0 <= val_fraction < 1:
        raise RecipeError(f"data.val_fraction: got {val_fraction}; it must be from 0 to below 1")


class MapFolder(NamedTuple):
    """A folder of cached teacher maps.

    Attributes:
        path: The folder.
        full_scale_m: The depth in metres that level 65535 encodes.
        sigma_scale_m: The sigma in metres that level 65535 of a sigma map encodes; None if the
            folder has no sigma maps.
        is_of_stored_pixels: True if the maps were made from images as stored, by a version of tiekd
            that didn't turn images upright.
        option: The recipe's option that names the folder, for error messages.
        is_sharded: True if the maps are in tar shards.
    """

    path: Path
    full_scale_m: float
    sigma_scale_m: float | None
    is_of_stored_pixels: bool
    option: str = "teacher.maps"
    is_sharded: bool = False

    @classmethod
    def of(cls, path: Path, max_depth: float, option: str = "teacher.maps") -> "MapFolder":
        """Returns the `MapFolder` of a folder of teacher maps, according to its manifest.

        Args:
            path: The folder.
            max_depth: The full scale, in metres, that is assumed if the folder has no manifest.
            option: The recipe's option that names the folder, for error messages.

        Raises:
            DataError: There is no such folder, or its manifest is damaged.
        """
        if not path.is_dir():
            raise DataError(
                f"{option}: no folder at {path}; make it with {console.command('cache_teacher')}"
            )
        return cls(
            path,
            teacher_maps.full_scale_m(path, max_depth),
            teacher_maps.sigma_full_scale_m(path),
            teacher_maps.are_of_stored_pixels(path),
            option,
            teacher_maps.are_sharded(path),
        )


@dataclass(frozen=True)
class DatasetSplit:
    """One split of a dataset: its frames, and how their files are read.

    Attributes:
        frames: All frames of the split, including those without ground truth.
        source: The split file or folder that lists the frames, for error messages.
        depth_format: How the ground truth is stored.
        window: The rectangle to which each image is cropped; None for whole images.
        map_prefix: Prefix of the teacher maps' file names.
        notes: Lines for the log about how the files were found.
        camera_notes: Lines for the log about the frames' cameras.
        remark: A caution about metrics on these frames; empty if there is none.
    """

    frames: Sequence[Frame]
    source: Path
    depth_format: DepthFormat
    window: Window | None = None
    map_prefix: str = ""
    notes: Sequence[str] = ()
    camera_notes: Sequence[str] = ()
    remark: str = ""


class Frames(torch.utils.data.Dataset):
    """The frames of a split, as a dataset of `Sample`s with uint8 images and depths in metres.

    Args:
        split: The frames and how their files are read.
        max_depth: The largest depth that the network predicts, in metres.
        needs_ground_truth: True to skip frames without ground truth; `num_skipped` counts them.
        maps: Folder of cached teacher maps; None to read no maps. A map has the size of the whole
            image, and is then cropped with it, or already has the size of the cropped image.

    Raises:
        DataError: The folder of maps is missing, or no frame is left.
    """

    def __init__(
        self,
        split: DatasetSplit,
        max_depth: float,
        needs_ground_truth: bool,
        maps: Path | None = None,
    ):
        self.frames = FrameTable.of(split.frames)
        if needs_ground_truth and not self.frames.has_depth.all():
            self.frames = self.frames.take(np.flatnonzero(self.frames.has_depth))
        self.num_skipped = len(split.frames) - len(self.frames)
        self.source = split.source
        self.depth_format = split.depth_format
        self.max_depth = max_depth
        self.window = split.window
        self.remark = split.remark
        self.map_prefix = split.map_prefix
        self.notes = split.notes
        self.camera_notes = split.camera_notes
        # Cache (tiekd/data/decoded_cache.py) that is read instead of the original files; None for
        # no cache.
        self.decoded = None
        # None, or the function (epoch, seed) that gives the order of an epoch's samples, (N,)
        # int64, for a data set that is read faster in another order than a random one.
        self.epoch_order = None
        if not self.frames:
            raise DataError(
                f"{self.source}: none of its {len(split.frames)} frames has ground truth, which "
                "evaluation and training without a teacher need; use other frames"
            )
        self.read_maps_of(maps)

    def read_maps_of(self, maps: Path | None, option: str = "teacher.maps") -> None:
        """Sets the folder of cached teacher maps that are read with the frames.

        `add_maps` adds the folders of further teachers.

        Args:
            maps: The folder; None to read no maps.
            option: The recipe's option that names the folder, for error messages.

        Raises:
            DataError: There is no such folder, or its manifest is damaged.
        """
        self.maps = maps
        # The folders of all teachers' maps; the attribute `maps` is the first of them.
        self.map_folders = []
        self.frames = self.frames.with_maps({})
        if maps is not None:
            self.add_maps(maps, option)

    def add_maps(self, path: Path, option: str) -> None:
        """Adds the cached maps of a further teacher.

        Args:
            path: The folder of the maps.
            option: The recipe's option that names the folder, for error messages.

        Raises:
            DataError: There is no such folder, or its manifest is damaged.
        """
        folder = MapFolder.of(path, self.max_depth, option)
        number = len(self.map_folders)
        self.map_folders.append(folder)
        self.frames = self.frames.with_maps({**self.frames.maps, **self._shards(folder, number)})

    def _shards(self, folder: MapFolder, number: int) -> dict[str, Members]:
        """Returns the maps of a folder that are in tar shards, by kind as in `map_kinds`.

        Args:
            folder: The folder. The result is empty if its maps are files.
            number: The index of its teacher.

        Raises:
            DataError: The frames aren't in tar shards, or the maps aren't theirs.
        """
        images = self.frames.images
        if not isinstance(images, Members):
            if folder.is_sharded:
                raise DataError(
                    f"{folder.option}: the maps in {folder.path} are in tar shards, which only "
                    "frames in tar shards have (data.name: shards); make maps of these frames in "
                    f"another folder with {console.command('cache_teacher')}"
                )
            return {}
        shards = map_shards.shards_of(images, self.source, folder.path)
        problem = map_shards.mixed_forms(folder.path, shards, folder.is_sharded)
        if problem is not None:
            raise DataError(f"{folder.option}: {problem}")
        if not folder.is_sharded:
            return {}
        kinds = [_numbered("teacher_depth", number), _numbered("teacher_sigma", number)]
        with_sigma = folder.sigma_scale_m is not None
        found = map_shards.read(
            images, self.frames.names, self.source, folder.path, with_sigma, folder.option
        )
        return dict(zip(kinds, found, strict=False))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        return in_metres(self.stored(index))

    def stored(self, index: int) -> Sample:
        """Returns a frame's sample with depths as stored in the files, e.g. uint16 levels.

        Its tensors are views, without a copy. A caller can crop the sample first, and then has to
        convert only the crop to metres.

        Args:
            index: Index of the frame.
        """
        return self.assemble(index, **{name: read() for name, read in self.readers(index).items()})

    def readers(self, index: int) -> dict[str, Callable[[], Tensor]]:
        """Returns functions that read a frame's files, one per file, as a dict.

        The keys are those of `files`; a key is absent if the frame has no such file. Each function
        takes no arguments and returns the decoded tensor, (3, H, W) or (1, H, W).

        Args:
            index: Index of the frame.
        """
        readers = {}
        for name, (path, decode) in self.files(index).items():
            cached = self.decoded is not None and image_io.needs_decoding(path)
            read = partial(self.decoded.read, measured=name == "depth") if cached else decode
            readers[name] = partial(read, path)
        return readers

    def is_turned(self, index: int) -> bool:
        """Returns True if a frame's image isn't stored upright; reads only the file's header.

        Args:
            index: Index of the frame.
        """
        return (
            orientation.orientation_in(source_of(self.frames[index].image)) != orientation.UPRIGHT
        )

    def measured(self, index: int) -> Tensor:
        """Returns the ground truth of a frame that has it, before cropping.

        Args:
            index: Index of the frame.

        Returns:
            (1, H, W) float32, metres, 0 where not measured.
        """
        depth = self.readers(index)["depth"]()
        if depth.dtype == torch.uint16:
            known = image_io.without_levels(depth, self.depth_format.invalid)
            depth = known.float() / self.depth_format.units_per_m
        return depth

    def files(self, index: int) -> dict[str, tuple[Source, Callable[[Source], Tensor]]]:
        """Returns the files of a frame, each with the function that reads it.

        Args:
            index: Index of the frame.

        Returns:
            A dict of pairs (file, function). The file is a path or a member of a tar shard; the
            function takes it and returns the decoded tensor. The keys are `image`; `depth` if there
            is ground truth; `teacher_depth`, `teacher_depth_1` and so on for the depth maps of the
            first teacher, the second one and so on; and `teacher_sigma`, `teacher_sigma_1` and so
            on for their maps of sigma, if they have any.
        """
        frame = self.frames[index]
        files = {"image": (source_of(frame.image), image_io.read_image)}
        if frame.depth is not None:
            files["depth"] = source_of(frame.depth), self.depth_format.read
        for kind, folder in self.map_kinds().items():
            files[kind] = self._map_source(kind, folder, index), image_io.read_teacher_map
        return files

    def _map_source(self, kind: str, folder: Path, index: int) -> Source:
        """Returns the file of a frame's teacher map, or the member of a tar shard that has it.

        Args:
            kind: The map's key in the result of `files`, such as `teacher_depth`.
            folder: The folder of maps of this kind.
            index: Index of the frame.
        """
        members = self.frames.maps.get(kind)
        return folder / self.map_name(index) if members is None else members[index]

    def map_kinds(self) -> dict[str, Path]:
        """Returns the folders of all teachers' cached maps: those of depth, then those of sigma.

        Returns:
            A dict of folders. Its keys are those of the maps in the result of `files`, such as
            `teacher_depth` or `teacher_sigma_1`.
        """
        kinds = {}
        for number, folder in enumerate(self.map_folders):
            kinds[_numbered("teacher_depth", number)] = folder.path
        for number, folder in enumerate(self.map_folders):
            if folder.sigma_scale_m is not None:
                kinds[_numbered("teacher_sigma", number)] = folder.path / teacher_maps.SIGMA
        return kinds

    def assemble(
        self,
        index: int,
        image: Tensor,
        depth: Tensor | None = None,
        **maps: Tensor,
    ) -> Sample:
        """Assembles a frame's sample from its decoded files, cropped to the dataset's window.

        Args:
            index: Index of the frame.
            image: (3, H, W) uint8.
            depth: (1, H, W) uint16 levels or float32 metres; None without ground truth.
            **maps: The teacher maps by their keys in `files`, (1, h, w) uint16 levels, of the size
                of the whole or of the cropped image; none without a teacher map.

        Raises:
            DataError: The sizes of image, depth and teacher map don't match, or the map was made
                from the image as stored, though the image has to be turned upright.
        """
        frame = self.frames[index]
        sample = self._cropped(self._whole(frame, image, depth), frame)
        if not maps:
            return sample
        # Reject teacher maps that were made from images as stored if this image has to be turned
        # upright by its EXIF orientation. The size check below doesn't detect all of them, since
        # some orientations (such as 180 degrees) keep height and width.
        for folder in self.map_folders:
            if folder.is_of_stored_pixels and self.is_turned(index):
                raise DataError(
                    f"{folder.path / self.map_name(index)}: made before images were turned "
                    f"upright, as the EXIF orientation of {frame.name} says; make the maps again "
                    f"in another folder with {console.command('cache_teacher')}",
                    "size",
                )
        rectangle = self._crop_rectangle(frame, *image.shape[-2:])
        cropped = {
            kind: self._cropped_map(index, kind, levels, image, rectangle)
            for kind, levels in maps.items()
        }
        return self._with_maps(sample, cropped)

    def map_name(self, index: int) -> str:
        """Returns the file name of a frame's teacher map, such as `2011_09_26_1.png`.

        It is the split's `map_prefix`, then the frame's name with `_` for `/` and the suffix
        `.png`.

        Args:
            index: Index of the frame.
        """
        return self.map_prefix + joined_name(self.frames[index].name)

    def image_sizes(self) -> list[tuple[int, int]]:
        """Returns (height, width) of every frame's image after cropping, in order.

        The headers of all image files are read, which takes 0.1 ms each.
        """
        return [self.image_size(index) for index in range(len(self))]

    def image_size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) of a frame's image after cropping, from its file's header.

        Args:
            index: Index of the frame.

        Raises:
            DataError: The file can't be read, or the image is smaller than the crop.
        """
        return self._crop_rectangle(self.frames[index], *self.file_size(index))[2:]

    def file_size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) of a frame's whole, upright image, without decoding it.

        Args:
            index: Index of the frame.

        Raises:
            DataError: If the file can't be read.
        """
        if self.frames.sizes is not None:
            height, width = self.frames.sizes[index].tolist()
            # Use the size in the shards' index, unless it is 0 because the image's header couldn't
            # be read.
            if height and width:
                return height, width
        return image_io.read_image_size(source_of(self.frames.images[index]))

    def _whole(self, frame: Frame, image: Tensor, depth: Tensor | None) -> Sample:
        """Returns the sample of a frame's whole image, without a teacher map.

        Args:
            frame: The frame.
            image: (3, H, W) uint8.
            depth: (1, H, W) uint16 levels or float32 metres; None without ground truth.

        Raises:
            DataError: Image and depth differ in size.
        """
        height, width = image.shape[-2:]
        # Without ground truth, expand a single zero to the image's size, which takes no memory.
        if depth is None:
            depth = torch.zeros(1, 1, 1, dtype=torch.uint16).expand(1, height, width)
        elif _size(depth) != _size(image):
            message = (
                f"{frame.depth}: {_size(depth)} does not fit its image {frame.name}, {_size(image)}"
            )
            raise DataError(message + _unturned(frame, image, depth), "size")
        # Set the dataset's invalid levels to 0 in uint16 depths. In floating-point depths they were
        # replaced by 0 when the file was read.
        invalid = self.depth_format.invalid
        if invalid and depth.dtype == torch.uint16:
            depth = image_io.without_levels(depth, invalid)
        inside = torch.ones(1, 1, 1, dtype=torch.bool).expand(1, height, width)
        units = 1.0
        if depth.dtype == torch.uint16 and self.depth_format.units_per_m:
            units = self.depth_format.units_per_m
        camera = _camera_matrix(frame.camera, height, width)
        return Sample(image, depth, inside, None, camera, frame.name, depth_units=units)

    def _cropped_map(
        self,
        index: int,
        kind: str,
        levels: Tensor,
        image: Tensor,
        rectangle: tuple[int, int, int, int],
    ) -> Tensor:
        """Returns a frame's teacher map, cropped as its image is.

        A map of the whole image's size is cropped with the image. A map of the cropped image's size
        is returned unchanged.

        Args:
            index: Index of the frame.
            kind: The map's key in the result of `files`, such as `teacher_depth`.
            levels: The map, (1, h, w) uint16.
            image: (3, H, W), the whole image.
            rectangle: (top, left, height, width) of the crop.

        Raises:
            DataError: The map has neither the size of the whole image nor that of the crop.
        """
        top, left, height, width = rectangle
        if _size(levels) == _size(image):
            return levels[:, top : top + height, left : left + width]
        if tuple(levels.shape[-2:]) == (height, width):
            return levels
        frame = self.frames[index]
        cropped = "" if self.window is None else f", {height}x{width} after {self.window.option}"
        source = self._map_source(kind, self.map_kinds()[kind], index)
        raise DataError(
            f"{source}: teacher map of {_size(levels)} for an image of {_size(image)}{cropped}"
            f"{_unturned(frame, image, levels)}; make the maps "
            "from the same images",
            "size",
        )

    def _with_maps(self, sample: Sample, maps: dict[str, Tensor]) -> Sample:
        """Returns a copy of a cropped sample with its teacher maps, stacked as `teacher_depth`.

        Args:
            sample: The sample without teacher maps.
            maps: The maps by their keys in `files`, (1, H, W) uint16 levels of the sample's size.
                Of several maps any may be missing; its plane is 0, i.e. invalid.
        """
        scales = {}
        for number, folder in enumerate(self.map_folders):
            scales[_numbered("teacher_depth", number)] = folder.full_scale_m
        with_sigma = any(folder.sigma_scale_m is not None for folder in self.map_folders)
        for number, folder in enumerate(self.map_folders if with_sigma else ()):
            # If another teacher has sigma maps, a teacher without them gets a plane of sigmas that
            # is 0, i.e. unknown. Any scale fits such a plane; use 1.
            scales[_numbered("teacher_sigma", number)] = folder.sigma_scale_m or 1.0
        units = tuple(image_io.TEACHER_MAP_LEVELS / scale for scale in scales.values())
        if len(scales) == 1:
            (levels,) = maps.values()
            return sample._replace(teacher_depth=levels, teacher_units=units[0])
        nothing = torch.zeros(1, *sample.image.shape[-2:], dtype=torch.uint16)
        return sample._replace(
            teacher_depth=torch.cat([maps.get(kind, nothing) for kind in scales]),
            teacher_units=units,
            sigma_planes=len(self.map_folders) if with_sigma else 0,
        )

    def _cropped(self, sample: Sample, frame: Frame) -> Sample:
        """Returns the sample of a whole image, cropped to `self.window`.

        Args:
            sample: The sample.
            frame: The sample's frame, for the error message.
        """
        return crop_window(sample, *self._crop_rectangle(frame, *sample.image.shape[-2:]))

    def _crop_rectangle(self, frame: Frame, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (top, left, height, width) of the crop `self.window` in an image of some size.

        Args:
            frame: The image's frame, for the error message.
            height: Rows of the whole image.
            width: Columns of the whole image.

        Raises:
            DataError: The crop extends beyond the image.
        """
        if self.window is None:
            return 0, 0, height, width
        top, left, rows, columns = self.window.rectangle_in(height, width)
        if top < 0 or left < 0 or top + rows > height or left + columns > width:
            option = self.window.option
            raise DataError(
                f"{frame.image}: {height}x{width} is smaller than {option} asks for "
                f"({rows}x{columns} from row {top}, column {left}); set another {option}, or null",
                "size",
            )
        return top, left, rows, columns


def with_cameras(
    frames: Sequence[Frame], intrinsics: Intrinsics, root: Path
) -> tuple[FrameTable, list[str]]:
    """Returns the table of frames with the cameras that `data.intrinsics` gives, and log lines.

    Args:
        frames: The frames, each with the camera that the dataset itself knows, or None.
        intrinsics: The setting `data.intrinsics`; None keeps the dataset's own cameras.
        root: The data root.

    Raises:
        RecipeError: The setting isn't valid.
        DataError: The file of intrinsics can't be read, or an image has another aspect ratio than
            its intrinsics.
    """
    table = FrameTable.of(frames)
    cameras, notes = cameras_of(table, intrinsics, root)
    return table.with_cameras(cameras), notes


def joined_name(name: str) -> str:
    """Converts a frame's name to the file name of its teacher map, without the dataset's prefix.

    Args:
        name: The frame's name; for example, `2011_09_26/1.jpg` becomes `2011_09_26_1.png`.
    """
    return str(PurePosixPath(name.replace("/", "_")).with_suffix(".png"))


def data_root(root: str, content: str) -> Path:
    """Returns `data.root` as a path with `~` expanded.

    Args:
        root: The option's value.
        content: Description of the expected content, for the error message.

    Raises:
        DataError: The path isn't a folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        found = "a file, not a folder" if path.exists() else "no folder"
        raise DataError(
            f"data.root: {found} at {path}; put {content} there or say --set data.root=FOLDER"
        )
    return path


def _camera_matrix(camera: Camera | None, height: int, width: int) -> Tensor:
    """Returns the (3, 3) float32 matrix of a camera in pixels.

    Args:
        camera: The camera; for None (unknown), the focal lengths and the principal point in the
            matrix are NaN.
        height: Rows of the image, for a principal point at its centre.
        width: Columns of the image.
    """
    if camera is None:
        focal_x = focal_y = centre_x = centre_y = float("nan")
    else:
        focal_x, focal_y, centre_x, centre_y = camera
        centre_x = (width - 1) / 2 if centre_x is None else centre_x
        centre_y = (height - 1) / 2 if centre_y is None else centre_y
    return torch.tensor(
        [[focal_x, 0, centre_x], [0, focal_y, centre_y], [0, 0, 1]], dtype=torch.float32
    )


def _numbered(kind: str, number: int) -> str:
    return kind if number == 0 else f"{kind}_{number}"


def _unturned(frame: Frame, image: Tensor, other: Tensor) -> str:
    """Returns the part of an error message that explains a wrong size by EXIF orientation.

    It is empty unless the depth map or teacher map has the size of the image as stored, i.e. before
    the image was turned upright.

    Args:
        frame: The frame.
        image: (3, H, W), the frame's upright image.
        other: (1, h, w), the frame's depth map or teacher map, of another size.
    """
    exif_orientation = orientation.orientation_in(source_of(frame.image))
    if exif_orientation == orientation.UPRIGHT or other.shape[-2:] != image.shape[-2:][::-1]:
        return ""
    return (
        " once upright: it fits the pixels as stored, which the image's EXIF orientation "
        f"({exif_orientation}) turns; turn it likewise, or remove the "
        "orientation from the image's EXIF"
    )


def _size(tensor: Tensor) -> str:
    """Returns a tensor's size as "HEIGHTxWIDTH", for messages.

    Args:
        tensor: (..., height, width).
    """
    return "x".join(map(str, tensor.shape[-2:]))


def listed_frames(dataset: torch.utils.data.Dataset) -> FrameTable | tuple[()]:
    """Returns the table of a dataset's frames, i.e. their names, files and cameras.

    Args:
        dataset: The dataset. The result is an empty tuple if it isn't a `Frames`: the cameras of
            other datasets are known only once a frame is read.
    """
    return dataset.frames if isinstance(dataset, Frames) else ()
