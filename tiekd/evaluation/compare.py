"""Evaluates several networks on the same frames and compares them.

Each network makes its own pass over the frames, so memory holds the activations of one network at a
time. All networks are evaluated on the frames of the first recipe. Images are resized to each
network's own working resolution; all predictions are resized to the ground truth's own size, and
compared with it there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd import paths
from tiekd.config import shipped
from tiekd.data import focal as focals
from tiekd.data import learned_from, least_size, trained_on
from tiekd.data import resize as resizes
from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.learned_from import Teacher
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.trained_on import Overlap, TrainedOn
from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.evaluation import evaluate as evaluation
from tiekd.evaluation import per_frame
from tiekd.evaluation.agreement import TEACHER, EdgeFigures, EdgeRows
from tiekd.evaluation.evaluate import EvaluationProtocol, Watcher
from tiekd.evaluation.per_frame import FrameRows, FrameTable
from tiekd.evaluation.range_errors import RangeFigures, range_figures
from tiekd.models import flip as flipping
from tiekd.models import load
from tiekd.workdir import workdir


class EvaluatedPredictor(NamedTuple):
    """A network, or another predictor, that is to be evaluated.

    Attributes:
        predict: function from images (B, 3, H, W), normalised and at the working resolution, to
            depth (B, 1, H, W) in metres; see the argument `predictor` of `evaluate.evaluate`.
        weights: the weights file; None for a predictor without weights.
        trained_on: the frames that the network was trained on; None if they aren't known.
        resize: the size to which images are resized for the predictor (working resolution).
        least_side: smallest height or width of an image, in pixels, that the network can take.
        teachers: the teachers from which the network learned; None if they aren't known.
    """

    predict: Callable[[Tensor], Tensor]
    weights: Path | None = None
    trained_on: TrainedOn | None = None
    resize: Resize = OWN_SIZE
    least_side: int = 1
    teachers: list[Teacher] | None = None

    @property
    def needs_focal(self) -> bool:
        """True if `predict` needs each image's focal length as its second argument."""
        return getattr(self.predict, "needs_focal", False)

    def depth_of(self, pixels: Tensor, device: torch.device, intrinsics: Tensor) -> Tensor:
        """Predicts depth of images, and returns it at the images' own size.

        The images are resized as the attribute `resize` says and normalised, and the depth that
        `predict` returns for them is resized bilinearly to their own size.

        Args:
            pixels: (B, 3, H, W) uint8 images at their own size.
            device: the network's device.
            intrinsics: (B, 3, 3) float32, camera matrices in pixels of the images at their own
                size; used only if `needs_focal` is True.

        Returns:
            (B, 1, H, W) float32, metres.
        """
        image = resizes.network_input(pixels, self.resize).to(device)
        image = look_up(image, colour_table()[None].to(device).expand(len(image), -1, -1))
        size = tuple(pixels.shape[-2:])
        given = ()
        if self.needs_focal:
            given = (focals.of_own_size(intrinsics, size, self.resize).to(device),)
        return resizes.at_own_size(self.predict(image, *given), self.resize, size, smooth=True)


class Result(NamedTuple):
    """The results of evaluating one network or other predictor.

    Attributes:
        weights: the weights file; None for a predictor without weights.
        metrics: name -> mean over the frames, for each of `metrics.METRIC_NAMES`.
        ranges: bias and errors in each depth range, nearest first.
        frames: the metrics of each frame.
        overlap: how many of the evaluated frames the network was trained on; None if its training
            frames aren't known.
        resize: the size to which images were resized for the predictor (working resolution).
        edges: the errors near depth edges of the teacher's depth; None if the network was compared
            with ground truth.
    """

    weights: Path | None
    metrics: dict[str, float]
    ranges: list[RangeFigures]
    frames: FrameTable
    overlap: Overlap | None = None
    resize: Resize = OWN_SIZE
    edges: EdgeFigures | None = None


def load_networks(
    named: Sequence[tuple[str, str | None]],
    overrides: Sequence[str],
    flip: bool,
    device: torch.device,
) -> dict[str, EvaluatedPredictor]:
    """Loads the networks that are to be compared, and gives each a unique name.

    A network is named after its recipe file, or after the work dir if the recipe is the copy that a
    run saved there. If that name is taken, the checkpoint's name is appended.

    Args:
        named: (recipe, checkpoint) pairs. If the checkpoint is None, the one in the recipe's work
            dir is loaded.
        overrides: `--set` options, applied to the last recipe only.
        flip: True to average each prediction with that of the mirrored image.
        device: the device to which the networks are moved.

    Returns:
        network's name -> the network and its settings, in the order of `named`.

    Raises:
        RecipeError: a recipe can't be used.
        CheckpointError: a checkpoint can't be loaded.
    """
    found: dict[str, EvaluatedPredictor] = {}
    for index, (recipe_path, checkpoint_path) in enumerate(named):
        last = index == len(named) - 1
        network, path, resize = load.load_network(
            recipe_path, checkpoint_path, overrides if last else ()
        )

        # Name the network by the shortest of these names that no earlier network has.
        file = Path(recipe_path)
        stem = file.resolve().parent.name if file.name == workdir.RECIPE else file.stem
        tries = (stem, f"{stem}:{path.name}", f"{recipe_path}:{path}")
        name = next(
            (name for name in tries if name not in found), f"{recipe_path}:{path} ({index + 1})"
        )
        predict = flipping.Predictor(network.to(device).eval(), flip)
        least = least_size.least_side(network)
        seen, teachers = trained_on.read(path), learned_from.read(path)
        found[name] = EvaluatedPredictor(predict, path, seen, resize, least, teachers)
    return found


def overlaps(
    networks: Mapping[str, EvaluatedPredictor], frames: Dataset
) -> dict[str, Overlap | None]:
    """Counts the evaluation frames that each network was trained on.

    Collective: all ranks must call it.

    Args:
        networks: network's name -> network and its settings, as `load_networks` returns them.
        frames: the evaluation frames.

    Returns:
        network's name -> overlap, i.e. how many of `frames` the network was trained on; None for a
        network whose training frames aren't known.
    """
    # Compute the hashes on rank 0 only: they include the size of each image file, and reading sizes
    # from all ranks would burden the disk.
    found = None
    if comm.is_main():
        found = {
            name: trained_on.overlap_of(network.trained_on, frames)
            for name, network in networks.items()
        }
    return comm.broadcast_object(found)


def refuse_trained_on(
    seen: Mapping[str, Overlap | None], networks: Mapping[str, EvaluatedPredictor]
) -> None:
    """Checks that no network was trained on all frames that it would be evaluated on.

    Args:
        seen: network's name -> overlap, as `overlaps` returns it.
        networks: network's name -> network and its settings, as `load_networks` returns them.

    Raises:
        DataError: a network was trained on all frames; the message names it.
    """
    for name, network in networks.items():
        if seen[name] is not None and seen[name].is_whole:
            raise DataError(
                f"{name}: {network.weights} was trained on all {seen[name].frames} frames that "
                "it would be evaluated on, so the metrics would not be valid for new images; "
                "evaluate on others (--set data.val_split=FILE or data.root=FOLDER), "
                "or say --on-trained"
            )


def recipe_and_checkpoint(text: str) -> tuple[str, str | None]:
    """Splits the text `RECIPE` or `RECIPE:CHECKPOINT` into the paths of recipe and checkpoint.

    RECIPE may be the name of a recipe that comes with tiekd. If the whole text is the path of an
    existing file, it is a recipe whose path contains a colon.

    Args:
        text: a command-line argument.

    Returns:
        (recipe, checkpoint); the checkpoint is None if the text has none.
    """
    if ":" not in text or Path(paths.expanded(text)).is_file():
        return str(shipped.find(shipped.RECIPES, paths.expanded(text))), None
    recipe_path, _, checkpoint_path = text.partition(":")
    recipe_path = str(shipped.find(shipped.RECIPES, paths.expanded(recipe_path)))
    return recipe_path, paths.expanded(checkpoint_path)


def mean_map(training: Dataset, device: torch.device, out: TextIO) -> EvaluatedPredictor:
    """Returns a baseline whose prediction is always the per-pixel mean of the training depths.

    Args:
        training: the training frames, which must all have one size.
        device: the device to which the mean map is moved.
        out: text stream that receives the progress.

    Raises:
        DataError: the training frames differ in size. The returned predictor raises it, too, if it
            is called for images of another size.
    """
    depth = evaluation.mean_depth_map(training, out).to(device)

    def predict(image: Tensor) -> Tensor:
        if image.shape[-2:] != depth.shape[-2:]:
            sizes = (f"{height}x{width}" for height, width in (depth.shape[-2:], image.shape[-2:]))
            raise DataError(
                f"a mean map needs frames of one size, there are {' and '.join(sizes)}; "
                "leave it out"
            )
        return depth.expand(len(image), -1, -1, -1)

    return EvaluatedPredictor(predict)


def evaluate(
    predictor: EvaluatedPredictor,
    frames: Dataset,
    protocol: EvaluationProtocol,
    device: torch.device,
    loading: Loading,
    out: TextIO,
    watchers: Sequence[Watcher] = (),
) -> Result:
    """Evaluates one network or other predictor.

    Collective: all ranks must call it, and all get the same result.

    Args:
        predictor: the predictor to evaluate.
        frames: the dataset of evaluation frames.
        protocol: depth range, crop, batch size, and whether predictions are compared with ground
            truth or with a teacher.
        device: the predictor's device.
        loading: number and timeout of each rank's data workers.
        out: text stream that receives the progress.
        watchers: functions that are called after each batch, as for `evaluate.evaluate`.

    Returns:
        The result. Its attribute `overlap` is left None, for the caller to fill in.
    """
    scored = protocol.min_depth, protocol.cap, protocol.settings.crop
    rows, edges = FrameRows(*scored), EdgeRows(*scored)
    # Compute errors near edges only against a teacher, whose maps are dense. Ground truth is often
    # sparse, and has few edges with depth on both sides.
    near_edges = () if protocol.reference is None else (edges,)
    figures = evaluation.evaluate(
        predictor.predict,
        frames,
        protocol,
        device,
        loading=loading,
        resize=predictor.resize,
        watchers=(rows, *near_edges, *watchers),
        out=out,
    )
    # Gather the frames' metrics of all ranks, from which the errors per depth range and the
    # comparisons of networks are computed.
    table = rows.gather()
    return Result(
        predictor.weights,
        figures,
        range_figures(table.sums, protocol.cap),
        table,
        resize=predictor.resize,
        edges=edges.gather() if near_edges else None,
    )


def as_json(results: Mapping[str, Result], protocol: EvaluationProtocol) -> dict:
    """Returns all results as a dict of plain values for a JSON file.

    Its keys are `protocol`, which states frames, pixels and settings; `networks`, which maps each
    network's name to its results; and `against`, which maps the name of each network but the last
    to a comparison of the last network with it. Non-finite values (a range without pixels, or a
    network that predicts non-finite depth) become None, because JSON can't represent them.

    Args:
        results: network's name -> its result; the last network is compared with each of the others.
        protocol: the settings with which the networks were evaluated.
    """
    # All networks were evaluated on the same frames, so take names and pixel counts from any table.
    *others, last = results
    table = results[last].frames
    against, compared, size = {}, "ground_truth", "the ground truth's own size"
    if protocol.reference is not None:
        compared, size = "teacher_depth", "the images' own size"
        label, name = protocol.reference.label, protocol.reference.name
        against = {"against": TEACHER, "figures_are": label, "teacher": name}
    return {
        "protocol": {
            **against,
            "split": protocol.split,
            "frames": len(table.names),
            f"frames_with_{compared}": sum(map(bool, table.pixels)),
            "pixels": sum(table.pixels),
            "min_depth_m": protocol.min_depth,
            "cap_m": protocol.cap,
            "crop": protocol.settings.crop,
            "flip": protocol.settings.flip,
            "means": "metrics: over images; ranges: over pixels",
            "scored_at": f"{size}; depth of another size is brought up bilinearly",
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
        **({} if result.edges is None else {"at_edges": _plain_edges(result.edges)}),
        "worst": [
            {"name": name, "abs_rel": _finite(value)}
            for name, value in per_frame.worst(result.frames)
        ],
    }


def _plain_edges(edges: EdgeFigures) -> dict:
    return {key: _finite(value) for key, value in edges._asdict().items()}


def _difference(ours: Result, theirs: Result) -> dict:
    counts = per_frame.count_better_frames(ours.frames, theirs.frames)
    return {
        "difference": {
            name: _finite(value - theirs.metrics[name]) for name, value in ours.metrics.items()
        },
        "frames_better": {name: better for name, (better, _) in counts.items()},
        "frames_worse": {name: worse for name, (_, worse) in counts.items()},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
