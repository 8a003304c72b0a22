"""Reads confidence.json, the figures of a calibrated confidence that a work dir may hold.

The file has the fitted temperature, what it was fitted against, and the figures of frames that it
was not fitted on, with temperature 1 (`before`) and with the fitted one (`after`). Figures are
shown by their names; numbers that a later version adds are shown too.
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
    """The figures of a calibrated confidence.

    Attributes:
        temperature: The fitted temperature.
        against: What it was fitted against.
        band: Confidence is the probability that the true depth is within this share of the
            returned one; None if the file doesn't say.
        weights: The name of the weights file.
        iteration: The iteration of these weights; None if unknown.
        remarks: What has to be known of the figures.
        figures: Name -> (before, after).
        curves: Stated confidence and the share of depths within the band, before and after.
        data_set: The data set whose frames were used; empty if the recipe has one.
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
    """Reads the file in a work dir.

    Args:
        work_dir: The run's folder.

    Returns:
        The figures; None without a file.

    Raises:
        DataError: The file is damaged, or no such file.
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
