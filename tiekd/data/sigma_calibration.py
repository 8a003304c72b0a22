"""The calibrations of a teacher's sources of sigma, as bin/audit_teacher.py writes them to a file.

A source of sigma is a way to estimate the teacher's error per pixel. It is used only if it orders
the teacher's actual errors better than chance. For each source the file holds how well it orders
the errors, and the factors by depth that make sigma as large as the errors. A recipe names the file
in `teacher.sigma`. Not covered: the measurement (tiekd/evaluation/sigma_quality.py).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tiekd import console
from tiekd.errors import TeacherError
from tiekd.files import check_readable

NAME = "sigma.json"


@dataclass(frozen=True)
class Calibration:
    """The calibration of one source of sigma of one teacher.

    Attributes:
        source: Name of the source, such as "flip".
        teacher: Digest of the teacher's weights; None if they aren't accessible.
        flip: True if the teacher averages its depth with that for the mirrored image.
        frames: The number of images with ground truth that were measured.
        orders_errors: True if the source orders errors better than chance.
        correlation: Rank correlation of sigma and |error| in an image: (mean, low, high), where low
            and high are the ends of the 95 % interval.
        at_depth: Rank correlation of sigma and |error| at equal depth, in the same form.
        gain: Sparsification, i.e. how much the mean error falls if the pixels with the largest
            sigma are removed first, as a fraction of the fall if those with the largest error are
            removed first: 0 by chance, 1 at best; in the same form.
        factors: (depth in metres, factor) for each range of depth, nearest first; the factor is
            interpolated linearly between these depths. Empty if sigma is 0 everywhere.
    """

    source: str
    teacher: str | None
    flip: bool
    frames: int
    orders_errors: bool
    correlation: tuple[float, float, float]
    at_depth: tuple[float, float, float]
    gain: tuple[float, float, float]
    factors: tuple[tuple[float, float], ...]


def to_json(calibrations: Mapping[str, Calibration]) -> bytes:
    """Returns the content of a file of calibrations, as JSON text.

    Args:
        calibrations: The calibrations, keyed by the name of the source of sigma.
    """
    nodes = {source: asdict(each) for source, each in calibrations.items()}
    return (json.dumps(nodes, indent=1) + "\n").encode()


def read(path: Path, source: str, where: str) -> Calibration:
    """Reads the calibration of one source of sigma from a file.

    Args:
        path: The file.
        source: Name of the source of sigma, such as "flip".
        where: The recipe's key that names the file, for error messages.

    Raises:
        TeacherError: The file can't be read, isn't a file of calibrations or doesn't have the
            source; or the source doesn't order errors better than chance.
    """
    check_readable(path, "calibration of sigma", TeacherError, f"{where}: ")
    if not path.is_file():
        raise TeacherError(
            f"{where}: no file at {path}; make one with {console.command('audit_teacher')} RECIPE "
            "--sigma"
        )
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))
        found = {name: _calibration(node) for name, node in nodes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise TeacherError(
            f"{where}: {path} is no file of calibrations; make one with "
            f"{console.command('audit_teacher')} RECIPE --sigma"
        ) from None
    if source not in found:
        raise TeacherError(
            f"{where}: {path} has no calibration of {source}, only of "
            f"{', '.join(found) or 'nothing'}"
        )
    chosen = found[source]
    if not chosen.orders_errors:
        raise TeacherError(
            f"{where}: {source} doesn't order this teacher's errors better than chance: rank "
            f"correlation {text_of(chosen.correlation)}, at equal depth "
            f"{text_of(chosen.at_depth)}; use another source or a constant sigma"
        )
    return chosen


def text_of(interval: tuple[float, float, float]) -> str:
    """Formats a mean with its interval, such as "0.41 [0.36, 0.46]".

    Args:
        interval: (mean, lower end, upper end).
    """
    value, low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _calibration(node: dict) -> Calibration:
    intervals = {name: _numbers(node[name], 3) for name in ("correlation", "at_depth", "gain")}
    factors = tuple(_numbers(pair, 2) for pair in node["factors"])
    depths = [depth for depth, _ in factors]
    if depths != sorted(set(depths)) or any(not value > 0 for pair in factors for value in pair):
        raise ValueError("depths and factors must be above 0, and depths must increase")
    if node["orders_errors"] and not factors:
        raise ValueError("a source that orders errors has factors")
    names = {"source": str, "teacher": str | None, "flip": bool, "frames": int}
    names["orders_errors"] = bool
    if not all(isinstance(node[name], kind) for name, kind in names.items()):
        raise TypeError(names)
    plain = {name: node[name] for name in names}
    return Calibration(**plain, **intervals, factors=factors)


def _numbers(values: list, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{count} finite numbers are needed")
    return numbers
