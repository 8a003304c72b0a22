"""A model of UniDepth V2 as the teacher, over its own package `unidepth`.

It gives metres, takes a known camera, and estimates one where none is known.
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


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: unidepth}`.

    Attributes:
        model: A model's folder, or a hub ID.
        output: What the output means: metres, so it may be left out.
        revision: Branch, tag or commit of a hub ID.
        resolution_level: 0 to 9, the detail that the network works at; 9 is its finest.
        anchor: What makes a relative output metric: ground_truth, or a metric teacher's node.
        flip: Averages with the mirrored image's output.
        batch_size: Images that go through the model at once.
        device: Of the model; None for the rank's own.
    """

    model: Path
    output: str | None = None
    revision: str | None = None
    resolution_level: int = 9
    anchor: str | dict | None = None
    flip: bool = False
    batch_size: int = 4
    device: str | None = None


class UniDepthPredictor:
    """A model of UniDepth V2; see `Predictor`."""

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
        self.meaning = stated_or_given("metres", options.output, str(place))
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
        """Returns depth."""
        return by_camera(images, intrinsics, self._run)

    def _run(self, images: Tensor, intrinsics: Tensor | None) -> Output:
        camera = None if intrinsics is None else intrinsics.to(images.device)
        return Output(self.model.infer(images, camera)["depth"])


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
    return FoundationTeacher(UniDepthPredictor(options, how.device), how, anchor)
