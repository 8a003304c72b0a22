"""Suggests what to try next: rules from measurements of a run to changes of its recipe.

Each rule is a function of `Findings` that returns a `Suggestion`, or None if its measurement is
unremarkable or unknown. Every suggestion states the measurement that it follows from. The
thresholds are this project's own rules of thumb. Only another run shows if a suggestion helps. Not
covered: rules that combine several measurements.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tiekd import console
from tiekd.config import data_sets
from tiekd.config.teacher_node import TeacherList
from tiekd.data.resize import Resize
from tiekd.evaluation.range_errors import RangeFigures
from tiekd.tools.report.measure import Reliability

_GROWS = 1.5  # abs_rel of one depth range / that of another, above which it is remarkable
_LEAST_SHARE = 0.02  # smallest fraction of all pixels that a depth range must have
_BIAS = 0.05  # largest mean relative error that is unremarkable
_SCALE_SHARE = 0.7  # abs_rel after scaling each frame / abs_rel, below which it is remarkable
_MID_AIR = 0.25  # largest unremarkable fraction of edge pixels whose depth is between both sides
_FACTOR = 1.3  # largest unremarkable ratio of errors to excess widths, or the inverse
_GAP = 1.3  # largest unremarkable abs_rel of validation / that of training frames
_FLIP = 0.05  # largest unremarkable relative change of depth by mirroring
_STILL_BETTER = 0.02  # smallest remarkable improvement in the last third of training
_OUTLIER = 4.0  # largest unremarkable abs_rel of the worst / of the median frame
_FLOOR_SHARE = 0.8  # abs_rel / that of the median map, above which it is remarkable
_LEAST_FRAMES = 8  # smallest number of frames whose mean error can be trusted
_LARGEST_FRACTION = 0.5  # largest fraction of the frames that is suggested for validation
_LARGER = 1.5  # factor by which a larger input size is suggested
_STRIDE = 32  # pixels; suggested input sizes are multiples of it


class Suggestion(NamedTuple):
    """A suggestion of what to try next.

    Attributes:
        symptom: The measurement that the suggestion follows from, as a sentence.
        advice: What to try, and why.
        options: Overrides of the recipe, as for `--set`; empty if the advice isn't an override.
    """

    symptom: str
    advice: str
    options: tuple[str, ...] = ()

    def of_set(self, name: str, recipe: dict) -> "Suggestion":
        """Returns the suggestion with overrides of the whole recipe instead of one data set's.

        Args:
            name: The data set that was evaluated; empty if the recipe has one.
            recipe: The whole recipe.
        """
        options = (data_sets.option_of_set(option, name, recipe) for option in self.options)
        return self._replace(options=tuple(options))


@dataclass(frozen=True)
class Findings:
    """The measurements of a run on which suggestions are based; None or NaN where unknown.

    Attributes:
        recipe: The recipe, a dict.
        resize: How images are resized to the student's input size.
        is_agreement: True if the student was compared with the teacher, not with ground truth.
        frames: Number of validation frames with an evaluated pixel.
        abs_rel: Mean over frames of |prediction - target| / target.
        aligned: Mean over frames of abs_rel after each frame's depth is scaled to the target's
            median.
        relative_bias: Mean of (prediction - target) / target over pixels.
        ranges: Errors by range of depth, nearest range first.
        mid_air: Fraction of the pixels near depth edges whose depth is between the edge's two
            sides.
        reliability: How large the excess width is compared with the errors. It contains no
            temperature.
        is_calibrated: True if the weights hold a temperature.
        excess_gain: Upper bound of the sparsification gain of the excess width: 1 if pixels with
            larger errors have a larger width, 0 by chance.
        floor_abs_rel: abs_rel of the median map of training frames, which ignores the image.
        trained_abs_rel: abs_rel on training frames.
        teacher_flip: Change of the teacher's depth if the image is mirrored, as a fraction.
        focal: Median focal length of the frames in pixels of the student's input; None if the focal
            length of a frame isn't known.
        metric: (iterations, values) of the abs_rel in the evaluations during training.
        worst_ratio: abs_rel of the worst frame divided by that of the median frame.
    """

    recipe: dict
    resize: Resize
    is_agreement: bool = False
    frames: int = 0
    abs_rel: float = math.nan
    aligned: float = math.nan
    relative_bias: float = math.nan
    ranges: Sequence[RangeFigures] = ()
    mid_air: float = math.nan
    reliability: Reliability | None = None
    is_calibrated: bool = False
    excess_gain: float = math.nan
    floor_abs_rel: float = math.nan
    trained_abs_rel: float = math.nan
    teacher_flip: float | None = None
    focal: float | None = None
    metric: tuple[Sequence[float], Sequence[float]] = ((), ())
    worst_ratio: float = math.nan

    @property
    def head(self) -> dict:
        """The recipe's section for the student's head, a dict; empty if the recipe has none."""
        return (self.recipe.get("network") or {}).get("head") or {}

    @property
    def target(self) -> str:
        """The name of the depth that the student is compared with, such as "the ground truth"."""
        return "the teacher" if self.is_agreement else "the ground truth"


def suggestions(findings: Findings) -> list[Suggestion]:
    """Returns the suggestions of all rules that apply, the most important first.

    Args:
        findings: The measurements of the run.
    """
    found = [rule(findings) for rule in RULES]
    return [each for each in found if each is not None]


def few_frames(found: Findings) -> Suggestion | None:
    """Suggests more validation frames if fewer than _LEAST_FRAMES were evaluated.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if there are enough frames.
    """
    if not 0 < found.frames < _LEAST_FRAMES:
        return None
    data, options = found.recipe.get("data", {}), ()
    # Suggest no fraction beside split files, which decide alone which frames are held out.
    is_listed = any(key in data for key in ("train_split", "val_split"))
    fraction = data.get("val_fraction", 0.1)
    if data.get("name") == "folder" and not is_listed and 0 < fraction <= _LARGEST_FRACTION / 2:
        options = (f"data.val_fraction={2 * fraction:g}",)
    return Suggestion(
        f"Only {found.frames} validation frames count.",
        "Figures of so few frames change by chance from run to run. Hold more frames out, of other "
        "places than the training frames (data.val_split, or data.val_fraction).",
        options,
    )


def near_floor(found: Findings) -> Suggestion | None:
    """Suggests to check the data if the student is hardly better than a map without an image.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if abs_rel is at most _FLOOR_SHARE of that of the median map, or either
        isn't known.
    """
    if not found.abs_rel > _FLOOR_SHARE * found.floor_abs_rel:
        return None
    return Suggestion(
        f"abs_rel is {found.abs_rel:.4f}, and that of the median map, which ignores the image, "
        f"{found.floor_abs_rel:.4f}: the student has learned little from images.",
        "Look at the frames below: does the depth belong to the image? "
        f"{console.command('check_data')} and {console.command('audit_teacher')} find maps of "
        "other images. Otherwise train longer, or begin with weights of ImageNet "
        "(network.encoder.pretrained). In a place where all images look alike, a map is hard to "
        "beat.",
    )


def still_improving(found: Findings) -> Suggestion | None:
    """Suggests a longer training if abs_rel still improved in the last third of the training.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if abs_rel improved by less than _STILL_BETTER or isn't known.
    """
    iterations, values = found.metric
    if len(values) < 3 or min(values) != values[-1]:
        return None
    # Find the last evaluation that is before the last third of the training.
    before = max((i for i, x in enumerate(iterations) if x <= iterations[-1] * 2 / 3), default=0)
    gain = 1 - values[-1] / values[before] if values[before] > 0 else 0.0
    train = found.recipe.get("train", {})
    key = "iterations" if train.get("iterations") else "epochs"
    if gain < _STILL_BETTER or not train.get(key):
        return None
    return Suggestion(
        f"The validation metric still improved by {gain:.0%} in the last third of the training.",
        "Train longer. The learning rate's schedule then stretches with it.",
        (f"train.{key}={2 * train[key]}",),
    )


def overfitting_gap(found: Findings) -> Suggestion | None:
    """Suggests more varied training data if validation frames are much worse than training frames.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if the ratio of both abs_rel is at most _GAP or isn't known.
    """
    ratio = found.abs_rel / found.trained_abs_rel if found.trained_abs_rel > 0 else math.nan
    if not ratio > _GAP:
        return None
    return Suggestion(
        f"abs_rel is {found.abs_rel:.4f} on validation frames and {found.trained_abs_rel:.4f} on "
        f"training frames: {ratio:.1f} times as large.",
        "The student knows its training images better than the world. More images of more places "
        "help most; images without measured depth will do, since the teacher labels them. Else "
        "average the weights, and stop when the metric does (write the recipe's other hooks, if "
        "any, beside these).",
        ("hooks=[{name: ema, decay: 0.999}, {name: early_stop, patience: 5}]",),
    )


def wrong_scale(found: Findings) -> Suggestion | None:
    """Suggests a canonical camera if errors are mostly a wrong scale of whole frames.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None unless scaling each frame to the median of its target would reduce
        abs_rel to less than _SCALE_SHARE of it.
    """
    has_scale_error = found.aligned < _SCALE_SHARE * found.abs_rel
    if not has_scale_error:
        return None
    symptom = (
        f"With the best scale of each frame abs_rel would be {found.aligned:.4f} instead of "
        f"{found.abs_rel:.4f}: shapes are right, and the scale of whole frames is wrong."
    )
    if (found.recipe.get("network") or {}).get("canonical_focal") is not None:
        return Suggestion(
            symptom,
            "The focal lengths of some images may be wrong: compare data.intrinsics with the "
            "cameras. Else more scenes of the missing kind help.",
        )
    return Suggestion(
        symptom,
        "If the images are of several cameras or zooms, state their focal lengths "
        "(data.intrinsics) and let the student learn depth for one canonical focal length "
        "(network.canonical_focal, in pixels at the working resolution). With one camera, add "
        "scenes of the missing kind.",
        () if found.focal is None else (f"network.canonical_focal={found.focal:.0f}",),
    )


def bias(found: Findings) -> Suggestion | None:
    """Suggests a larger loss on the depth itself if depth is on average too near or too far.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if the mean relative error is at most _BIAS or isn't known.
    """
    if not abs(found.relative_bias) > _BIAS:
        return None
    way = "far" if found.relative_bias > 0 else "near"
    losses = found.recipe.get("losses") or {}
    silog = next(
        (key for key, node in losses.items() if (node or {}).get("name", key) == "silog"), None
    )
    weight = 1.0 if silog is None else 2 * float((losses[silog] or {}).get("weight", 1.0))
    return Suggestion(
        f"Depth is {abs(found.relative_bias):.1%} too {way} on average, against {found.target}.",
        "Give the loss on depth itself more weight; look at the table by range for where the bias "
        "is.",
        (f"losses.{silog or 'silog'}.weight={weight:g}",),
    )


def grows_with_range(found: Findings) -> Suggestion | None:
    """Suggests a larger input size if abs_rel is much larger far from the camera than near it.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None unless abs_rel of the farthest range exceeds _GROWS times that of the
        nearest.
    """
    near, far = _ends(found.ranges)
    if near is None or not far.abs_rel > _GROWS * near.abs_rel:
        return None
    return Suggestion(
        f"abs_rel is {near.abs_rel:.4f} at {near.from_m:g} to {near.to_m:g} m and "
        f"{far.abs_rel:.4f} at {far.from_m:g} to {far.to_m:g} m: the error grows with the range.",
        "Far things cover few pixels. Let the student see larger images; its latency grows with "
        "their area.",
        _larger(found.resize),
    )


def worse_near(found: Findings) -> Suggestion | None:
    """Suggests more depth bins or other images if abs_rel is much larger near the camera.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None unless abs_rel of the nearest range exceeds _GROWS times that of the
        farthest.
    """
    near, far = _ends(found.ranges)
    if near is None or not near.abs_rel > _GROWS * far.abs_rel:
        return None
    symptom = (
        f"abs_rel is {near.abs_rel:.4f} at {near.from_m:g} to {near.to_m:g} m and only "
        f"{far.abs_rel:.4f} at {far.from_m:g} to {far.to_m:g} m: near things are the worst."
    )
    if found.head.get("name") == "dpm" and found.head.get("spacing", "uniform") == "uniform":
        return Suggestion(
            symptom,
            "Bins of equal width are coarse beside a near depth. Add bins, so that they are "
            "narrower.",
            (f"network.head.num_bins={2 * int(found.head.get('num_bins', 257)) - 1}",),
        )
    return Suggestion(symptom, "Add training images in which such near things are seen.")


def poor_edges(found: Findings) -> Suggestion | None:
    """Suggests sharper depth edges if many pixels near an edge have a depth between its two sides.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if the fraction of such pixels is at most _MID_AIR or isn't known.
    """
    if not found.mid_air > _MID_AIR:
        return None
    symptom = (
        f"{found.mid_air:.0%} of the pixels near depth edges are in mid-air, between the two sides."
    )
    if found.head.get("name") != "dpm":
        return Suggestion(
            symptom,
            "A student with a dpm head can read depth on one side of an edge (--readout local). "
            "Else let it see larger images.",
            _larger(found.resize),
        )
    if found.head.get("upsampling", "bilinear") == "bilinear":
        return Suggestion(
            symptom,
            "Export and predict with --readout local, which needs no training. Learned upsampling "
            "keeps edges sharper too, if the student trains again.",
            ("network.head.upsampling=convex",),
        )
    return Suggestion(
        symptom,
        "Export and predict with --readout local, which needs no training. Else let the student "
        "see larger images.",
        _larger(found.resize),
    )


def over_confident(found: Findings) -> Suggestion | None:
    """Suggests a calibration if excess widths are too small or too large beside the errors.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if errors differ from excess widths by at most a factor of _FACTOR, or
        if the weights hold a temperature already.
    """
    # Return if the weights hold a temperature already: it corrects the sigma that predictions have,
    # and the excess width, by which `reliability` is measured, has none.
    if found.is_calibrated:
        return None
    factor = math.nan if found.reliability is None else found.reliability.factor
    sigma, mend = None, "Multiply this width by the factor where it is used."
    if found.head.get("name") == "dpm":
        sigma = float(found.head.get("sigma", 0.5))
        mend = (
            f"Fit a temperature with {console.command('calibrate')} WORK_DIR: predictions and "
            "files that are exported afterwards have calibrated sigma and confidence."
        )
    if factor > _FACTOR:
        return Suggestion(
            f"Errors are {factor:.1f} times as large as the excess width of the distributions: the "
            "student is over-confident.",
            f"{mend} A wider target in training makes the distributions wider too.",
            () if sigma is None else (f"network.head.sigma={_rounded(1.5 * sigma)}",),
        )
    if factor < 1 / _FACTOR:
        return Suggestion(
            f"Errors are {factor:.2f} times as large as the excess width of the distributions: the "
            "student is more cautious than it need be.",
            mend,
        )
    return None


def width_without_order(found: Findings) -> Suggestion | None:
    """Advises not to use the student's confidence if its excess widths don't order the errors.

    Args:
        found: The measurements of the run.

    Returns:
        The advice; None if pixels with a larger excess width have larger errors.
    """
    if not found.excess_gain <= 0:
        return None
    return Suggestion(
        "Pixels with a wide distribution have no larger errors than others.",
        "Don't use the confidence of this student. Train longer before you look at it again; if it "
        "stays so, several teachers, or a teacher with a sigma (teacher.sigma), say where depth is "
        "uncertain.",
    )


def teacher_flip(found: Findings) -> Suggestion | None:
    """Suggests flip averaging of the teacher if its depth changes when the image is mirrored.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if the change is at most _FLIP or isn't known.
    """
    changes = found.teacher_flip
    if changes is None or not changes > _FLIP:
        return None
    is_known = False
    teachers = TeacherList.of(found.recipe)
    if teachers.several is None and teachers.is_given:
        node = teachers.nodes[0].node
        # Check that the teacher has the key `flip`, as networks of tiekd and these kinds have. A
        # module of the user's may not have it.
        is_known = node.get("name") in (None, "huggingface", "exported", "moge", "unidepth")
    return Suggestion(
        f"The teacher's depth changes by {changes:.1%} if the image is mirrored.",
        "A student can't follow a teacher further than it agrees with itself. Average the teacher "
        "over the image and its mirror image, at twice its cost.",
        ("teacher.flip=true",) if is_known else (),
    )


def outliers(found: Findings) -> Suggestion | None:
    """Suggests to look at the worst frames if their error is far above that of the median frame.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if the ratio of both errors is at most _OUTLIER, or there are few
        frames.
    """
    if found.frames < _LEAST_FRAMES or not found.worst_ratio > _OUTLIER:
        return None
    return Suggestion(
        f"The worst frame's abs_rel is {found.worst_ratio:.1f} times that of the median frame.",
        "Look at the worst frames above: wrong depth in a file, a kind of scene that training "
        "never showed, or a teacher that failed. The checks of data and teacher find the first and "
        "the last.",
    )


def weak_student(found: Findings) -> Suggestion | None:
    """Suggests a stronger student if even training frames have large errors.

    Args:
        found: The measurements of the run.

    Returns:
        The suggestion; None if abs_rel on training frames is at most 0.1, or another rule explains
        it.
    """
    explained = (still_improving(found), overfitting_gap(found), wrong_scale(found))
    if not found.trained_abs_rel > 0.1 or any(each is not None for each in explained):
        return None
    return Suggestion(
        f"abs_rel is {found.trained_abs_rel:.4f} on training frames as well, so more images alone "
        "won't mend it.",
        "The student is too weak or was trained too fast. Try a larger encoder of the same kind, a "
        "larger working resolution, or another learning rate.",
        _larger(found.resize),
    )


RULES: tuple[Callable[[Findings], Suggestion | None], ...] = (
    few_frames,
    near_floor,
    still_improving,
    overfitting_gap,
    wrong_scale,
    bias,
    weak_student,
    grows_with_range,
    worse_near,
    poor_edges,
    over_confident,
    width_without_order,
    teacher_flip,
    outliers,
)


def _ends(ranges: Sequence[RangeFigures]) -> tuple[RangeFigures | None, RangeFigures | None]:
    """Returns the nearest and the farthest depth range that have enough pixels.

    Args:
        ranges: The errors of the ranges, nearest first.

    Returns:
        The two ranges; (None, None) if fewer than two have enough pixels.
    """
    total = sum(each.pixels for each in ranges)
    enough = [each for each in ranges if each.pixels and each.pixels >= _LEAST_SHARE * total]
    return (enough[0], enough[-1]) if len(enough) > 1 else (None, None)


def _larger(resize: Resize) -> tuple[str, ...]:
    """Returns the overrides of the recipe, as for `--set`, for a 1.5 times larger input size.

    Args:
        resize: The present resizing; the result is empty if it has no fixed size.
    """
    if resize.short_side is not None:
        return (f"data.resize.short_side={_multiple(resize.short_side)}",)
    if resize.mode is None or resize.height is None or resize.width is None:
        return ()
    sides = _multiple(resize.height), _multiple(resize.width)
    return (f"data.resize.height={sides[0]}", f"data.resize.width={sides[1]}")


def _multiple(side: int) -> int:
    return -(-round(_LARGER * side) // _STRIDE) * _STRIDE


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
