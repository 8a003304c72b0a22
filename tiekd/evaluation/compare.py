"""Networks side by side on the same frames: which take part, what each of them comes to, and all of it as one value.

One pass over the frames a network, so memory holds one network's work at a time. Each network sees the first recipe's
frames at its own working resolution; all are scored at the ground truth's own size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd import paths
from tiekd.data import resize as resizes
from tiekd.data import trained_on
from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.trained_on import Overlap, TrainedOn
from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.evaluation import evaluate as evaluation
from tiekd.evaluation import per_frame
from tiekd.evaluation.evaluate import EvaluationSettings, Watcher
from tiekd.evaluation.per_frame import FrameRows, FrameTable
from tiekd.evaluation.range_errors import RangeFigures, range_figures
from tiekd.models import flip as flipping
from tiekd.models import load
from tiekd.workdir import workdir


class Entrant(NamedTuple):
    """One that is evaluated. predict: image (B, 3, H, W), normalised and at the working resolution `resize` -> metres
    (B, 1, H, W); weights: the file; trained_on: which frames, where it is known."""

    predict: Callable[[Tensor], Tensor]
    weights: Path | None = None
    trained_on: TrainedOn | None = None
    resize: Resize = OWN_SIZE

    def depth_of(self, pixels: Tensor, device: torch.device) -> Tensor:
        """(B, 3, H, W) uint8 pictures at their own size -> metres (B, 1, H, W), as they are scored."""
        image = resizes.network_input(pixels, self.resize).to(device)
        image = look_up(image, colour_table()[None].to(device).expand(len(image), -1, -1))
        return resizes.restored(
            self.predict(image), self.resize, tuple(pixels.shape[-2:]), smooth=True
        )


class Result(NamedTuple):
    """What an entrant comes to: the nine metrics, bias and error by range, its frames, and how many of them it was
    trained on, None where that isn't known; resize: how it saw them."""

    weights: Path | None
    metrics: dict[str, float]
    ranges: list[RangeFigures]
    frames: FrameTable
    overlap: Overlap | None = None
    resize: Resize = OWN_SIZE


class Protocol(NamedTuple):
    """How the figures were made."""

    split: str
    settings: EvaluationSettings
    min_depth: float
    max_depth: float

    @property
    def cap(self) -> float:
        """The ground truth that counts is below this, in metres."""
        return self.max_depth if self.settings.cap is None else self.settings.cap


def entrants(
    named: Sequence[tuple[str, str | None]],
    overrides: Sequence[str],
    flip: bool,
    device: torch.device,
) -> dict[str, Entrant]:
    """The networks of (recipe, checkpoint) pairs, by names that tell them apart; the overrides are the last one's.

    A recipe is called by its file, the one that a run saved by its work dir.
    """
    found: dict[str, Entrant] = {}
    for place, (recipe_path, checkpoint_path) in enumerate(named):
        last = place == len(named) - 1
        network, path, resize = load.load_network(
            recipe_path, checkpoint_path, overrides if last else ()
        )
        file = Path(recipe_path)
        stem = file.resolve().parent.name if file.name == workdir.RECIPE else file.stem
        tries = (stem, f"{stem}:{path.name}", f"{recipe_path}:{path}")
        name = next(
            (name for name in tries if name not in found), f"{recipe_path}:{path} ({place + 1})"
        )
        predict = partial(flipping.predict, network.to(device).eval(), flip=flip)
        found[name] = Entrant(predict, path, trained_on.read(path), resize)
    return found


def overlaps(entrants: Mapping[str, Entrant], frames: Dataset) -> dict[str, Overlap | None]:
    """How many of the frames each entrant was trained on. Collective: rank 0 looks at the files."""
    found = None
    if comm.is_main():
        hashes = trained_on.hashes_of(frames)
        found = {
            name: trained_on.overlap(entrant.trained_on, hashes)
            for name, entrant in entrants.items()
        }
    return comm.broadcast_object(found)


def refuse_trained_on(seen: Mapping[str, Overlap | None], networks: Mapping[str, Entrant]) -> None:
    """Raises DataError where all frames are ones that a network was trained on."""
    for name, entrant in networks.items():
        if seen[name] is not None and seen[name].is_whole:
            raise DataError(
                f"{name}: {entrant.weights} was trained on all {seen[name].frames} frames that it would "
                "be evaluated on, so the figures would say nothing of new pictures; evaluate on others "
                "(--set data.val_split=FILE or data.root=FOLDER), or say --on-trained"
            )


def recipe_and_checkpoint(text: str) -> tuple[str, str | None]:
    """`RECIPE` or `RECIPE:CHECKPOINT`; a recipe whose own path has a colon is taken as it is."""
    if ":" not in text or Path(paths.expanded(text)).is_file():
        return paths.expanded(text), None
    recipe_path, _, checkpoint_path = text.partition(":")
    return paths.expanded(recipe_path), paths.expanded(checkpoint_path)


def mean_map(training: Dataset, device: torch.device, out: TextIO) -> Entrant:
    """The per-pixel mean of the training depths, whatever the image: the least that a network has to beat."""
    depth = evaluation.mean_depth_map(training, out).to(device)

    def predict(image: Tensor) -> Tensor:
        if image.shape[-2:] != depth.shape[-2:]:
            sizes = (f"{height}x{width}" for height, width in (depth.shape[-2:], image.shape[-2:]))
            raise DataError(
                f"a mean map needs frames of one size, there are {' and '.join(sizes)}; leave it out"
            )
        return depth.expand(len(image), -1, -1, -1)

    return Entrant(predict)


def evaluate(
    entrant: Entrant,
    frames: Dataset,
    protocol: Protocol,
    device: torch.device,
    loading: Loading,
    out: TextIO,
    watchers: Sequence[Watcher] = (),
) -> Result:
    """Collective; the same on every rank. out: a terminal that is shown how far it is."""
    rows = FrameRows(protocol.min_depth, protocol.cap, protocol.settings.crop)
    figures = evaluation.evaluate(
        entrant.predict,
        frames,
        protocol.settings,
        protocol.min_depth,
        protocol.max_depth,
        device,
        loading.workers,
        loading.timeout_s,
        (rows, *watchers),
        out,
        entrant.resize,
    )
    table = rows.gather()
    return Result(
        entrant.weights,
        figures,
        range_figures(table.sums, protocol.cap),
        table,
        resize=entrant.resize,
    )


def as_json(results: Mapping[str, Result], protocol: Protocol) -> dict:
    """Everything as plain values: `protocol`, `networks` by name, and `against`, the last one against each other.

    What is not finite is null, for JSON has no such numbers: a range without a pixel, or a network that is broken.
    """
    *others, last = results
    table = results[last].frames
    return {
        "protocol": {
            **{"split": protocol.split, "frames": len(table.names)},
            **{
                "frames_with_ground_truth": sum(map(bool, table.pixels)),
                "pixels": sum(table.pixels),
            },
            **{
                "min_depth_m": protocol.min_depth,
                "cap_m": protocol.cap,
                "crop": protocol.settings.crop,
            },
            **{
                "flip": protocol.settings.flip,
                "means": "metrics: over images; ranges: over pixels",
            },
            "scored_at": "the ground truth's own size; depth of another size is brought up bilinearly",
        },
        "networks": {name: _plain(result) for name, result in results.items()},
        "against": {other: _difference(results[last], results[other]) for other in others},
    }


def _plain(result: Result) -> dict:
    return {
        "weights": None if result.weights is None else str(result.weights),
        "resize": result.resize.node(),
        "frames_trained_on": None if result.overlap is None else result.overlap.seen,
        "metrics": {name: _finite(value) for name, value in result.metrics.items()},
        "ranges": [
            {key: _finite(value) for key, value in row._asdict().items()} for row in result.ranges
        ],
        "worst": [
            {"name": name, "abs_rel": _finite(value)}
            for name, value in per_frame.worst(result.frames)
        ],
    }


def _difference(ours: Result, theirs: Result) -> dict:
    return {
        "difference": {
            name: _finite(value - theirs.metrics[name]) for name, value in ours.metrics.items()
        },
        "frames_better": {
            name: won for name, (won, _) in per_frame.wins(ours.frames, theirs.frames).items()
        },
        "frames_worse": {
            name: lost for name, (_, lost) in per_frame.wins(ours.frames, theirs.frames).items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
