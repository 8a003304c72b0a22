"""Draws how reliable a student's confidence and sigma are, before and after a calibration."""

import numpy as np

from tiekd.visualization import charts
from tiekd.visualization.charts import Curve

_BEFORE, _AFTER = (240, 150, 70), (90, 160, 250)
_ORACLE, _IDEAL = (90, 200, 120), (150, 150, 158)


def picture(before: dict, after: dict) -> np.ndarray:
    """Draws three charts side by side: confidence, sigma, and sparsification.

    Sparsification is the error that is left when the pixels with the largest sigma are removed.

    Args:
        before: The measured calibration with temperature 1, a dict as
            `evaluation.calibration.measure_calibration` returns it.
        after: The same with the fitted temperature.

    Returns:
        (height, width, 3) uint8.
    """
    return np.concatenate(
        [_of_confidence(before, after), _of_sigma(before, after), _sparsification(before, after)],
        axis=1,
    )


def _of_confidence(before: dict, after: dict) -> np.ndarray:
    curves = [Curve([0, 1], [0, 1], _IDEAL)]
    for figures, colour in ((before, _BEFORE), (after, _AFTER)):
        rows = figures["reliability_of_confidence"]
        xs, ys = ([row[key] for row in rows] for key in ("confidence", "share_within"))
        curves.append(Curve(xs, ys, colour))
    return charts.chart(
        curves,
        title="share of depths within the band: before (orange), after (blue)",
        x_label="confidence; ideal is the grey line",
        x_range=(0, 1),
        y_range=(0, 1),
    )


def _of_sigma(before: dict, after: dict) -> np.ndarray:
    found, most = [], 0.0
    for figures, colour in ((before, _BEFORE), (after, _AFTER)):
        rows = figures["reliability_of_sigma"]
        xs, ys = ([row[key] for row in rows] for key in ("sigma_m", "rms_error_m"))
        found.append(Curve(xs, ys, colour))
        most = max(most, *xs, *ys)
    return charts.chart(
        [Curve([0, most], [0, most], _IDEAL), *found],
        title="root mean square error in m: before (orange), after (blue)",
        x_label="sigma in m, ten groups of pixels; ideal is the grey line",
    )


def _sparsification(before: dict, after: dict) -> np.ndarray:
    curves = []
    first = before["sparsification"]
    if first["dropped"] is not None:
        dropped = first["dropped"]
        curves = [
            Curve(dropped, [1.0] * len(dropped), _IDEAL),
            Curve(dropped, first["oracle"], _ORACLE),
            Curve(dropped, first["by_sigma"], _BEFORE),
            Curve(dropped, after["sparsification"]["by_sigma"], _AFTER),
        ]
    return charts.chart(
        curves,
        title="error left: before, after, oracle (green), random (grey)",
        x_label="share of pixels dropped, those of the largest sigma first",
    )
