"""A model of MoGe as the teacher, run by its own package `moge`.

MoGe-2 outputs depth in metres, MoGe-1 depth up to an unknown scale. If the focal length of an image
is known, it replaces the field of view that the model estimates. The model's mask says for which
pixels it gives no depth, as in the sky; the teacher's depth is 0 there.
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

VERSIONS = ("v1", "v2")
WEIGHTS = "model.pt"


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: moge}`.

    Attributes:
        model: The path of a folder with the file model.pt, or the model's ID on the Hugging Face
            hub.
        version: The version of MoGe whose weights the model has, "v1" or "v2".
        output: The kind of the output. The model states it, so the key may be left out.
        revision: The branch, tag or commit of the model on the hub; None for a folder or `main`.
        resolution_level: The resolution at which the network works, from 0 (coarsest) to 9.
        precision: The precision of the network's forward pass, "fp32" or "fp16".
        anchor: The source of metric depth to which a relative output is fitted: "ground_truth", or
            a mapping that describes a metric teacher. None for a metric output.
        flip: True to average the output with that for the mirrored image.
        batch_size: The number of images that the model computes in one call.
        device: The model's device; None for the rank's own device.
        sigma: The standard deviation of the error of each pixel's depth: a number of metres, or a
            mapping that names its source (teachers/outputs/sigma.py). None for depth alone.
    """

    model: Path
    version: str = "v2"
    output: str | None = None
    revision: str | None = None
    resolution_level: int = 9
    precision: str = "fp32"
    anchor: str | dict | None = None
    flip: bool = False
    batch_size: int = 4
    device: str | None = None
    sigma: float | dict | None = None


class MoGePredictor:
    """A model of MoGe with its preprocessing, as a `Predictor` (outputs/teacher.py)."""

    max_depth_m, needs_focal = None, False
    without_focal = "MoGe takes its own estimate of the field of view for them"

    def __init__(self, options: Options, device: torch.device):
        if options.version not in VERSIONS:
            raise TeacherError(
                f"teacher.version: got {options.version!r}; allowed: {', '.join(VERSIONS)}"
            )
        if options.precision == "bf16":
            raise TeacherError("teacher.precision: got 'bf16'; moge has fp32 and fp16")
        if not 0 <= options.resolution_level <= 9:
            raise TeacherError(
                f"teacher.resolution_level: got {options.resolution_level}; it must be 0 to 9"
            )
        package = import_package(f"moge.model.{options.version}", "moge")
        place = ModelPlace(options.model, options.revision)
        if not place.has(WEIGHTS):
            raise TeacherError(f"teacher.model: {place} has no {WEIGHTS}, MoGe's weights")
        load = package.MoGeModel.from_pretrained
        if place.is_folder:
            self.model = place.loaded(lambda name, **_: load(Path(name) / WEIGHTS), _CANNOT)
        else:
            self.model = place.loaded(load, _CANNOT)
        # Without a head that predicts the scale, the model gives depth up to an unknown scale.
        is_metric = getattr(self.model, "scale_head", None) is not None
        stated = "metres" if is_metric else "depth_scale"
        self.output_kind = stated_or_given(stated, options.output, str(place))
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.options = options
        self.description = {
            "name": "moge",
            "model": place.base_name,
            "architecture": f"moge {options.version}",
            "revision": options.revision,
            "licence": place.licence(),
            "package": "moge",
            "precision": options.precision,
            "resolution_level": options.resolution_level,
            "digest": digest.of_network(self.model),
        }

    def __call__(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Runs the network on images, and returns its depth and a mask of valid pixels.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels of the images; NaN for an
                unknown camera.

        Returns:
            An `Output` at the size of the images: `values` is the depth, `valid` the mask of the
            pixels for which the network gives a depth, or None.
        """
        return by_camera(images, intrinsics, self._run)

    def _run(self, images: Tensor, intrinsics: Tensor | None) -> Output:
        fov_x = None
        if intrinsics is not None:
            focal_x = intrinsics[:, 0, 0].to(images.device)
            fov_x = 2 * torch.rad2deg(torch.atan(images.shape[-1] / (2 * focal_x)))
        found = self._infer(images, fov_x)
        mask = found.get("mask")
        return Output(found["depth"][:, None], None if mask is None else mask[:, None])

    def _infer(self, images: Tensor, fov_x: Tensor | None) -> dict[str, Tensor]:
        return self.model.infer(
            images.float() / 255,
            fov_x=fov_x,
            resolution_level=self.options.resolution_level,
            use_fp16=self.options.precision == "fp16",
        )

    def estimate_focal(self, images: Tensor) -> Tensor | None:
        """Returns the focal lengths of the cameras that the network estimates.

        Args:
            images: (B, 3, H, W) uint8, RGB.

        Returns:
            (B,) float32, (fx + fy) / 2 in pixels of the images.
        """
        found = self._infer(images, None)
        # MoGe states focal lengths as fractions of the image's width and height, so multiply by
        # these.
        return focal_of(found["intrinsics"], tuple(images.shape[-2:]))


_CANNOT = "the model can't be loaded"


def build(options: Options, run_device: torch.device, max_depth_m: float) -> FoundationTeacher:
    """Returns a `FoundationTeacher` that runs a model of MoGe.

    Args:
        options: The keys of the recipe's section `teacher`.
        run_device: This rank's device.
        max_depth_m: The largest depth that the student predicts, in metres.

    Raises:
        TeacherError: The package or the model is missing or can't be used.
    """
    return teacher_of(MoGePredictor, options, run_device, max_depth_m)
