"""Compares an exported file with `load_student`, on images at their own size, and times both.

The student is an independent reference, since it shares no arithmetic with the file's graph: it
resizes images in integers, normalises them with the lookup table used in training, runs the DPM
head's own kernel, and resizes maps by indexing. There are limits on the 99.9th percentile of the
differences over pixels and on the largest difference. The readouts `mode` and `local` take depth
from the likeliest depth bin, or from it and its neighbours. Pixels at which two bins are equally
likely are ties: rounding decides which bin is taken, so they are excluded. The readout `local` has
no limit on the largest difference, since rounding decides whether the outermost neighbour is
included. Confidence and sigma are interpolated between pixels of the head's output, so they are
compared only where none of these is a tie.
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

# Largest allowed difference of depth: (99.9th percentile, maximum).
LIMITS_M = 1e-3, 1e-2  # for a float32 file, in metres
HALF_LIMITS = 1 / 100, 1 / 20  # for a float16 file, as fractions of the network's max_depth
# Each of the following two constants has one value for a float32 and one for a float16 file.
CONFIDENCE_LIMITS = 1e-3, 5e-2  # largest allowed 99.9th percentile of the difference of confidence
TIES = 1e-4, 5e-2  # difference in probability below which two bins count as equally likely
RUNS = 5  # number of timed runs
RUNS_S = 10.0  # seconds after which no further run is started


class Limits(NamedTuple):
    """The largest differences allowed between the file and the student.

    Attributes:
        depth_p999: 99.9th percentile of the difference of depth, metres.
        depth_max: Largest difference of depth, metres; None for no limit.
        confidence_p999: 99.9th percentile of the difference of confidence, 0 to 1.
        sigma_p999: 99.9th percentile of the difference of sigma, metres.
        tie: Pixels whose two likeliest bins differ by less than this probability are excluded; None
            to compare all pixels.
    """

    depth_p999: float
    depth_max: float | None
    confidence_p999: float
    sigma_p999: float
    tie: float | None = None


class Comparison(NamedTuple):
    """The differences between file and student on one batch of images.

    Attributes:
        size: (B, H, W) of the batch of images.
        low: Smallest depth that the student predicts, metres.
        high: Largest depth that the student predicts, metres.
        depth_p999: 99.9th percentile of the difference of depth, metres; NaN if all pixels are
            excluded.
        depth_max: Largest difference of depth, metres; NaN if all pixels are excluded.
        confidence_p999: 99.9th percentile of the difference of confidence; None without that
            output, NaN if all pixels are excluded.
        sigma_p999: The same for sigma, metres.
        limits: The largest allowed differences.
        ties: Fraction of pixels that were excluded because two bins are about equally likely; None
            for the readout "mean", which compares all pixels.
    """

    size: tuple[int, int, int]
    low: float
    high: float
    depth_p999: float
    depth_max: float
    confidence_p999: float | None
    sigma_p999: float | None
    limits: Limits
    ties: float | None = None

    def holds(self) -> bool:
        """Returns True if all differences are within the limits; NaN isn't within a limit."""
        return (
            math.isfinite(self.depth_max)
            and self.depth_p999 <= self.limits.depth_p999
            and (self.limits.depth_max is None or self.depth_max <= self.limits.depth_max)
            and (
                self.confidence_p999 is None or self.confidence_p999 <= self.limits.confidence_p999
            )
            and (self.sigma_p999 is None or self.sigma_p999 <= self.limits.sigma_p999)
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
                f"({self.limits.confidence_p999:g}), of sigma {self.sigma_p999:.6f} m "
                f"({self.limits.sigma_p999:g})"
            )
        return line


class Reference:
    """A student as a function with the input and the outputs of an exported file.

    Args:
        student: The student, as `load_student` returns it.
        confidence: True to return confidence and sigma, too.
        focals: Focal lengths in pixels of the images' own size. A batch's images get them one after
            the other, again from the first one if there are more images. Empty for a network
            without a canonical camera.
    """

    def __init__(self, student: Student, confidence: bool, focals: Sequence[float] = ()):
        self.student = student
        self.confidence = confidence
        self.focals = focals

    def focals_of(self, count: int) -> list[float] | None:
        """Returns the focal lengths with which a batch of images is verified, in pixels.

        The i-th image gets element i of `focals`, which is repeated if it is shorter.

        Args:
            count: Number of images in the batch.

        Returns:
            `count` focal lengths; None for a network without a canonical camera.
        """
        if not self.focals:
            return None
        return [self.focals[index % len(self.focals)] for index in range(count)]

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Predicts depth, and confidence and sigma if they were requested, with the student.

        Args:
            pixels: (B, 3, H, W) uint8 RGB at the images' own size.

        Returns:
            (depth,) or (depth, confidence, sigma), each (B, 1, H, W) float32; depth and sigma in
            metres, confidence from 0 to 1.
        """
        focal = self.focals_of(len(pixels))
        reading = self.student.predict(pixels, self.confidence, focal)
        return tuple(reading) if self.confidence else (reading.depth,)

    def compared_pixels(self, pixels: Tensor, tie: float | None) -> Tensor | None:
        """Returns the mask of the pixels at which file and student are compared.

        Args:
            pixels: (B, 3, H, W) uint8 RGB at the images' own size.
            tie: A pixel is left out if the probabilities of its two likeliest depth bins differ by
                less than this; None to compare all pixels.

        Returns:
            (B, 1, H, W) bool, True at pixels that are compared; None if all are. With learned
            upsampling, pixels whose two largest upsampling weights differ by less than `tie` are
            left out, too.
        """
        return None if tie is None else self.student.margins(pixels) >= tie

    def compared_certainty_pixels(self, pixels: Tensor, tie: float | None) -> Tensor | None:
        """Returns the mask of the pixels at which confidence and sigma are compared.

        Both are interpolated between pixels of the head's output. An output pixel is a tie if the
        probabilities of its two likeliest bins differ by less than `tie`.

        Args:
            pixels: (B, 3, H, W) uint8 RGB at the images' own size.
            tie: The difference in probability that makes a tie; None to compare all pixels.

        Returns:
            (B, 1, H, W) bool, False at pixels whose values depend on a tie; None if all pixels are
            compared.
        """
        return None if tie is None else self.student.tie_weight(pixels, tie) == 0


def limits_of(half: bool, readout: str, max_depth: float) -> Limits:
    """Returns the largest differences that are allowed between an exported file and the student.

    Args:
        half: True for a file that computes in float16.
        readout: How depth is read from the distribution over depth bins: "mean", "mode" or "local".
        max_depth: The largest depth that the network predicts, in metres.

    Returns:
        A `Limits`.
    """
    p999, largest = (share * max_depth for share in HALF_LIMITS) if half else LIMITS_M
    if readout == "mean":
        return Limits(p999, largest, CONFIDENCE_LIMITS[half], p999)
    # For depth at the likeliest bin ("mode"), limit the largest difference in float32 only: in
    # float16, rounding can move the depth to a neighbouring bin. For the mean over the bins around
    # the likeliest one ("local"), don't limit it, since rounding can shift these bins by one.
    same_bin = p999 if readout == "mode" and not half else None
    return Limits(p999, same_bin, CONFIDENCE_LIMITS[half], p999, TIES[half])


def compare(run: Callable, reference: Reference, images: Tensor, limits: Limits) -> Comparison:
    """Compares the file with the student on a batch of images.

    Args:
        run: The file as a function from the images to the tuple of its outputs.
        reference: The student as a function of the same kind.
        images: (B, 3, H, W) uint8.
        limits: The largest allowed differences. They are recorded, not enforced.

    Returns:
        A `Comparison`.

    Raises:
        ExportError: The shape or dtype of an output differs.
    """
    found = run(images)
    wanted = reference(images)
    for got, right in zip(found, wanted, strict=True):
        if got.shape != right.shape or got.dtype != right.dtype:
            raise ExportError(
                f"the file gives {got.dtype} of {tuple(got.shape)}, the network {right.dtype} of "
                f"{tuple(right.shape)}; nothing is written"
            )
    # errors[0] is for depth; the others are for confidence and sigma, if there are these outputs.
    errors = [(got - right).abs().flatten() for got, right in zip(found, wanted, strict=True)]
    # Exclude pixels at which rounding decides between two bins.
    compared = reference.compared_pixels(images, limits.tie)
    ties = None
    if compared is not None:
        ties = 1 - compared.float().mean().item()
        errors[0] = errors[0][compared.flatten()]
    if compared is not None and len(errors) > 1:
        compared_certainty = reference.compared_certainty_pixels(images, limits.tie).flatten()
        errors[1:] = [error[compared_certainty] for error in errors[1:]]
    p999 = [_percentile(error, 0.999) for error in errors]
    return Comparison(
        size=(len(images), *images.shape[2:]),
        low=wanted[0].min().item(),
        high=wanted[0].max().item(),
        depth_p999=p999[0],
        depth_max=errors[0].max().item() if errors[0].numel() else math.nan,
        confidence_p999=p999[1] if len(p999) > 1 else None,
        sigma_p999=p999[2] if len(p999) > 1 else None,
        limits=limits,
        ties=ties,
    )


def refuse_disagreement(comparisons: Sequence[Comparison], path: Path) -> None:
    """Checks that an exported file agrees with the student on every batch.

    Args:
        comparisons: The results of `compare`, one per batch.
        path: The exported file, for the error message.

    Raises:
        ExportError: A difference is beyond its limit, or no pixel of a batch was compared.
    """
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
    """Returns the median latency in ms of RUNS runs, or of those that start within RUNS_S s.

    A warm-up run before them isn't included.

    Args:
        run: The function to time.
        image: The function's argument, (1, 3, H, W) uint8.
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
