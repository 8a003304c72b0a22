"""What an exported file says against what `load_student` says, on pictures at their own size; and how long both take.

The student shares nothing with the file's graph: its pictures are resized in integers and normalised by training's own
table, the DPM head has its own kernel, and readouts come up to the picture's size by indices. Limits are on the 99.9th
percentile over pixels and on the largest difference. A readout that picks the likeliest bin jumps where two bins are
equally likely, which rounding decides: pixels with such a tie don't count; `local` has no limit on the largest
difference, since a bin at the end of its reach may be one or the other.
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

LIMITS_M = 1e-3, 1e-2  # float32: p99.9 and largest
HALF_LIMITS = 1 / 100, 1 / 20  # float16: the same, in shares of the network's max_depth
CONFIDENCE_LIMITS = 1e-3, 5e-2  # p99.9 in float32 and in float16
# In float32 and in float16: two bins whose probabilities differ by less are equally likely.
TIES = (
    1e-4,
    5e-2,
)
RUNS = 5
RUNS_S = 10.0


class Limits(NamedTuple):
    """What may differ. depth_p999, depth_max: metres; confidence_p999: of a probability; None where anything may.
    tie: pixels whose two likeliest bins differ by less in probability don't count; None where all count."""

    depth_p999: float
    depth_max: float | None
    confidence_p999: float
    tie: float | None = None


class Agreement(NamedTuple):
    """One batch of pictures. size: (B, H, W); low, high: of the network's depth; depth_p999, depth_max: of the
    differences, all in metres, NaN where no pixel counts; confidence_p999: None without; ties: the share of pixels that
    don't count, None where all do."""

    size: tuple[int, int, int]
    low: float
    high: float
    depth_p999: float
    depth_max: float
    confidence_p999: float | None
    limits: Limits
    ties: float | None = None

    def holds(self) -> bool:
        """Whether all is within the limits; NaN isn't."""
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
    """What `load_student` makes of (B, 3, H, W) uint8 pictures, with the outputs of the file."""

    def __init__(self, student: Student, confidence: bool):
        self.student = student
        self.confidence = confidence

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        reading = self.student.predict(pixels, self.confidence)
        return (reading.depth, reading.confidence) if self.confidence else (reading.depth,)

    def counts(self, pixels: Tensor, tie: float | None) -> Tensor | None:
        """(B, 1, H, W), False where two bins are equally likely; None where all pixels count."""
        return None if tie is None else self.student.margins(pixels) >= tie


def limits_of(half: bool, readout: str, max_depth: float) -> Limits:
    """The limits of an export of a network up to max_depth metres."""
    p999, largest = (share * max_depth for share in HALF_LIMITS) if half else LIMITS_M
    if readout == "mean":
        return Limits(p999, largest, CONFIDENCE_LIMITS[half])
    same_bin = p999 if readout == "mode" and not half else None
    return Limits(p999, same_bin, CONFIDENCE_LIMITS[half], TIES[half])


def agreement(run: Callable, reference: Reference, pictures: Tensor, limits: Limits) -> Agreement:
    """What the file (`run`) and the student make of a batch of uint8 pictures. Raises ExportError for other shapes."""
    found = run(pictures)
    wanted = reference(pictures)
    for got, right in zip(found, wanted, strict=True):
        if got.shape != right.shape or got.dtype != right.dtype:
            raise ExportError(
                f"the file gives {got.dtype} of {tuple(got.shape)}, the network {right.dtype} of "
                f"{tuple(right.shape)}; nothing is written"
            )
    errors = [(got - right).abs().flatten() for got, right in zip(found, wanted, strict=True)]
    counts = reference.counts(pictures, limits.tie)
    ties = None
    if counts is not None:
        ties = 1 - counts.float().mean().item()
        errors[0] = errors[0][counts.flatten()]
    p999 = [_percentile(error, 0.999) for error in errors]
    return Agreement(
        size=(len(pictures), *pictures.shape[2:]),
        low=wanted[0].min().item(),
        high=wanted[0].max().item(),
        depth_p999=p999[0],
        depth_max=errors[0].max().item() if errors[0].numel() else math.nan,
        confidence_p999=p999[1] if len(p999) > 1 else None,
        limits=limits,
        ties=ties,
    )


def refuse_disagreement(agreements: Sequence[Agreement], path: Path) -> None:
    """Raises ExportError that shows the first row beyond its limits."""
    for row in agreements:
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


def latency_ms(run: Callable, picture: Tensor) -> float:
    """Median over a few runs, at most some ten seconds' worth, after one that doesn't count."""
    run(picture)
    times = []
    while len(times) < RUNS and sum(times) < RUNS_S:
        started = time.perf_counter()
        run(picture)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def _percentile(values: Tensor, share: float) -> float:
    if values.numel() == 0:
        return math.nan
    return values.kthvalue(math.ceil(share * values.numel())).values.item()
