"""Reads confidence.json, which bin/calibrate.py writes to a work dir.

The file has the temperature that was fitted to calibrate the student's confidence, if it was fitted
against ground truth or the teacher, and measurements on other frames than those of the fit, with
temperature 1 (`before`) and with the fitted one (`after`). Measurements are shown by their names,
so those that a later version adds are shown, too.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tiekd.errors import DataError
from tiekd.files import check_readable

NAME = "confidence.json"
_CURVE = "reliability_of_confidence"
_AXES = ("confidence", "share_within")


class Calibrated(NamedTuple):
    """The result of calibrating a student's confidence with a temperature.

    Attributes:
        temperature: The fitted temperature.
        against: "ground truth" or "the teacher", to which it was fitted.
        band: Confidence is the probability that the true depth is within this share of the
            predicted one, such as 0.1; None if the file doesn't state it.
        weights: The name of the weights file.
        iteration: The iteration of these weights; None if unknown.
        remarks: Warnings for the user about the measurements, one line each.
        figures: Name of a measurement -> (value with temperature 1, value with the fitted one).
        curves: Two curves, with temperature 1 and with the fitted one. Each is a list of stated
            confidences and a list of the shares of depths within the band.
        data_set: Name of the data set whose frames were used; empty if the recipe has one.
    """

    temperature: float
    against: str
    band: float | None
    weights: str
    iteration: int | None
    remarks: list[str]
    figures: dict[str, tuple[float, float]]
    curves: tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]
    data_set: str = ""


def read(work_dir: Path) -> Calibrated | None:
    """Reads confidence.json in a work dir.

    Args:
        work_dir: The run's folder.

    Returns:
        The file's content; None if there is no such file.

    Raises:
        DataError: The file can't be read, or lacks a key or has a wrong value.
    """
    path = work_dir / NAME
    check_readable(path, "record of a calibration", DataError)
    try:
        node = json.loads(path.read_text(encoding="utf-8"))
        return _of_node(node)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: not the figures of a calibration ({why}); calibrate again, or remove it"
        ) from None


def _of_node(node: dict) -> Calibrated:
    before, after = node["before"], node["after"]
    temperature = float(node["temperature"])
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}")
    band = node.get("band")
    return Calibrated(
        temperature,
        str(node["against"]),
        None if band is None else float(band),
        str(node.get("weights")),
        node.get("iteration"),
        [str(remark) for remark in node.get("remarks", ())],
        {
            key: (float(value), float(after[key]))
            for key, value in before.items()
            if _is_number(value) and _is_number(after.get(key))
        },
        (_curve(before), _curve(after)),
        str(node.get("data_set", "")),
    )


def _curve(figures: Mapping) -> tuple[list[float], list[float]]:
    rows = figures.get(_CURVE, ())
    xs, ys = ([float(row[key]) for row in rows] for key in _AXES)
    return xs, ys


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
