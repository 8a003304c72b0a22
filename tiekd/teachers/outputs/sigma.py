"""The uncertainty of a teacher's depth: a sigma per pixel, from one of several sources.

    teacher: {..., sigma: 0.5}
    teacher: {..., flip: true, sigma: {from: flip, calibration: work_dirs/audit_x/sigma.json}}

- A number is a constant sigma in metres.
- `flip` is the disagreement of the depths for an image and for its mirror image: |difference| /
  sqrt(2), which estimates the standard deviation of either depth if their errors are independent. A
  single difference is a noisy estimate, so its square is averaged over a window. The two depths
  share most of their errors (a bias causes no difference at all), so true errors are larger. So
  sigma has to be multiplied by a factor that is fitted to ground truth (`calibration`).
- `between` is the disagreement of several teachers whose depths are averaged, computed in the same
  way.
- `own` is the width of the teacher's own distribution over depth bins (tiekd/models/spread.py).

A `calibration` is a file from bin/audit_teacher.py with a factor for each range of depth. Cost: no
host sync, and a few maps of one value per pixel; for `own` see tiekd/models/spread.py. A DPM head
clamps sigma to the range from its option `sigma` to its option `sigma_max`, so a sigma of 0 has the
effect of the option `sigma`. Not covered: sigma of relative outputs.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tiekd import console
from tiekd.data import sigma_calibration
from tiekd.data.sigma_calibration import Calibration, text_of
from tiekd.errors import TeacherError

SOURCES = ("flip", "between", "own")
_LACKING = {
    "flip": "and its depths for an image and the mirror image aren't known",
    "between": "which several teachers have whose depths are averaged",
    "own": "and it gives no distribution over depth bins",
}
_KEYS = ("from", "factor", "calibration", "max", "modes")
# The side of the window over which the squared difference of two depths is averaged, as a fraction
# of an image's shorter side. A single squared difference has a relative standard deviation of 141
# %. The errors of neighbouring pixels are correlated, so only a window of many pixels lowers it.
# But the window has to be narrower than the objects, whose errors differ.
_WINDOW = 1 / 20


@dataclass(frozen=True)
class SigmaOptions:
    """The parsed `teacher.sigma` of a recipe: the source of sigma, and how it is corrected.

    Attributes:
        source: One of SOURCES; None for a constant sigma.
        constant: The constant sigma in metres; None for a source.
        factors: (depth in metres, factor) pairs, nearest first. The factor is interpolated linearly
            between these depths, and constant beyond the first and last one.
        max_m: The largest sigma in metres; None if only the head limits sigma.
        modes: For `own`, the number of modes of the distribution that become the components of a
            mixture; 0 for a single sigma.
        calibration: The measurements on ground truth from which the factors come; None if the
            factors weren't measured.
    """

    source: str | None = None
    constant: float | None = None
    factors: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    max_m: float | None = None
    modes: int = 0
    calibration: Calibration | None = field(default=None, repr=False)

    @property
    def description(self) -> dict | float:
        """The description of sigma for the manifest of cached maps.

        It is a dict with the source, the factors, the limit, and, if there is a calibration, its
        number of frames and its rank correlations between sigma and the error. For a constant sigma
        it is the number of metres.
        """
        if self.source is None:
            return self.constant
        factors = [list(pair) for pair in self.factors]
        node = {"from": self.source, "factors": factors, "max_m": self.max_m}
        if self.calibration is not None:
            node["frames"] = self.calibration.frames
            node["rank_correlation"] = list(self.calibration.correlation)
            node["rank_correlation_at_equal_depth"] = list(self.calibration.at_depth)
        return node

    def check_source(self, allowed: Collection[str], flip: bool) -> None:
        """Raises TeacherError if the teacher can't give sigma from the chosen source.

        Args:
            allowed: The sources that the teacher offers.
            flip: True if the teacher averages its depth with that for the mirror image.
        """
        if self.source is not None and self.source not in allowed:
            raise TeacherError(
                f"teacher.sigma.from: got {self.source}, {_LACKING[self.source]}; allowed for this "
                f"teacher: {', '.join(allowed) or 'none'}, or a number of metres as teacher.sigma"
            )
        if self.source == "flip" and not flip:
            raise TeacherError(
                "teacher.sigma.from: flip needs teacher.flip=true; the mirror image is predicted "
                "either way"
            )
        if self.modes and flip:
            raise TeacherError(
                "teacher.sigma.modes: the modes of an image and of its mirror image can't be "
                "averaged; set teacher.flip=false"
            )

    def check_teacher(self, digest: str | None, flip: bool) -> None:
        """Raises TeacherError if the calibration was made for other weights or another `flip`.

        Args:
            digest: The digest of the teacher's weights; None if the weights aren't accessible.
            flip: True if the teacher averages its depth with that for the mirror image.
        """
        found = self.calibration
        if found is None:
            return
        if found.teacher != digest:
            raise TeacherError(
                "teacher.sigma.calibration: it is of another teacher (digest "
                f"{str(found.teacher):.12}, not {str(digest):.12}); make one with "
                f"{console.command('audit_teacher')} RECIPE --sigma"
            )
        if found.flip != flip:
            measured = str(found.flip).lower()
            raise TeacherError(
                f"teacher.sigma.calibration: it was measured with teacher.flip={measured}; set "
                f"the same, or make one with {console.command('audit_teacher')} RECIPE --sigma"
            )

    def note(self) -> str | None:
        """Returns a line for the log that says how well sigma agrees with the teacher's errors.

        It has the measurements of the calibration, or, if there is none, a warning. The result is
        None for a constant sigma.
        """
        if self.source is None:
            return None
        if self.calibration is None:
            return (
                f"Warning: teacher.sigma: nothing shows that {self.source} orders this teacher's "
                "errors, nor how large they are; measure it with "
                f"{console.command('audit_teacher')} RECIPE --sigma, and set "
                "teacher.sigma.calibration"
            )
        smallest, largest = (limit(factor for _, factor in self.factors) for limit in (min, max))
        return (
            f"Teacher: sigma from {self.source}, times {smallest:.2f} to {largest:.2f}; rank "
            f"correlation with its errors {text_of(self.calibration.correlation)}, at equal depth "
            f"{text_of(self.calibration.at_depth)}, on {self.calibration.frames} frames"
        )

    def finished(self, sigma: Tensor, depth: Tensor) -> Tensor:
        """Multiplies each sigma by the factor for the pixel's depth, and limits it to `max_m`.

        Args:
            sigma: (B, M, H, W), metres.
            depth: (B, M, H, W), the teacher's depth, metres.

        Returns:
            (B, M, H, W) float32, metres; 0 where the depth is invalid.
        """
        sigma = sigma * factor_at(depth, self.factors)
        if self.max_m is not None:
            sigma = sigma.clamp_max(self.max_m)
        return torch.where(depth > 0, sigma, 0)


def options_of(node: float | dict | None) -> SigmaOptions | None:
    """Reads the recipe's `teacher.sigma`.

    Args:
        node: A number of metres, a dict with the keys of `teacher.sigma`, or None for no sigma.

    Returns:
        The options; None if `node` is None.

    Raises:
        TeacherError: A key or value isn't allowed, or the calibration can't be used.
    """
    if node is None:
        return None
    if not isinstance(node, dict):
        return SigmaOptions(constant=_metres(node, "sigma"))
    for key in node:
        if key not in _KEYS:
            raise TeacherError(f"teacher.sigma.{key}: not a key; allowed: {', '.join(_KEYS)}")
    source = node.get("from")
    if source not in SOURCES:
        raise TeacherError(
            f"teacher.sigma.from: got {source!r}; allowed: {', '.join(SOURCES)}, or a number of "
            "metres as teacher.sigma"
        )
    modes = node.get("modes", 0)
    if type(modes) is not int or modes < 0 or modes == 1:
        raise TeacherError(f"teacher.sigma.modes: got {modes!r}; a whole number of 2 or more")
    if modes and source != "own":
        raise TeacherError(f"teacher.sigma.modes: only for own, {source} has a single sigma")
    largest = node.get("max")
    calibration = None
    if node.get("calibration") is not None:
        if "factor" in node:
            raise TeacherError("teacher.sigma: has both calibration and factor; give one of them")
        if modes:
            raise TeacherError(
                "teacher.sigma.calibration: it is of a single sigma, and modes gives several; "
                "leave one of them out"
            )
        path = Path(str(node["calibration"])).expanduser()
        calibration = sigma_calibration.read(path, source, "teacher.sigma.calibration")
    return SigmaOptions(
        source=source,
        factors=_factors(node.get("factor", 1.0)) if calibration is None else calibration.factors,
        max_m=None if largest is None else _metres(largest, "sigma.max"),
        modes=modes,
        calibration=calibration,
    )


def reads_own(node: float | dict | None) -> bool:
    """Returns True if the source in the recipe's `teacher.sigma` is `own`."""
    return isinstance(node, dict) and node.get("from") == "own"


def disagreement(depths: Tensor) -> Tensor:
    """Returns the standard deviation between several depths of a pixel, averaged over a window.

    For two depths it is |difference| / sqrt(2). Squares are averaged over the pixels of the window
    that have at least two valid depths. The window is square, with a side of a twentieth of the
    image's shorter side, and at least 3 pixels.

    Args:
        depths: (B, T, H, W), of T teachers or of an image and its mirror image, metres; a depth is
            invalid where it isn't above 0.

    Returns:
        (B, 1, H, W) float32, metres; 0 where no pixel of the window has two valid depths.
    """
    depths = depths.float()
    valid = depths > 0
    count = valid.sum(1, keepdim=True)
    # Replace invalid depths rather than multiply them by 0, since they may be NaN.
    mean = torch.where(valid, depths, 0).sum(1, keepdim=True) / count.clamp_min(1)
    squares = torch.where(valid, depths - mean, 0).square().sum(1, keepdim=True)
    # Divide by the number of depths minus one, as for the variance about an estimated mean.
    variance = squares / (count - 1).clamp_min(1)
    known = (count > 1).float()
    side = 2 * round(min(depths.shape[-2:]) * _WINDOW / 2) + 1
    total, share = (_averaged(values, max(3, side)) for values in (variance * known, known))
    return (total / share.clamp_min(1e-12)).sqrt()


def factor_at(depth: Tensor, factors: tuple[tuple[float, float], ...]) -> Tensor | float:
    """Interpolates the factor by which a pixel's sigma is multiplied, from the pixel's depth.

    Args:
        depth: Metres, any shape.
        factors: (depth in metres, factor) pairs, nearest first.

    Returns:
        The factors, in the shape of `depth`; a number if there is a single pair.
    """
    if len(factors) == 1:
        return factors[0][1]
    result = torch.full_like(depth, factors[0][1])
    for (near, low), (far, high) in zip(factors[:-1], factors[1:], strict=True):
        result += ((depth - near) / (far - near)).clamp(0, 1) * (high - low)
    return result


def _averaged(values: Tensor, side: int) -> Tensor:
    """Returns the mean of the pixels in a square window around each pixel, (B, 1, H, W).

    Near the border of the image the mean is over the part of the window that is inside the image.

    Args:
        values: (B, 1, H, W).
        side: The side of the window in pixels, an odd number.
    """
    half = side // 2
    rows = avg_pool2d(values, (side, 1), 1, (half, 0), count_include_pad=False)
    return avg_pool2d(rows, (1, side), 1, (0, half), count_include_pad=False)


def _metres(value: object, key: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise TeacherError(f"teacher.{key}: got {value!r:.80}; metres above 0")
    return float(value)


def _factors(value: object) -> tuple[tuple[float, float], ...]:
    pairs = value if isinstance(value, list | tuple) else [[1.0, value]]
    try:
        numbers = tuple((float(depth), float(factor)) for depth, factor in pairs)
    except (TypeError, ValueError):
        numbers = ()
    depths = [depth for depth, _ in numbers]
    fits = bool(numbers) and depths == sorted(set(depths))
    if not fits or not all(0 < number < float("inf") for pair in numbers for number in pair):
        raise TeacherError(
            f"teacher.sigma.factor: got {value!r:.80}; a number above 0, or pairs [depth in "
            "metres, factor] with increasing depths"
        )
    return numbers
