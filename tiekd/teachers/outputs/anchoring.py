"""Makes a relative teacher's maps metric: builds what anchors them, and fits image by image.

The anchor is the ground truth of the batch, or a metric teacher of the project. Left out: the fit
itself (anchor.py), and anchors from outside the project.
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
from tiekd.teachers.outputs.meaning import Meaning

GROUND_TRUTH = "ground_truth"


class Quality(NamedTuple):
    """The fit of one image.

    Attributes:
        name: Of the image.
        fit: Scale, shift, and how well they are known.
        beyond: Share of the pixels that lie beyond the largest depth.
    """

    name: str
    fit: Fit
    beyond: float

    def node(self) -> dict:
        """Returns the entries of a line of JSON; `reason` is empty for a good fit."""
        return {"image": self.name, **asdict(self.fit), "beyond": round(self.beyond, 4)}


class Anchor:
    """Gives the metric depth that relative outputs are fitted to.

    Attributes:
        teacher: From a batch to (B, 1, H, W) float32 metres, 0 where there is none.
        description: "ground_truth", or the metric teacher's description.
        max_depth_m: Farther depths aren't used, and are beyond.
    """

    def __init__(
        self,
        teacher: Callable[[Batch], Tensor],
        description: str | dict,
        max_depth_m: float,
    ):
        self.teacher, self.description, self.max_depth_m = teacher, description, max_depth_m

    def metres(
        self, values: Tensor, depth: Tensor, meaning: Meaning, names: Sequence[str]
    ) -> tuple[Tensor, list[Quality]]:
        """Fits each image by itself.

        Args:
            values: (B, 1, H, W) float32, relative; NaN where the network knows nothing.
            depth: (B, 1, H, W) float32, metres, the anchor; 0 where there is none.
            meaning: Of the values.
            names: Of the images.

        Returns:
            (B, 1, H, W) float32, metres, 0 everywhere in an image that can't be fitted well; and
            the fits.
        """
        depths, qualities = [], []
        for value, truth, name in zip(values, depth, names, strict=True):
            found = fit(value[0], truth[0], meaning, max_depth_m=self.max_depth_m)
            metric, beyond = apply(value, found, meaning, self.max_depth_m)
            depths.append(metric)
            qualities.append(Quality(name, found, float(beyond.float().mean())))
        return torch.stack(depths), qualities


def anchor_of(node: str | dict | None, device: torch.device, max_depth_m: float) -> Anchor | None:
    """Builds the anchor of a recipe's `teacher.anchor`.

    Args:
        node: "ground_truth", a metric teacher's node, or None for no anchor.
        device: Of the metric teacher.
        max_depth_m: The student's range in metres.

    Raises:
        TeacherError: It is neither, or its teacher can't be built or isn't metric.
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
    TeacherNode(node).check("teacher.anchor")
    context = {"run_device": device, "max_depth_m": max_depth_m}
    try:
        teacher = build(node, "tiekd.teachers", "teacher.anchor", **context)
    except TeacherError as error:
        # It was built as a teacher, and knows nothing of being an anchor.
        place, _, rest = str(error).partition("teacher.")
        raise TeacherError(f"{place}teacher.anchor.{rest}" if rest else str(error)) from None
    return Anchor(teacher, teacher.description, max_depth_m)
