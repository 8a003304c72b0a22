"""Defines the meanings that a teacher's output can have, and converts metric ones to metres.

A relative output is depth or inverse depth up to an unknown scale, or an unknown scale and shift,
which differ from image to image: Ranftl et al., "Towards Robust Monocular Depth Estimation: Mixing
Datasets for Zero-shot Cross-dataset Transfer", TPAMI 2020. anchor.py determines scale and shift. A
meaning is read from a model's config or given by the user. It is never guessed from the values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tiekd.errors import TeacherError

# The focal length, in pixels, of a canonical output. Networks with such an output predict depth as
# if every image had this focal length.
CANONICAL_FOCAL = 300.0


@dataclass(frozen=True)
class Meaning:
    """A meaning of the values in a teacher's output, i.e. how depth follows from them.

    Attributes:
        name: The meaning's name, its key in `OUTPUTS`.
        formula: The formula of depth or inverse depth, as text for messages.
        is_metric: True if the output determines depth in metres (`to_metres`); False if it does so
            only up to an unknown scale, or scale and shift.
        needs_focal: True if the focal length is part of the formula.
        space: The quantity that is linear in the output: "depth", or "inverse" for 1 / depth.
        has_shift: True if a shift is unknown as well as the scale.
        opposite: For a relative meaning, the name of the meaning that differs from it only in
            `space`.
    """

    name: str
    formula: str
    is_metric: bool = False
    needs_focal: bool = False
    space: str = "depth"
    has_shift: bool = False
    opposite: str | None = None


OUTPUTS = {
    meaning.name: meaning
    for meaning in (
        Meaning("metres", "depth = output", is_metric=True),
        Meaning(
            "canonical",
            f"depth = output * focal / {CANONICAL_FOCAL:g}",
            is_metric=True,
            needs_focal=True,
        ),
        Meaning("depth_scale", "depth = s * output", opposite="inverse"),
        Meaning(
            "depth_affine", "depth = s * output + t", has_shift=True, opposite="inverse_affine"
        ),
        Meaning("inverse", "1 / depth = s * output", space="inverse", opposite="depth_scale"),
        Meaning(
            "inverse_affine",
            "1 / depth = s * output + t",
            space="inverse",
            has_shift=True,
            opposite="depth_affine",
        ),
    )
}


def find_meaning(output: str, *, has_anchor: bool) -> Meaning:
    """Returns the meaning of a given name, and checks that its output can be converted to metres.

    Args:
        output: The meaning's name, a key of `OUTPUTS`.
        has_anchor: True if the teacher has an anchor, i.e. metric depth to which a relative output
            is fitted.

    Raises:
        TeacherError: There is no meaning of this name; or it is relative, and there is no anchor.
    """
    if output not in OUTPUTS:
        allowed = ", ".join(OUTPUTS)
        raise TeacherError(f"teacher.output: {output!r} is no meaning of an output; use {allowed}")
    meaning = OUTPUTS[output]
    if not meaning.is_metric and not has_anchor:
        metric = " or ".join(name for name, other in OUTPUTS.items() if other.is_metric)
        raise TeacherError(
            f"teacher.output: {output} ({meaning.formula}) isn't metric without an anchor; set "
            "teacher.anchor to ground_truth or to a metric teacher {name: ...}, or use a model "
            f"whose output is {metric}"
        )
    return meaning


def to_metres(output: Tensor, meaning: Meaning, focal: float | Tensor | None = None) -> Tensor:
    """Converts a network's metric output to depth in metres.

    Args:
        output: (B, 1, H, W), any floating type: the network's output.
        meaning: The meaning of the output, a metric one.
        focal: The focal length (fx + fy) / 2, in pixels of the image after the network's own
            resize: one number, or (B,). Used only if the meaning needs it.

    Returns:
        Depth, (B, 1, H, W) float32, metres; 0 in pixels in which the output isn't finite or isn't
        positive.

    Raises:
        TeacherError: The meaning needs a focal length, and an image has none.
    """
    assert meaning.is_metric, f"{meaning.name} is relative: anchor.fit and anchor.apply"
    depth = output.float()
    if meaning.needs_focal:
        focal = torch.as_tensor(float("nan") if focal is None else focal, device=depth.device)
        if not (torch.isfinite(focal) & (focal > 0)).all():
            raise TeacherError(
                f"teacher.output: {meaning.name} ({meaning.formula}) needs the focal length of "
                f"every image in pixels, got {focal.tolist()}; list the cameras of the data, or "
                "use a model whose output is metres"
            )
        depth = depth * (focal.float() / CANONICAL_FOCAL).reshape(-1, 1, 1, 1)
    return torch.where(torch.isfinite(depth) & (depth > 0), depth, 0)
