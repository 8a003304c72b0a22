"""A model of Depth Anything 3 as the teacher, run by its own package `depth_anything_3`.

DA3METRIC gives canonical depth: metres = output * f / 300, where f is the focal length in pixels of
the resized image that the network gets. DA3NESTED gives metres. The depth of other models is
relative, and the recipe's `output` says what is unknown about it, such as a scale. Pixels that the
network takes for sky get the student's largest depth; they are not marked as unknown. The package
itself chooses a half precision. Not covered: camera poses, and several views of one scene; each
image is treated as a separate scene.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tiekd.errors import TeacherError
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.cameras import FOCAL_NEEDED, focal_of
from tiekd.teachers.outputs.model_place import ModelPlace, import_package
from tiekd.teachers.outputs.output_kind import OUTPUT_KINDS
from tiekd.teachers.outputs.stated import stated_or_given
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, teacher_of

# For models with a known kind of output: the beginning of the model's name in its config, and the
# kind of output, a key of OUTPUT_KINDS (teachers/outputs/output_kind.py).
_STATED = {"da3metric": "canonical", "da3nested": "metres"}


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: depth_anything_3}`.

    Attributes:
        model: The path of the model's folder, or the model's ID on the Hugging Face hub.
        output: The kind of the output, a key of OUTPUT_KINDS (teachers/outputs/output_kind.py).
            Needed for models other than DA3METRIC and DA3NESTED.
        revision: The branch, tag or commit of the model on the hub; None for a folder or `main`.
        resolution: The length of the longer side, in pixels, to which the package resizes an image;
            rounded to a multiple of the network's patch size.
        anchor: The source of metric depth to which a relative output is fitted: "ground_truth", or
            a mapping that describes a metric teacher. None for a metric output.
        flip: True to average the output with that for the mirrored image.
        batch_size: The number of images in one call; the network processes them one after the
            other.
        device: The model's device; None for the rank's own device.
        sigma: The standard deviation of the error of each pixel's depth: a number of metres, or a
            mapping that names its source (teachers/outputs/sigma.py). None for depth alone.
    """

    model: Path
    output: str | None = None
    revision: str | None = None
    resolution: int = 504
    anchor: str | dict | None = None
    flip: bool = False
    batch_size: int = 4
    device: str | None = None
    sigma: float | dict | None = None


class DepthAnything3Predictor:
    """A model of Depth Anything 3 with its preprocessing, as a `Predictor` (outputs/teacher.py)."""

    max_depth_m = None

    def __init__(self, options: Options, device: torch.device):
        if options.resolution < 14:
            raise TeacherError(
                f"teacher.resolution: got {options.resolution}; it must be pixels, from 14, the "
                "network's patch"
            )
        package = import_package("depth_anything_3.api", "depth_anything_3")
        place = ModelPlace(options.model, options.revision)
        if not place.has("config.json"):
            raise TeacherError(f"teacher.model: {place} has no config.json; give a model's folder")
        model = place.loaded(package.DepthAnything3.from_pretrained, "the model can't be loaded")
        own_name = str(model.model_name)
        stated = next(
            (output_kind for name, output_kind in _STATED.items() if own_name.startswith(name)),
            None,
        )
        self.output_kind = stated_or_given(stated, options.output, f"{place} ({own_name})")
        self.needs_focal = OUTPUT_KINDS[self.output_kind].needs_focal
        self.without_focal = FOCAL_NEEDED if self.needs_focal else None
        self.model = model.to(device).eval().requires_grad_(False)
        self.resolution, self.device = options.resolution, device
        self.description = {
            "name": "depth_anything_3",
            "model": place.base_name,
            "architecture": own_name,
            "revision": options.revision,
            "licence": place.licence(),
            "package": "depth_anything_3",
            "resolution": options.resolution,
            "digest": digest.of_network(self.model),
        }

    def __call__(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Runs the network on images, and returns its depth and a mask of the sky.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels of the images; NaN for an
                unknown camera.

        Returns:
            An `Output` at the size of the images: `values` is the depth, `beyond` the mask of the
            sky or None.
        """
        own = images.shape[-2:]
        depths, skies, focals = [], [], []
        for image, matrix in zip(images, intrinsics, strict=True):
            # Pass the images singly, since the package treats a list of images as views of one
            # scene.
            found = self.model.inference(
                [image.permute(1, 2, 0).cpu().numpy()], process_res=self.resolution
            )
            depth = torch.as_tensor(found.depth, dtype=torch.float32)[:, None]
            seen = depth.shape[-2:]
            depths.append(interpolate(depth, own, mode="bilinear", align_corners=False))
            focals.append(focal_of(matrix[None], (seen[0] / own[0], seen[1] / own[1])))
            if found.sky is not None:
                sky = torch.as_tensor(found.sky, dtype=torch.float32)[:, None]
                skies.append(interpolate(sky, own, mode="nearest-exact") > 0.5)
        return Output(
            torch.cat(depths).to(images.device),
            beyond=torch.cat(skies).to(images.device) if skies else None,
            focal=torch.cat(focals) if self.needs_focal else None,
        )


def build(options: Options, run_device: torch.device, max_depth_m: float) -> FoundationTeacher:
    """Returns a `FoundationTeacher` that runs a model of Depth Anything 3.

    Args:
        options: The keys of the recipe's section `teacher`.
        run_device: This rank's device.
        max_depth_m: The largest depth that the student predicts, in metres.

    Raises:
        TeacherError: The package or the model is missing or can't be used.
    """
    return teacher_of(DepthAnything3Predictor, options, run_device, max_depth_m)
