"""Compares a teacher's sigmas, i.e. the errors that it states, with its actual errors.

Needs frames with ground truth. A teacher may offer several sources of sigma, i.e. ways to estimate
it. Each is measured by itself, on whole frames at the size of their ground truth, by the measures
of tiekd/evaluation/sigma_quality.py. Cost: a call of the teacher for each frame and source.
"""

from collections.abc import Mapping

import numpy as np
import torch

from tiekd.data import resize as resizes
from tiekd.data.frame_table import spaced
from tiekd.data.sigma_calibration import Calibration, text_of
from tiekd.data.target import Target
from tiekd.evaluation.sigma_quality import MIN_FRAMES, SigmaFigures, SigmaFrame
from tiekd.evaluation.teacher_audit.observe import Observer


@torch.no_grad()
def observe(observer: Observer, count: int) -> list[SigmaFrame]:
    """Returns the depths, sigmas and errors of a teacher for evenly spaced frames of the dataset.

    Args:
        observer: The observer, whose teacher returns a `Target` of one component, i.e. one depth
            and sigma per pixel.
        count: Maximum number of frames.

    Returns:
        One entry for each frame that could be read: its pixels whose ground truth is within the
        student's depth range.
    """
    found = []
    for index in spaced(len(observer.frames), count).tolist():
        for batch in observer.batches(index):
            target = observer.teacher(batch)
            assert isinstance(target, Target), "the teacher has no sigma"
            truth = batch.depth[0, 0].cpu()
            depth, sigma = (
                resizes.at_own_size(values, observer.resize, tuple(truth.shape), smooth=False)[0, 0]
                for values in (target.depth, target.sigma)
            )
            depth, sigma = depth.cpu(), sigma.cpu()
            both = (truth > 0) & (truth <= observer.max_depth_m) & (depth > 0)
            error = (depth - truth).abs()
            found.append(SigmaFrame(*(each[both].numpy() for each in (sigma, error, depth))))
    return found


def calibration_of(
    source: str, figures: SigmaFigures, teacher: str | None, flip: bool
) -> Calibration:
    """Converts a sigma's measurements to the `Calibration` by which a recipe corrects that sigma.

    Args:
        source: Name of the source of sigma, i.e. of the way in which the teacher estimates it.
        figures: The measurements of this sigma.
        teacher: Digest of the teacher's weights; None if they aren't accessible.
        flip: True if the teacher's depth was averaged with that of the mirrored image.

    Returns:
        The calibration; `factors` holds a pair (median depth in metres, factor for sigma) for each
        range of depth.
    """
    factors = tuple((each.depth_m, each.factor.value) for each in figures.ranges)
    return Calibration(
        source=source,
        teacher=teacher,
        flip=flip,
        frames=figures.frames,
        orders_errors=figures.orders_errors and bool(factors),
        correlation=tuple(figures.correlation),
        at_depth=tuple(figures.at_depth),
        gain=tuple(figures.gain),
        factors=factors,
    )


def table(measured: Mapping[str, SigmaFigures], missing: Mapping[str, str]) -> str:
    """Returns a text table of how well each source of sigma predicts the teacher's errors.

    Args:
        measured: Name of the source of sigma -> its measurements.
        missing: Name of a source that the teacher doesn't offer -> the reason.
    """
    lines = [f"{'sigma from':<12}{'rank correlation':>20}{'at equal depth':>20}{'gain':>20}"]
    for source, figures in measured.items():
        intervals = (figures.correlation, figures.at_depth, figures.gain)
        lines.append(f"{source:<12}" + "".join(f"{text_of(each):>20}" for each in intervals))
    if measured:
        first = next(iter(measured.values()))
        lines.append(f"{'(depth)':<12}{text_of(first.of_depth):>20}{0:>20.2f}")
    for source, figures in measured.items():
        for each in figures.ranges:
            lines.append(
                f"{source}, {each.from_m:g} to {each.to_m:g} m: times "
                f"{text_of(each.factor)}, then {each.covered:.0%} of the errors are within sigma"
            )
        if not figures.orders_errors:
            lines.append(f"{source} doesn't order the errors better than chance, and isn't offered")
    lines += [f"{source}: {why}" for source, why in missing.items()]
    return "\n".join(lines)


def shortage(frames: list[SigmaFrame]) -> str | None:
    """Returns a message if fewer than MIN_FRAMES frames have ground truth; otherwise None.

    Args:
        frames: The pixels of each frame with ground truth and sigma, as `observe` returns them.
    """
    with_truth = int(np.sum([len(frame.sigma) > 0 for frame in frames]))
    if with_truth >= MIN_FRAMES:
        return None
    return f"only {with_truth} frames have ground truth, sigma needs {MIN_FRAMES}"
