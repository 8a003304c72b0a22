"""Compares an exported file with `load_student`, on images at their own size, and times both.

The student shares nothing with the file's graph: its images are resized in integers and normalised
by training's own table, the DPM head has its own kernel, and readouts are brought to the image's
size by indices. Limits hold for the 99.9th percentile over pixels and for the largest difference. A
readout that selects the likeliest bin jumps where two bins are equally likely, and rounding
decides: pixels with such a tie don't count. `local` has no limit on the largest difference, since a
bin at the end of its reach may be included or not.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tiekd.errors import ExportError
from tiekd.inference.student import Student

LIMITS_M = 1e-3, 1e-2  # float32, metres: 99.9th percentile and largest
HALF_LIMITS = 1 / 100, 1 / 20  # float16: the same, as shares of the network's max_depth
CONFIDENCE_LIMITS = 1e-3, 5e-2  # p99.9 in float32 and in float16
# In float32 and in float16: two bins are equally likely if their probabilities differ by less.
TIES = 1e-4, 5e-2
RUNS = 5
RUNS_S = 10.0


class Limits(NamedTuple):
    """The largest differences that are allowed.

    Attributes:
        depth_p999: Metres, 99.9th percentile.
        depth_max: Metres; None for no limit.
        confidence_p999: Of a probability.
        tie: Pixels whose two likeliest bins differ by less in probability don't count; None if all
            count.
    """

    depth_p999: float
    depth_max: float | None
    confidence_p999: float
    tie: float | None = None


class Comparison(NamedTuple):
    """The comparison on one batch of images.

    Attributes:
        size: (B, H, W).
        low: Smallest depth of the network, metres.
        high: Largest depth of the network, metres.
        depth_p999: 99.9th percentile of the differences, metres; NaN if no pixel counts.
        depth_max: Largest difference, metres; NaN if no pixel counts.
        confidence_p999: 99.9th percentile for confidence; None without that output.
        limits: What is allowed.
        ties: Share of pixels that don't count; None if all do.
    """

    size: tuple[int, int, int]
    low: float
    high: float
    depth_p999: float
    depth_max: float
    confidence_p999: float | None
    limits: Limits
    ties: float | None = None

    def holds(self) -> bool:
        """Returns True if all differences are within the limits; NaN is not."""
        return (
            math.isfinite(self.depth_max)
            and self.depth_p999 <= self.limits.depth_p999
            and (self.limits.depth_max is None or self.depth_max <= self.limits.depth_max)
            and (
                self.confidence_p999 is None or self.confidence_p999 <= self.limits.confidence_p999
            )
        )

    def __str__(self) -> str:
        batch, height, width = self.size
        most = "any" if self.limits.depth_max is None else f"{self.limits.depth_max:g}"
        line = (
            f"{batch} x {height}x{width}, depth {self.low:.2f} to {self.high:.2f} m: error p99.9 "
            f"{self.depth_p999:.6f} m, max {self.depth_max:.6f} m (allowed "
            f"{self.limits.depth_p999:g} and {most})"
        )
        if self.ties:
            line += f", but for {self.ties:.2%} of pixels, where two bins are equally likely"
        if self.confidence_p999 is not None:
            line += (
                f", of confidence p99.9 {self.confidence_p999:.6f} "
                f"({self.limits.confidence_p999:g})"
            )
        return line


class Reference:
    """`load_student`'s results for (B, 3, H, W) uint8 images, with the outputs of the file."""

    def __init__(self, student: Student, confidence: bool):
        self.student = student
        self.confidence = confidence

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns (depth,) or (depth, confidence) of the images at their own size."""
        reading = self.student.predict(pixels, self.confidence)
        return (reading.depth, reading.confidence) if self.confidence else (reading.depth,)

    def counts(self, pixels: Tensor, tie: float | None) -> Tensor | None:
        """Returns (B, 1, H, W), False where two bins are equally likely; None if all count."""
        return None if tie is None else self.student.margins(pixels) >= tie


def limits_of(half: bool, readout: str, max_depth: float) -> Limits:
    """Returns the limits of an export.

    Args:
        half: True for float16.
        readout: "mean", "mode" or "local".
        max_depth: The network's range in metres.
    """
    p999, largest = (share * max_depth for share in HALF_LIMITS) if half else LIMITS_M
    if readout == "mean":
        return Limits(p999, largest, CONFIDENCE_LIMITS[half])
    # Rounding can move a float16 readout to a neighbouring bin, and `local`'s reach by one bin.
    same_bin = p999 if readout == "mode" and not half else None
    return Limits(p999, same_bin, CONFIDENCE_LIMITS[half], TIES[half])


def compare(run: Callable, reference: Reference, images: Tensor, limits: Limits) -> Comparison:
    """Compares the file with the student on a batch of images.

    Args:
        run: The file as a function of the images.
        reference: The student.
        images: (B, 3, H, W) uint8.
        limits: What is allowed.

    Raises:
        ExportError: If shapes or dtypes differ.
    """
    found = run(images)
    wanted = reference(images)
    for got, right in zip(found, wanted, strict=True):
        if got.shape != right.shape or got.dtype != right.dtype:
            raise ExportError(
                f"the file gives {got.dtype} of {tuple(got.shape)}, the network {right.dtype} of "
                f"{tuple(right.shape)}; nothing is written"
            )
    # Depth first, then confidence if there is one.
    errors = [(got - right).abs().flatten() for got, right in zip(found, wanted, strict=True)]
    # Leave out pixels at which rounding decides between two bins.
    counts = reference.counts(images, limits.tie)
    ties = None
    if counts is not None:
        ties = 1 - counts.float().mean().item()
        errors[0] = errors[0][counts.flatten()]
    p999 = [_percentile(error, 0.999) for error in errors]
    return Comparison(
        size=(len(images), *images.shape[2:]),
        low=wanted[0].min().item(),
        high=wanted[0].max().item(),
        depth_p999=p999[0],
        depth_max=errors[0].max().item() if errors[0].numel() else math.nan,
        confidence_p999=p999[1] if len(p999) > 1 else None,
        limits=limits,
        ties=ties,
    )


def refuse_disagreement(comparisons: Sequence[Comparison], path: Path) -> None:
    """Raises ExportError that shows the first comparison beyond its limits."""
    for row in comparisons:
        if row.ties == 1:
            raise ExportError(
                f"{path}: not written, nothing can be compared: at every pixel two bins are "
                "equally likely, as before any training; leave out --readout, or train the student"
            )
        if not row.holds():
            raise ExportError(
                f"{path}: not written, it doesn't say what the network says: {row}; leave out "
                "--half, or try another --format"
            )


def latency_ms(run: Callable, image: Tensor) -> float:
    """Returns the median time of a run in ms, over RUNS runs or about RUNS_S seconds.

    One run before them isn't counted.
    """
    run(image)
    times = []
    while len(times) < RUNS and sum(times) < RUNS_S:
        started = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def _percentile(values: Tensor, share: float) -> float:
    if values.numel() == 0:
        return math.nan
    return values.kthvalue(math.ceil(share * values.numel())).values.item()
