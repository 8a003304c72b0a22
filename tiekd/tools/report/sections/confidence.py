"""Makes the section on confidence: how excess width and calibrated sigma agree with the errors."""

import numpy as np

from tiekd.tools.report import measure
from tiekd.tools.report.content import Content, Evaluation
from tiekd.tools.report.line_chart import Curve, chart
from tiekd.tools.report.markup import Markup, table, tag
from tiekd.tools.report.sections.parts import label, note


def confidence_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section that compares excess widths with the errors.

    It has a reliability and a sparsification chart, a table of measurements, and the results of a
    calibration.

    Args:
        content: The content of the report.
    """
    found = content.validation
    if found is None:
        return _calibrated(content)
    excess, reliability = found.measured.excess, found.measured.reliability
    if excess is None:
        return [tag("p", "The student's head predicts no distribution, so it has no confidence.")]
    if reliability is None:
        return [tag("p", "No pixel counts, so nothing can be said of the confidence.")]
    levels = list(measure.LEVELS)
    named = [
        Curve("as predicted", levels, reliability.observed),
        Curve("ideal", [0.0, 1.0], [0.0, 1.0], dashed=True),
    ]
    after = measure.reliability(found.measured.pixels, reliability.factor)
    named.insert(1, Curve(f"width x {reliability.factor:.2f}", levels, after.observed))
    dropped = np.arange(len(excess.curve)) / len(excess.curve)
    sparse = [
        Curve("by excess width", dropped.tolist(), excess.curve.tolist()),
        Curve("by the error itself", dropped.tolist(), excess.oracle.tolist(), dashed=True),
        Curve("at random", [0.0, float(dropped[-1])], [1.0, 1.0], dashed=True),
    ]
    drawn = [
        chart("Reliability: pixels within the interval", named, "stated probability", y_from=0.0),
        chart("Sparsification: error that is left", sparse, "share of pixels dropped", y_from=0.0),
    ]
    rows = [
        ("rank correlation with the error", _interval(excess.correlation)),
        ("the same at equal depth", _interval(excess.at_depth)),
        ("rank correlation of depth itself", _interval(excess.of_depth)),
        ("sparsification gain: 1 as by the error, 0 by chance", _interval(excess.gain)),
        ("errors by excess width", f"{reliability.factor:.3f}"),
    ]
    parts = [
        label(found),
        tag(
            "p",
            f"From {sum(len(each.sigma) for each in found.measured.pixels)} pixels of "
            f"{len(found.measured.pixels)} frames, without flip averaging. The excess width is the "
            "half-width of the predicted distribution beyond that of its target in training, "
            "without a temperature. It isn't the sigma of predictions and exported files, which "
            f"has both in it. The error is that against {found.target}. Intervals are 95 % of a "
            "bootstrap over images, too narrow if many images show one place.",
            class_="faint",
        ),
        tag("div", *drawn, class_="charts"),
        table(("figure", "value"), rows),
    ]
    if excess.ranges:
        parts.append(_factors(found))
    return parts + _calibrated(content)


def _calibrated(content: Content) -> list[Markup]:
    """Returns the HTML on the calibrated confidence: measurements before and after the fit.

    Args:
        content: The content of the report; without a calibration the result is an empty list.
    """
    found = content.calibration
    if found is None:
        return []
    about = f"Temperature {found.temperature:.4g}, fitted against {found.against}"
    if found.data_set:
        about += f" of the data set {found.data_set}"
    if found.band is not None:
        about += f"; confidence is the probability that depth is within {found.band:.0%}"
    parts = [tag("h3", "Calibrated confidence"), tag("p", f"{about}.")]
    known = content.records.iteration
    is_stale = found.iteration is not None and known is not None and found.iteration != known
    if found.weights != content.records.weights.name or is_stale:
        of = f"{found.weights} of iteration {found.iteration}"
        parts.append(tag("p", f"It is of other weights: {of}. Calibrate again.", class_="label"))
    elif content.records.temperature != found.temperature:
        # Warn if the weights lack the temperature, as after `bin/calibrate.py --out` or a
        # calibration that was killed before it wrote them.
        said = "The weights don't hold this temperature, so exported files don't use it."
        parts.append(tag("p", f"{said} Calibrate again.", class_="label"))
    if found.remarks:
        parts.append(note("Of these figures", found.remarks))
    if found.curves[0][0] and found.curves[1][0]:
        named = [
            Curve("before", *found.curves[0]),
            Curve("after", *found.curves[1]),
            Curve("ideal", [0.0, 1.0], [0.0, 1.0], dashed=True),
        ]
        drawn = chart("Reliability of confidence", named, "stated confidence", y_from=0.0)
        parts.append(tag("div", drawn, class_="charts"))
    rows = [
        (key.replace("_", " "), f"{before:.4f}", f"{after:.4f}")
        for key, (before, after) in found.figures.items()
    ]
    head = ("figure", "temperature 1", f"temperature {found.temperature:.4g}")
    return [*parts, table(head, rows)] if rows else parts


def _interval(found) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _factors(found: Evaluation) -> Markup:
    rows = [
        (
            f"{each.from_m:g} - {each.to_m:g} m",
            each.pixels,
            _interval(each.factor),
            f"{each.covered:.1%}",
        )
        for each in found.measured.excess.ranges
    ]
    head = ("predicted depth", "pixels", "factor", "within factor x width")
    return table(head, rows, "Errors by excess width, by range; 68 % within it if Gaussian")
