"""A model of UniDepth V2 as the teacher, run by its own package `unidepth`.

Its output is depth in metres. The model uses an image's camera matrix if it is known, and estimates
it otherwise.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tiekd.errors import TeacherError
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.cameras import by_camera, focal_of
from tiekd.teachers.outputs.model_place import ModelPlace, import_package
from tiekd.teachers.outputs.stated import stated_or_given
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, teacher_of


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: unidepth}`.

    Attributes:
        model: The path of the model's folder, or the model's ID on the Hugging Face hub.
        output: The kind of the output. It is always "metres", so the key may be left out.
        revision: The branch, tag or commit of the model on the hub; None for a folder or `main`.
        resolution_level: The resolution at which the network works, from 0 (coarsest) to 9.
        anchor: Must be None, as the output is metric.
        flip: True to average the output with that for the mirrored image.
        batch_size: The number of images that the model computes in one call.
        device: The model's device; None for the rank's own device.
        sigma: The standard deviation of the error of each pixel's depth: a number of metres, or a
            mapping that names its source (teachers/outputs/sigma.py). None for depth alone.
    """

    model: Path
    output: str | None = None
    revision: str | None = None
    resolution_level: int = 9
    anchor: str | dict | None = None
    flip: bool = False
    batch_size: int = 4
    device: str | None = None
    sigma: float | dict | None = None


class UniDepthPredictor:
    """A model of UniDepth V2 with its preprocessing, as a `Predictor` (outputs/teacher.py)."""

    max_depth_m, needs_focal = None, False
    without_focal = "UniDepth takes its own estimate of the camera for them"

    def __init__(self, options: Options, device: torch.device):
        if not 0 <= options.resolution_level <= 9:
            raise TeacherError(
                f"teacher.resolution_level: got {options.resolution_level}; it must be 0 to 9"
            )
        package = import_package("unidepth.models", "unidepth")
        place = ModelPlace(options.model, options.revision)
        if not place.has("config.json"):
            raise TeacherError(f"teacher.model: {place} has no config.json; give a model's folder")
        model = place.loaded(package.UniDepthV2.from_pretrained, "the model can't be loaded")
        self.output_kind = stated_or_given("metres", options.output, str(place))
        model.resolution_level = options.resolution_level
        self.model = model.to(device).eval().requires_grad_(False)
        self.description = {
            "name": "unidepth",
            "model": place.base_name,
            "architecture": "unidepth v2",
            "revision": options.revision,
            "licence": place.licence(),
            "package": "unidepth",
            "resolution_level": options.resolution_level,
            "digest": digest.of_network(self.model),
        }

    def __call__(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Runs the network on images, with their cameras where these are known.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels of the images; NaN for an
                unknown camera.

        Returns:
            An `Output` whose `values` are depth in metres at the size of the images.
        """
        return by_camera(images, intrinsics, self._run)

    def _run(self, images: Tensor, intrinsics: Tensor | None) -> Output:
        camera = None if intrinsics is None else intrinsics.to(images.device)
        return Output(self.model.infer(images, camera)["depth"])

    def estimate_focal(self, images: Tensor) -> Tensor | None:
        """Returns the focal lengths of the cameras that the network estimates.

        Args:
            images: (B, 3, H, W) uint8, RGB.

        Returns:
            (B,) float32, (fx + fy) / 2 in pixels of the images.
        """
        return focal_of(self.model.infer(images, None)["intrinsics"])


def build(options: Options, run_device: torch.device, max_depth_m: float) -> FoundationTeacher:
    """Returns a `FoundationTeacher` that runs a model of UniDepth V2.

    Args:
        options: The keys of the recipe's section `teacher`.
        run_device: This rank's device.
        max_depth_m: The largest depth that the student predicts, in metres.

    Raises:
        TeacherError: The package or the model is missing or can't be used.
    """
    return teacher_of(UniDepthPredictor, options, run_device, max_depth_m)
