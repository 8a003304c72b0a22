"""Makes a relative teacher's output metric: fits it, image by image, to metric depth, the anchor.

The anchor is the ground truth of the batch, or the depth of a metric teacher of the project. Not
covered: the fit itself (anchor.py), and anchors from outside the project.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.config.build import build
from tiekd.config.teacher_node import TeacherNode
from tiekd.data.batch import Batch
from tiekd.errors import TeacherError
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.outputs.anchor import Fit, apply, fit
from tiekd.teachers.outputs.output_kind import OutputKind

GROUND_TRUTH = "ground_truth"


class Quality(NamedTuple):
    """The fit of one image's relative output, with the image's name.

    Attributes:
        name: The name of the image.
        fit: The scale and shift that make the output metric, and the measures of their quality.
        beyond: The fraction of the pixels whose depth is `max_depth_m` or more.
    """

    name: str
    fit: Fit
    beyond: float

    def node(self) -> dict:
        """Returns the attributes as a dict for a line of JSON.

        The keys are `image` (the name), the fields of `fit`, whose `reason` is "" for a good fit,
        and `beyond`.
        """
        return {"image": self.name, **asdict(self.fit), "beyond": round(self.beyond, 4)}


class Anchor:
    """A source of metric depth, to which the relative output of a teacher is fitted.

    Attributes:
        teacher: Function from a batch to the metric depth, (B, 1, H, W) float32, metres, 0 in
            pixels without a depth.
        description: "ground_truth", or the description of the metric teacher.
        max_depth_m: The largest depth, in metres. Farther depths aren't used in a fit, and a fitted
            depth is at most this.
    """

    def __init__(
        self,
        teacher: Callable[[Batch], Tensor],
        description: str | dict,
        max_depth_m: float,
    ):
        self.teacher, self.description, self.max_depth_m = teacher, description, max_depth_m

    def metres(
        self, values: Tensor, depth: Tensor, output_kind: OutputKind, names: Sequence[str]
    ) -> tuple[Tensor, list[Quality]]:
        """Converts relative outputs to metres, by a fit of each image to its metric depth.

        Args:
            values: (B, 1, H, W) float32, the relative outputs; NaN in pixels without an output.
            depth: (B, 1, H, W) float32, metres, the depth that `teacher` returned for these images;
                0 in pixels without a depth.
            output_kind: The kind of output that `values` are.
            names: The names of the images.

        Returns:
            Depth, (B, 1, H, W) float32, metres, 0 everywhere in an image whose fit isn't good; and
            a list with the fit of each image as a `Quality`.
        """
        depths, qualities = [], []
        for value, truth, name in zip(values, depth, names, strict=True):
            found = fit(value[0], truth[0], output_kind, max_depth_m=self.max_depth_m)
            metric, beyond = apply(value, found, output_kind, self.max_depth_m)
            depths.append(metric)
            qualities.append(Quality(name, found, float(beyond.float().mean())))
        return torch.stack(depths), qualities


def anchor_of(node: str | dict | None, device: torch.device, max_depth_m: float) -> Anchor | None:
    """Builds the anchor that the key `teacher.anchor` of a recipe describes.

    Args:
        node: The key's value: "ground_truth", a mapping that describes a metric teacher, or None.
        device: The device on which a metric teacher runs.
        max_depth_m: The largest depth that the student predicts, in metres.

    Returns:
        The anchor; None if `node` is None.

    Raises:
        TeacherError: The value isn't allowed, or the metric teacher can't be built or isn't metric.
    """
    if node is None:
        return None
    if node == GROUND_TRUTH:
        return Anchor(GroundTruth(), GROUND_TRUTH, max_depth_m)
    if not isinstance(node, dict) or TeacherNode(node).kind is None:
        raise TeacherError(
            f"teacher.anchor: got {node!r:.80}; it must be ground_truth, or a metric teacher of "
            "the project as {name: huggingface, model: ...}"
        )
    TeacherNode(node, "teacher.anchor").check()
    if TeacherNode(node).kind == "stereo":
        raise TeacherError(
            "teacher.anchor: stereo reads image pairs by itself and can't be an anchor; use a "
            "metric network, or ground_truth"
        )
    if node.get("sigma") is not None:
        raise TeacherError(
            "teacher.anchor.sigma: an anchor gives the scale alone, and no sigma is learned from "
            "it; leave it out"
        )
    context = {"run_device": device, "max_depth_m": max_depth_m}
    try:
        teacher = build(node, "tiekd.teachers", "teacher.anchor", **context)
    except TeacherError as error:
        # The anchor was built like any teacher, so the message names keys such as `teacher.model`.
        # Change them to `teacher.anchor.model`.
        place, _, rest = str(error).partition("teacher.")
        raise TeacherError(f"{place}teacher.anchor.{rest}" if rest else str(error)) from None
    return Anchor(teacher, teacher.description, max_depth_m)
