"""A model of MoGe as the teacher, over its own package `moge`.

MoGe-2 gives metres, MoGe-1 depth up to a scale. A known focal length replaces the field of view
that it estimates. Its mask says where it knows nothing, as in the sky, and depth is 0 there.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tiekd.errors import TeacherError
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.anchoring import anchor_of
from tiekd.teachers.outputs.cameras import by_camera
from tiekd.teachers.outputs.model_place import ModelPlace, import_package
from tiekd.teachers.outputs.stated import stated_or_given
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, running

VERSIONS = ("v1", "v2")
WEIGHTS = "model.pt"


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: moge}`.

    Attributes:
        model: A folder that holds model.pt, or a hub ID.
        version: "v1" or "v2": which of the package's models the weights are of.
        output: What the output means; read from the model, so it may be left out.
        revision: Branch, tag or commit of a hub ID.
        resolution_level: 0 to 9, the detail that the network works at; 9 is its finest.
        precision: "fp32" or "fp16".
        anchor: What makes a relative output metric: ground_truth, or a metric teacher's node.
        flip: Averages with the mirrored image's output.
        batch_size: Images that go through the model at once.
        device: Of the model; None for the rank's own.
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


class MoGePredictor:
    """A model of MoGe; see `Predictor`."""

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
        # Without a head for the scale, depth has an unknown one.
        is_metric = getattr(self.model, "scale_head", None) is not None
        stated = "metres" if is_metric else "depth_scale"
        self.meaning = stated_or_given(stated, options.output, str(place))
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
        """Returns depth, and where the network knows it."""
        return by_camera(images, intrinsics, self._run)

    def _run(self, images: Tensor, intrinsics: Tensor | None) -> Output:
        fov_x = None
        if intrinsics is not None:
            focal_x = intrinsics[:, 0, 0].to(images.device)
            fov_x = 2 * torch.rad2deg(torch.atan(images.shape[-1] / (2 * focal_x)))
        found = self.model.infer(
            images.float() / 255,
            fov_x=fov_x,
            resolution_level=self.options.resolution_level,
            use_fp16=self.options.precision == "fp16",
        )
        mask = found.get("mask")
        return Output(found["depth"][:, None], None if mask is None else mask[:, None])


_CANNOT = "the model can't be loaded"


def build(options: Options, run_device: torch.device, max_depth_m: float) -> FoundationTeacher:
    """Builds the teacher.

    Args:
        options: The recipe's keys.
        run_device: This rank's device.
        max_depth_m: The student's range in metres.

    Raises:
        TeacherError: The package or the model is missing or unfit.
    """
    how = running(options, run_device, max_depth_m)
    anchor = anchor_of(options.anchor, how.device, max_depth_m)
    return FoundationTeacher(MoGePredictor(options, how.device), how, anchor)
