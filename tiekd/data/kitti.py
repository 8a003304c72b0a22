"""KITTI in the published layout: split lines `input ground_truth focal` below a root with `input/` and `gt_depth/`.

Ground truth is uint16 PNG, metres * 256. Frames are cut to the KB benchmark window (bottom, centred) as they are read.
Cached teacher maps are already cut and lie in one folder, named by the path below `input/` joined with `_`.
"""

from pathlib import Path

import torch

from tiekd.data import depth_io
from tiekd.data.splits import Frame, read_split
from tiekd.data.transforms import Sample, crop_window
from tiekd.errors import DataError, RecipeError

UNITS_PER_M = 256.0

# Colour camera 2 of each recording day: focal length and principal point in pixels (KITTI raw calibration files).
_CALIBRATION = {
    "2011_09_26": (721.5377, 609.5593, 172.854),
    "2011_09_28": (707.0493, 604.0814, 180.5066),
    "2011_09_29": (718.3351, 600.3891, 181.5122),
    "2011_09_30": (707.0912, 601.8873, 183.1104),
    "2011_10_03": (718.856, 607.1928, 185.2157),
}


class Kitti(torch.utils.data.Dataset):
    """Frames of a split as `Sample`s with uint8 images, cut to `kb_crop`.

    root: folder with `input/` and `gt_depth/`. split: "train" or "val", which picks `train_split` or `val_split`
    (below root, or an absolute path). kb_crop: [height, width] of the window, without it whole frames. maps: folder of
    cached teacher maps (below root, or absolute), read for training frames only. needs_ground_truth: skip frames whose
    line says `None` (`num_skipped` counts them). Raises DataError for missing files, malformed lines and when no frame
    is left.
    """

    def __init__(
        self,
        root: str,
        split: str,
        max_depth: float,
        needs_ground_truth: bool = True,
        train_split: str = "kitti_eigen_train.txt",
        val_split: str = "kitti_eigen_test.txt",
        kb_crop: tuple[int, int] | None = None,
        maps: str | None = None,
    ):
        self.root, self.max_depth, self.kb_crop = Path(root).expanduser(), max_depth, kb_crop
        if kb_crop is not None and min(kb_crop) < 1:
            raise RecipeError(f"data.kb_crop: got {kb_crop}; it must be [height, width] in pixels, or null for none")
        if not self.root.is_dir():
            found = "a file, not a folder" if self.root.exists() else "no folder"
            raise DataError(f"data.root: {found} at {self.root}; put KITTI there or say --set data.root=FOLDER")
        self.maps = self.root / maps if maps and split == "train" else None
        if self.maps is not None and not self.maps.is_dir():
            raise DataError(f"teacher.maps: no folder at {self.maps}; make the maps or use teacher.recipe")
        split_file = self.root / (train_split if split == "train" else val_split)
        frames = read_split(split_file)
        self.frames = [f for f in frames if f.ground_truth is not None] if needs_ground_truth else frames
        self.num_skipped = len(frames) - len(self.frames)
        if not self.frames:
            raise DataError(f"{split_file}: none of its {len(frames)} frames has ground truth; use another split file")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        image = depth_io.read_image(self.root / "input" / frame.image)
        height, width = image.shape[-2:]
        if frame.ground_truth is None:
            depth = torch.zeros(1, height, width)
        else:
            path = self.root / "gt_depth" / frame.ground_truth
            depth = depth_io.read_depth_png(path, UNITS_PER_M)
            if depth.shape[-2:] != image.shape[-2:]:
                raise DataError(f"{path}: {_size(depth)} does not fit its picture {frame.image}, {_size(image)}")
        inside = torch.ones(1, height, width, dtype=torch.bool)
        sample = Sample(image, depth, inside, None, self._intrinsics(frame, height, width), frame.image)
        if self.kb_crop is not None:
            crop_height, crop_width = self.kb_crop
            if crop_height > height or crop_width > width:
                raise DataError(
                    f"{self.root / 'input' / frame.image}: {_size(image)} is smaller than data.kb_crop "
                    f"{crop_height}x{crop_width}; set a smaller data.kb_crop"
                )
            sample = crop_window(sample, height - crop_height, (width - crop_width) // 2, crop_height, crop_width)
        return sample if self.maps is None else sample._replace(teacher_depth=self._teacher_map(frame, sample))

    def _teacher_map(self, frame: Frame, sample: Sample) -> torch.Tensor:
        path = self.maps / frame.image.replace("/", "_")
        depth = depth_io.read_teacher_map(path, self.max_depth)
        if depth.shape[-2:] != sample.image.shape[-2:]:
            raise DataError(
                f"{path}: teacher map of {_size(depth)} for a picture of {_size(sample.image)} after data.kb_crop; "
                "make the maps with the same crop"
            )
        return depth

    def _intrinsics(self, frame: Frame, height: int, width: int) -> torch.Tensor:
        focal, centre_x, centre_y = _CALIBRATION.get(frame.image.split("/")[0], (0.0, 0.0, 0.0))
        if abs(focal - frame.focal) > 0.01:  # a resized or rendered picture: the line's focal length rules
            focal, centre_x, centre_y = frame.focal, (width - 1) / 2, (height - 1) / 2
        return torch.tensor([[focal, 0, centre_x], [0, focal, centre_y], [0, 0, 1]], dtype=torch.float32)


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape[-2:]))


build = Kitti
