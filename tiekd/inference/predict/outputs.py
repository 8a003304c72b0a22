"""Writes the files of a prediction: one folder per kind below --out, mirroring the inputs' tree.

    depth/       16-bit PNG in the dataset's unit, as the `folder` dataset reads it; never 0
    colour/      PNG with a scale in metres; of a video one MP4
    raw/         NPY, (H, W) float32 metres
    points/      PLY, camera coordinates in metres, coloured
    confidence/  8-bit PNG, 255 for certain; with raw also NPY, (H, W) float32 from 0 to 1
    times/       CSV of a video's frames

Every file is whole or absent. Existing files are kept unless the user says otherwise, and inputs
are never overwritten.
"""

import importlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiekd.config.schema import check_value
from tiekd.data.frames import Camera
from tiekd.data.image_io import write_depth_png, write_durably, write_image
from tiekd.errors import DataError, RecipeError
from tiekd.inference.predict.inputs import Input
from tiekd.inference.predict.point_cloud import encode_ply
from tiekd.visualization import pictures
from tiekd.visualization.depth_bar import with_bar

LARGEST_LEVEL = 65535
DEFAULT_UNITS_PER_M = 256.0


@dataclass(frozen=True)
class Outputs:
    """The kinds of files to write, and their settings.

    Attributes:
        folder: The folder of all outputs.
        units_per_m: Levels of depth/ per metre.
        max_depth: Metres at the far end of the colours.
        raw: Write raw/.
        points: Write points/.
        confidence: Write confidence/.
    """

    folder: Path
    units_per_m: float
    max_depth: float
    raw: bool = False
    points: bool = False
    confidence: bool = False

    def of(self, name: str) -> dict[str, Path]:
        """Returns the files of an image by kind."""
        # Folder and suffix of each kind.
        places = {"depth": ("depth", ".png"), "colour": ("colour", ".png")}
        if self.raw:
            places["raw"] = "raw", ".npy"
        if self.points:
            places["points"] = "points", ".ply"
        if self.confidence:
            places["confidence"] = "confidence", ".png"
        if self.confidence and self.raw:
            places["raw_confidence"] = "confidence", ".npy"
        return {
            kind: self.folder / place / f"{name}{suffix}"
            for kind, (place, suffix) in places.items()
        }

    def of_video(self, name: str) -> dict[str, Path]:
        """Returns the files of a video, and for each other kind the folder of its frames."""
        return {kind: path.parent for kind, path in self.of(f"{name}/0").items()} | {
            "colour": self.folder / "colour" / f"{name}.mp4",
            "times": self.folder / "times" / f"{name}.csv",
        }

    def check(self, inputs: Iterable[Input], overwrite: bool) -> None:
        """Checks that no input, and without `overwrite` no existing file, would be overwritten.

        Args:
            inputs: The inputs.
            overwrite: Allow existing files to be replaced.

        Raises:
            DataError: If one would be.
        """
        inputs = list(inputs)
        # Compare real paths: an output may be an input by way of a link.
        sources = {os.path.realpath(item.path) for item in inputs}
        there: list[Path] = []
        for item in inputs:
            files = self.of_video(item.name) if item.is_video else self.of(item.name)
            for path in dict.fromkeys(files.values()):
                if os.path.realpath(path) in sources:
                    raise DataError(
                        f"{path}: is an input, and would be written to; give another --out"
                    )
                if path.exists():
                    there.append(path)
        if there and not overwrite:
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise DataError(
                f"{there[0]}{more} exist already; give another --out, or --overwrite to replace "
                "them"
            )

    def write(
        self,
        name: str,
        rgb: np.ndarray,
        depth: np.ndarray,
        confidence: np.ndarray | None = None,
        camera: Camera | None = None,
        colour: bool = True,
    ) -> None:
        """Writes the files of one image.

        Args:
            name: Name of the outputs.
            rgb: (H, W, 3) uint8.
            depth: (H, W) float32, metres.
            confidence: (H, W) float32, 0 to 1, if that kind is written.
            camera: The camera, if points are written.
            colour: Write colour/ too.

        Raises:
            DataError: If a file can't be written.
            OSError: If a file can't be written.
        """
        files = self.of(name)
        if not colour:
            del files["colour"]
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        # The depth map is always written, the other kinds if they are wanted.
        write_depth_png(files["depth"], depth, self.units_per_m)
        if colour:
            write_image(files["colour"], self.coloured(depth))
        if self.raw:
            write_durably(files["raw"], _npy(depth))
        if self.points:
            write_durably(files["points"], encode_ply(depth, rgb, camera))
        if self.confidence:
            write_image(files["confidence"], np.rint(confidence.clip(0, 1) * 255).astype(np.uint8))
        if self.confidence and self.raw:
            write_durably(files["raw_confidence"], _npy(confidence))

    def remove_frames_from(self, name: str, count: int) -> None:
        """Removes files of frames from number `count` on, left by a longer video of this name."""
        for path in self.of(f"{name}/0").values():
            # Only names that a video's frames have.
            for old in path.parent.glob(f"*{path.suffix}"):
                if re.fullmatch(r"\d{6,}", old.stem) and int(old.stem) >= count:
                    old.unlink()

    def coloured(self, depth: np.ndarray) -> np.ndarray:
        """Converts (H, W) metres to (H, W + bar, 3) uint8."""
        return with_bar(pictures.colourise(depth, self.max_depth), self.max_depth)


def units_of(data: dict, max_depth: float) -> float:
    """Returns the levels of a depth PNG per metre in a recipe's dataset.

    They are 256 in KITTI's, 1000 in NYU's, and a folder's `depth_unit`. Without any, they are
    KITTI's, or as many as 16 bits hold up to `max_depth` metres.

    Raises:
        RecipeError: If `depth_unit` is out of range.
    """
    name = data.get("name", "")
    unit = data.get("depth_unit")
    if unit is not None:
        check_value(unit, float, "data.depth_unit")
        if not 1 <= unit <= LARGEST_LEVEL:
            raise RecipeError(
                f"data.depth_unit: got {unit}; it is how many levels make a metre, such as 1000 or "
                "256"
            )
        return float(unit)
    if name in ("kitti", "nyu"):
        return importlib.import_module(f"tiekd.data.datasets.{name}").UNITS_PER_M
    # A fine unit, unless 16 bits would not reach the network's range.
    return min(DEFAULT_UNITS_PER_M, LARGEST_LEVEL // max_depth or 1.0)


def parse_units(text: str | None, data: dict, max_depth: float) -> float:
    """Returns the option --depth-unit, else `units_of`. Raises RecipeError."""
    if text is None:
        return units_of(data, max_depth)
    try:
        units = float(text)
    except ValueError:
        units = 0.0
    if not 0 < units <= LARGEST_LEVEL:
        raise RecipeError(
            f"--depth-unit: got {text!r}; it is how many levels make a metre, such as 1000 or 256"
        )
    return units


def in_words(units_per_m: float, max_depth: float) -> str:
    """Describes depth/, and warns if its unit can't hold the network's range."""
    largest = LARGEST_LEVEL / units_per_m
    # Depth beyond the largest level saturates.
    cut = ""
    if largest < max_depth:
        cut = f"; what is beyond {largest:.2f} m is stored as that, which data sets read as none"
    return f"16-bit PNG, {units_per_m:g} levels a metre{cut}"


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float32, copy=False), allow_pickle=False)
    return file.getvalue()
