"""Writes the files of a prediction: one folder per kind below --out, with the inputs' subfolders.

    depth/       16-bit PNG in the dataset's unit, as the `folder` dataset reads it; never 0
    colour/      PNG with a colour bar in metres; for a video one MP4
    raw/         NPY, (H, W) float32 metres
    points/      PLY, camera coordinates in metres, coloured
    confidence/  8-bit PNG, 255 for a probability of 1 that the true depth is within 10 %
                 (tiekd/models/confidence.py); with raw also NPY, (H, W) float32 from 0 to 1
    sigma/       with confidence: 16-bit PNG in the unit of depth/, the root of the expected squared
                 error; with raw also NPY, (H, W) float32 metres
    times/       CSV with time and flicker of each frame of a video

Each file is written atomically: it is complete or absent. Existing files are replaced only with
--overwrite, and inputs are never overwritten.
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
from tiekd.inference.student import Reading
from tiekd.visualization import pictures
from tiekd.visualization.depth_bar import with_bar

LARGEST_LEVEL = 65535
DEFAULT_UNITS_PER_M = 256.0


@dataclass(frozen=True)
class Outputs:
    """The kinds of files to write, and their settings.

    Attributes:
        folder: The folder that contains all outputs (--out).
        units_per_m: Number of levels per metre in the PNGs in depth/: a PNG's value is depth in
            metres times this number, rounded.
        max_depth: Depth at the far end of the colour scale, metres.
        raw: True to write raw/.
        points: True to write points/.
        confidence: True to write confidence/ and sigma/.
    """

    folder: Path
    units_per_m: float
    max_depth: float
    raw: bool = False
    points: bool = False
    confidence: bool = False

    def of(self, name: str) -> dict[str, Path]:
        """Returns a dict from kind, e.g. "depth" or "raw", to path, for an image's output files.

        Only the kinds that are to be written are included.

        Args:
            name: The image's `Input.name`.
        """
        # Map each kind of file that is enabled to its folder and suffix.
        places = {"depth": ("depth", ".png"), "colour": ("colour", ".png")}
        if self.raw:
            places["raw"] = "raw", ".npy"
        if self.points:
            places["points"] = "points", ".ply"
        if self.confidence:
            places["confidence"] = "confidence", ".png"
            places["sigma"] = "sigma", ".png"
        if self.confidence and self.raw:
            places["raw_confidence"] = "confidence", ".npy"
            places["raw_sigma"] = "sigma", ".npy"
        return {
            kind: self.folder / place / f"{name}{suffix}"
            for kind, (place, suffix) in places.items()
        }

    def of_video(self, name: str) -> dict[str, Path]:
        """Returns a dict from kind, e.g. "depth" or "times", to path, for a video's outputs.

        For "colour" and "times" the path is that of a file, for other kinds that of the folder with
        the frames' files.

        Args:
            name: The video's `Input.name`.
        """
        return {kind: path.parent for kind, path in self.of(f"{name}/0").items()} | {
            "colour": self.folder / "colour" / f"{name}.mp4",
            "times": self.folder / "times" / f"{name}.csv",
        }

    def check(self, inputs: Iterable[Input], overwrite: bool) -> None:
        """Checks that no output would overwrite an input, or an existing file.

        Args:
            inputs: The images and videos.
            overwrite: True to allow that existing files other than inputs are replaced.

        Raises:
            DataError: An output would overwrite an input, or, without `overwrite`, an existing
                file.
        """
        inputs = list(inputs)
        # Compare real paths, because an output path may be a symbolic link to an input.
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
        reading: Reading,
        camera: Camera | None = None,
        colour: bool = True,
    ) -> None:
        """Writes the output files of one image: those of the kinds that are to be written.

        Args:
            name: The image's `Input.name`.
            rgb: The image, (H, W, 3) uint8.
            reading: The predicted depth, confidence and sigma, each (H, W) float32 on the CPU;
                confidence and sigma are needed if confidence/ is written, and may otherwise be
                None.
            camera: The image's camera; needed if points/ is written.
            colour: False to leave out colour/, as for a frame of a video.

        Raises:
            DataError: If a file can't be written.
            OSError: If a folder can't be created.
        """
        files = self.of(name)
        depth = reading.depth.numpy()
        if not colour:
            del files["colour"]
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        # Write the depth map in any case, the other kinds only if they are enabled.
        write_depth_png(files["depth"], depth, self.units_per_m)
        if colour:
            write_image(files["colour"], self.coloured(depth))
        if self.raw:
            write_durably(files["raw"], _npy(depth))
        if self.points:
            write_durably(files["points"], encode_ply(depth, rgb, camera))
        if not self.confidence:
            return
        confidence, sigma = reading.confidence.numpy(), reading.sigma.numpy()
        write_image(files["confidence"], np.rint(confidence.clip(0, 1) * 255).astype(np.uint8))
        write_depth_png(files["sigma"], sigma, self.units_per_m)
        if self.raw:
            write_durably(files["raw_confidence"], _npy(confidence))
            write_durably(files["raw_sigma"], _npy(sigma))

    def remove_frames_from(self, name: str, count: int) -> None:
        """Removes the output files of frames that a video doesn't have any more.

        Args:
            name: The video's `Input.name`.
            count: Number of frames of the video. Files of frame `count` (counted from 0) and of
                later frames, which an earlier prediction of a longer video has left, are removed.
        """
        for path in self.of(f"{name}/0").values():
            # Remove files of frame `count` and later. Only names of at least six digits are those
            # of frames, as `predict_video` numbers them.
            for old in path.parent.glob(f"*{path.suffix}"):
                if re.fullmatch(r"\d{6,}", old.stem) and int(old.stem) >= count:
                    old.unlink()

    def coloured(self, depth: np.ndarray) -> np.ndarray:
        """Colours a depth map by depth, and appends a colour bar in metres at the right.

        Args:
            depth: (H, W) float, metres.

        Returns:
            (H, W + the bar's width, 3) uint8 RGB.
        """
        return with_bar(pictures.colourise(depth, self.max_depth), self.max_depth)


def units_of(data: dict, max_depth: float) -> float:
    """Returns the number of levels per metre in the depth PNGs that a prediction writes.

    It is `data.depth_unit` of the recipe if that is set; otherwise 256 for KITTI and 1000 for NYU;
    for other data 256, or fewer if 16 bits would not reach `max_depth`.

    Args:
        data: The recipe's section `data`; {} if the recipe has none.
        max_depth: The largest depth that the network predicts, in metres.

    Raises:
        RecipeError: `depth_unit` is out of range.
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
    # Use 256 levels per metre by default, or fewer if 65535 levels would not reach max_depth.
    return min(DEFAULT_UNITS_PER_M, LARGEST_LEVEL // max_depth or 1.0)


def parse_units(text: str | None, data: dict, max_depth: float) -> float:
    """Parses the option --depth-unit, the number of levels per metre in the depth PNGs.

    Args:
        text: The option's text, or None if it isn't given.
        data: The recipe's section `data`; {} if the recipe has none.
        max_depth: The largest depth that the network predicts, in metres.

    Returns:
        Levels per metre, a float. Without the option they are those of the recipe's dataset,
        `units_of(data, max_depth)`.

    Raises:
        RecipeError: The text isn't a number, or the number is out of range.
    """
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
    """Returns a line of text that states the number of levels per metre in the depth PNGs.

    If 16 bits can't hold depths up to `max_depth`, the text warns that larger depths are clamped.

    Args:
        units_per_m: Levels per metre.
        max_depth: The largest depth that the network predicts, in metres.
    """
    largest = LARGEST_LEVEL / units_per_m
    # Warn that depths beyond `largest` are stored as the largest level, 65535.
    cut = ""
    if largest < max_depth:
        cut = (
            f"; depths above {largest:.2f} m are stored as {largest:.2f} m, which data sets read "
            "as not measured"
        )
    return f"16-bit PNG, {units_per_m:g} levels a metre{cut}"


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float32, copy=False), allow_pickle=False)
    return file.getvalue()
