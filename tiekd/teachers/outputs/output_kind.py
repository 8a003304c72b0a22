"""Defines the kinds of output that a teacher can have, and converts metric ones to metres.

A relative output is depth or inverse depth up to an unknown scale, or an unknown scale and shift,
which differ from image to image: Ranftl et al., "Towards Robust Monocular Depth Estimation: Mixing
Datasets for Zero-shot Cross-dataset Transfer", TPAMI 2020. anchor.py determines scale and shift.
The kind of an output is read from a model's config or given by the user. It is never guessed from
the values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tiekd.errors import TeacherError

# The focal length, in pixels, of a canonical output. Networks with such an output predict depth as
# if every image had this focal length.
CANONICAL_FOCAL = 300.0


@dataclass(frozen=True)
class OutputKind:
    """A kind of output, i.e. how depth follows from the values of the output.

    Attributes:
        name: The kind's name, its key in `OUTPUT_KINDS`.
        formula: The formula of depth or inverse depth, as text for messages.
        is_metric: True if the output determines depth in metres (`to_metres`); False if it does so
            only up to an unknown scale, or scale and shift.
        needs_focal: True if the focal length is part of the formula.
        space: The quantity that is linear in the output: "depth", or "inverse" for 1 / depth.
        has_shift: True if a shift is unknown as well as the scale.
        opposite: For a relative kind, the name of the kind that differs from it only in
            `space`.
    """

    name: str
    formula: str
    is_metric: bool = False
    needs_focal: bool = False
    space: str = "depth"
    has_shift: bool = False
    opposite: str | None = None


OUTPUT_KINDS = {
    output_kind.name: output_kind
    for output_kind in (
        OutputKind("metres", "depth = output", is_metric=True),
        OutputKind(
            "canonical",
            f"depth = output * focal / {CANONICAL_FOCAL:g}",
            is_metric=True,
            needs_focal=True,
        ),
        OutputKind("depth_scale", "depth = s * output", opposite="inverse"),
        OutputKind(
            "depth_affine", "depth = s * output + t", has_shift=True, opposite="inverse_affine"
        ),
        OutputKind("inverse", "1 / depth = s * output", space="inverse", opposite="depth_scale"),
        OutputKind(
            "inverse_affine",
            "1 / depth = s * output + t",
            space="inverse",
            has_shift=True,
            opposite="depth_affine",
        ),
    )
}


def find_output_kind(output: str, *, has_anchor: bool) -> OutputKind:
    """Returns a kind of output by its name, and checks that it can be converted to metres.

    Args:
        output: The kind's name, a key of `OUTPUT_KINDS`.
        has_anchor: True if the teacher has an anchor, i.e. metric depth to which a relative output
            is fitted.

    Raises:
        TeacherError: There is no kind of this name; or it is relative, and there is no anchor.
    """
    if output not in OUTPUT_KINDS:
        allowed = ", ".join(OUTPUT_KINDS)
        raise TeacherError(f"teacher.output: {output!r} is no kind of output; use {allowed}")
    output_kind = OUTPUT_KINDS[output]
    if not output_kind.is_metric and not has_anchor:
        metric = " or ".join(name for name, other in OUTPUT_KINDS.items() if other.is_metric)
        raise TeacherError(
            f"teacher.output: {output} ({output_kind.formula}) isn't metric without an anchor; set "
            "teacher.anchor to ground_truth or to a metric teacher {name: ...}, or use a model "
            f"whose output is {metric}"
        )
    return output_kind


def to_metres(
    output: Tensor, output_kind: OutputKind, focal: float | Tensor | None = None
) -> Tensor:
    """Converts a network's metric output to depth in metres.

    Args:
        output: (B, 1, H, W), any floating type: the network's output.
        output_kind: The kind of the output, a metric one.
        focal: The focal length (fx + fy) / 2, in pixels of the image after the network's own
            resize: one number, or (B,). Used only if the kind needs it.

    Returns:
        Depth, (B, 1, H, W) float32, metres; 0 in pixels in which the output isn't finite or isn't
        positive.

    Raises:
        TeacherError: The kind needs a focal length, and an image has none.
    """
    assert output_kind.is_metric, f"{output_kind.name} is relative: anchor.fit and anchor.apply"
    depth = output.float()
    if output_kind.needs_focal:
        focal = torch.as_tensor(float("nan") if focal is None else focal, device=depth.device)
        if not (torch.isfinite(focal) & (focal > 0)).all():
            raise TeacherError(
                f"teacher.output: {output_kind.name} ({output_kind.formula}) needs the focal "
                f"length of every image in pixels, got {focal.tolist()}; list the cameras of the "
                "data, or use a model whose output is metres"
            )
        depth = depth * (focal.float() / CANONICAL_FOCAL).reshape(-1, 1, 1, 1)
    return torch.where(torch.isfinite(depth) & (depth > 0), depth, 0)
