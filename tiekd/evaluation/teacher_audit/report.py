"""Formats the result of a teacher's audit as a text table and as values for a JSON file."""

import math

from tiekd.evaluation.teacher_audit.observe import ZOOM
from tiekd.evaluation.teacher_audit.verdict import Limits, Verdict

_LINES = (
    ("median_m", "median depth, m", "{:.3g}"),
    ("valid", "pixels with a depth", "{:.1%}"),
    ("beyond", "depths beyond the range", "{:.1%}"),
    ("levels", "distinct depths a frame", "{:.0f}"),
    ("camera_height_m", "camera above the ground, m", "{:.2f}"),
    ("focal_ratio", "listed focal length / another source's", "{:.2f}"),
    ("estimate_ratio", "listed focal length / teacher's estimate", "{:.2f}"),
    ("flip", "disagreement under flip", "{:.1%}"),
    ("zoom", f"disagreement under zoom {ZOOM:g}", "{:.1%}"),
    ("inverse_t", "evidence of an inverse, std. errors", "{:.1f}"),
    ("variety", "difference between frames' maps", "{:.3f}"),
    ("mirror_t", "edges: map against mirrored map, std. errors", "{:.1f}"),
    ("own_z", "edges: own against other frames', std. errors", "{:.1f}"),
    ("swap", "change when red and blue are exchanged", "{:.1%}"),
    ("unrest_ratio", "effect of noise, RGB / BGR input", "{:.2f}"),
    ("abs_rel", "abs_rel to ground truth", "{:.3f}"),
    ("aligned", "median error without the scale", "{:.3f}"),
    ("scale", "scale to ground truth", "{:.3f}"),
    ("scale_spread", "its spread over frames, log", "{:.3f}"),
    ("fit_scale", "affine fit: scale", "{:.3f}"),
    ("fit_shift", "affine fit: shift, m", "{:.2f}"),
    ("correlation", "rank correlation with ground truth", "{:.2f}"),
    ("truth_mirror_t", "error: mirrored against map, std. errors", "{:.1f}"),
    ("truth_own_z", "error: own against other frames', std. errors", "{:.1f}"),
    ("truth_swap_t", "error: BGR against RGB, std. errors", "{:.1f}"),
)
# A teacher is called scale-equivariant if enlarging the image changes depth, compared with the
# enlarged depth map, by a factor whose |logarithm| is at most this.
_EQUIVARIANT = 0.1


def table(verdict: Verdict) -> str:
    """Returns a text with the audit's measurements, one per line, and the suspected mistakes.

    Measurements that are NaN are left out.

    Args:
        verdict: The result of the audit.
    """
    counted = "without ground truth"
    if verdict.truth is not None:
        counted = f"{verdict.truth.count} with ground truth"
    lines = [f"{verdict.frames} frames, {counted}"]
    for name, title, form in _LINES:
        value = verdict.figures.get(name, math.nan)
        if math.isfinite(value):
            lines.append(f"{title:<48}{form.format(value):>10}{_remark(name, verdict)}")
    if verdict.truth is not None:
        lines.append(f"{'range, m':<20}{'cells':>10}{'bias, m':>10}{'abs_rel':>10}")
        for start, end, cells, bias, abs_rel in verdict.truth.ranges:
            if cells:
                lines.append(
                    f"{f'{start:g} to {end:g}':<20}{cells:>10}{bias:>+10.2f}{abs_rel:>10.3f}"
                )
    lines += [f"Can't be detected: {text}" for text in undecided(verdict)]
    if not verdict.suspicions:
        return "\n".join([*lines, "Nothing is above its limit."])
    return "\n".join([*lines, *(f"SUSPICION: {s.message}" for s in verdict.suspicions)])


def undecided(verdict: Verdict) -> list[str]:
    """Returns a text for each kind of mistake that the audit can't detect here, with the reason.

    Args:
        verdict: The result of the audit.
    """
    figures, found = verdict.figures, []
    swap, has_truth = figures.get("swap", math.nan), verdict.truth is not None
    if "bgr" not in verdict.kinds:
        if not math.isfinite(swap):
            found.append("red and blue exchanged (BGR); stored maps can't show it")
        elif swap <= Limits.swap:
            seldom = " and so it seldom shows" if has_truth else ""
            found.append(
                f"red and blue exchanged (BGR); the teacher's depth changes by {swap:.1%} only"
                f"{seldom}"
            )
        elif not has_truth:
            found.append(
                "red and blue exchanged (BGR); without ground truth it shows in some teachers only"
            )
    ratios = (figures.get(name, math.nan) for name in ("focal_ratio", "estimate_ratio"))
    if not any(map(math.isfinite, ratios)):
        found.append(
            "a wrong focal length; there is no second source (EXIF, --focal, the teacher's own "
            "estimate) to compare the listed one with"
        )
    if not has_truth:
        found.append("an affine error, and a scale off by less than a unit; both need ground truth")
    return found


def _remark(name: str, verdict: Verdict) -> str:
    scale = verdict.figures.get("zoom_scale", math.nan)
    if name != "zoom" or not abs(scale) > _EQUIVARIANT:
        return ""
    return f"  not scale-equivariant: depth times {math.exp(scale):.2f}"


def as_json(verdict: Verdict) -> dict:
    """Returns the result of an audit as a dict of plain values for a JSON file.

    The keys are `frames` and `frames_with_ground_truth` (numbers of frames), `suspicions`,
    `undecided` (texts), `figures` (the measurements by name), and the lists `ranges` and
    `per_frame` (the comparison with ground truth, empty without it). Non-finite values become None.

    Args:
        verdict: The result of the audit.
    """
    return {
        "frames": verdict.frames,
        "frames_with_ground_truth": 0 if verdict.truth is None else verdict.truth.count,
        "suspicions": [suspicion._asdict() for suspicion in verdict.suspicions],
        "undecided": undecided(verdict),
        "figures": {name: _number(value) for name, value in verdict.figures.items()},
        "ranges": []
        if verdict.truth is None
        else [
            {
                "from_m": start,
                "to_m": end,
                "cells": cells,
                "bias_m": _number(bias),
                "abs_rel": _number(abs_rel),
            }
            for start, end, cells, bias, abs_rel in verdict.truth.ranges
        ],
        "per_frame": []
        if verdict.truth is None
        else [
            {name: _number(value) for name, value in frame._asdict().items()}
            for frame in verdict.truth.frames
        ],
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
