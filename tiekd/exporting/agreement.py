"""What an exported file says against what the network says, on pictures; and how long both take.

The network is run as evaluation runs it: pictures normalised by training's own table, and the DPM head's own kernel.
Limits are on the 99.9th percentile over pixels and on the largest difference. A readout that picks the likeliest bin
jumps where two bins are equally likely, which rounding decides: there is no limit on the largest difference then.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.transforms import colour_table, look_up
from tiekd.errors import ExportError
from tiekd.models.deployed import Deployed
from tiekd.models.network import Network

LIMITS_M = 1e-3, 1e-2  # float32: p99.9 and largest
HALF_LIMITS = 1 / 100, 1 / 20  # float16: the same, in shares of the network's max_depth
CONFIDENCE_LIMITS = 1e-3, 5e-2  # p99.9 in float32 and in float16
RUNS, RUNS_S = 5, 10.0


class Limits(NamedTuple):
    """What may differ. depth_p999, depth_max: metres; confidence_p999: of a probability; None where anything may."""

    depth_p999: float
    depth_max: float | None
    confidence_p999: float


class Agreement(NamedTuple):
    """One batch of pictures. size: (B, H, W); low, high: of the network's depth; depth_p999, depth_max: of the
    differences, all in metres; confidence_p999: None without."""

    size: tuple[int, int, int]
    low: float
    high: float
    depth_p999: float
    depth_max: float
    confidence_p999: float | None
    limits: Limits

    def holds(self) -> bool:
        """Whether all is within the limits; NaN isn't."""
        return (
            math.isfinite(self.depth_max)
            and self.depth_p999 <= self.limits.depth_p999
            and (self.limits.depth_max is None or self.depth_max <= self.limits.depth_max)
            and (self.confidence_p999 is None or self.confidence_p999 <= self.limits.confidence_p999)
        )

    def __str__(self) -> str:
        batch, height, width = self.size
        most = "any" if self.limits.depth_max is None else f"{self.limits.depth_max:g}"
        line = (
            f"{batch} x {height}x{width}, depth {self.low:.2f} to {self.high:.2f} m: error p99.9 {self.depth_p999:.6f} "
            f"m, max {self.depth_max:.6f} m (allowed {self.limits.depth_p999:g} and {most})"
        )
        if self.confidence_p999 is not None:
            line += f", of confidence p99.9 {self.confidence_p999:.6f} ({self.limits.confidence_p999:g})"
        return line


class Reference:
    """The network as a function of (B, 3, H, W) uint8 pictures, with the outputs of `Deployed`."""

    def __init__(self, network: Network, readout: str, confidence: bool):
        self.network, self.readout, self.confidence = network, readout, confidence
        self.table = colour_table()[None]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        depth = ()
        if self.readout == "mean":
            depth = (self.network(look_up(image, self.table.expand(len(image), -1, -1))).depth,)
            if not self.confidence:
                return depth
        outputs = Deployed(self.network, self.readout, self.confidence)(image)
        return depth + outputs[len(depth) :]


def limits_of(half: bool, readout: str, max_depth: float) -> Limits:
    """The limits of an export of a network up to max_depth metres."""
    p999, largest = (share * max_depth for share in HALF_LIMITS) if half else LIMITS_M
    return Limits(p999, largest if readout == "mean" else None, CONFIDENCE_LIMITS[half])


def agreement(run: Callable, reference: Callable, pictures: Tensor, limits: Limits) -> Agreement:
    """What the file (`run`) and the network make of a batch of uint8 pictures. Raises ExportError for other shapes."""
    found, wanted = run(pictures), reference(pictures)
    for got, right in zip(found, wanted, strict=True):
        if got.shape != right.shape or got.dtype != right.dtype:
            raise ExportError(
                f"the file gives {got.dtype} of {tuple(got.shape)}, the network {right.dtype} of "
                f"{tuple(right.shape)}; nothing is written"
            )
    errors = [(got - right).abs().flatten() for got, right in zip(found, wanted, strict=True)]
    p999 = [_percentile(error, 0.999) for error in errors]
    return Agreement(
        size=(len(pictures), *pictures.shape[2:]),
        low=wanted[0].min().item(),
        high=wanted[0].max().item(),
        depth_p999=p999[0],
        depth_max=errors[0].max().item(),
        confidence_p999=p999[1] if len(p999) > 1 else None,
        limits=limits,
    )


def refuse_disagreement(agreements: Sequence[Agreement], path: Path) -> None:
    """Raises ExportError that shows the first row beyond its limits."""
    for row in agreements:
        if not row.holds():
            raise ExportError(
                f"{path}: not written, it doesn't say what the network says: {row}; leave out --half, or try another "
                "--format"
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
    return values.kthvalue(math.ceil(share * values.numel())).values.item()
