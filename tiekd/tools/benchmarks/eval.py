"""Compares tiekd's evaluation with a plain one that handles one image at a time in NumPy.

First the metrics alone are compared, for predictions that are on the device already: tiekd's in
batches, the plain ones image by image. Then whole evaluations are compared: reading, prediction
with flip averaging, metrics. The speedup of a whole evaluation depends on the share of reading and
metrics in its time. Therefore it is measured with a predictor that costs next to nothing, reading
from the files and from decoded frames (bin/cache_frames.py), and with a real student, whose own
time is the same on both sides. --data FOLDER is a KITTI folder whose training images are evaluated;
without it scenes are rendered.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.config.recipe import load_recipe
from tiekd.data.datasets import kitti
from tiekd.data.decoded_cache import Decoded
from tiekd.data.frames import Frames
from tiekd.evaluation import evaluate, metrics
from tiekd.models import flip
from tiekd.models.build import build_network
from tiekd.models.network import Prediction
from tiekd.tools.benchmarks import measure
from tiekd.tools.benchmarks.kitti_folder import MAX_DEPTH_M, kitti_folder
from tiekd.tools.benchmarks.plain_evaluation import plain_evaluation, plain_mean, plain_metrics
from tiekd.tools.benchmarks.training import device_of

_RANGE = (1e-3, MAX_DEPTH_M)
_CROP = "garg"


def run(args: argparse.Namespace) -> dict:
    """Compares tiekd's metrics, and whole evaluations, with plain ones in NumPy.

    Args:
        args: the command-line options that `arguments.of_eval` defines.

    Returns:
        Ratios of time and memory (tiekd / plain) for the metrics alone, as `_compare` returns them.
        The keys "whole" (reading files), "whole_decoded" (reading decoded frames) and, with
        --student, "student" (with a real network) have such a dict for whole evaluations. "frames"
        is the number of images, "batch_size" the batch size of tiekd's evaluation.
    """
    device = device_of(args.device)
    kb_crop = tuple(args.kb_crop)
    # Use one image per batch on a CPU, because more images wouldn't fit into a core's cache.
    batch_size = args.batch_size or (1 if device.type == "cpu" else 8)
    with kitti_folder(args.data, kb_crop) as (root, scratch):
        options = kitti.KittiOptions(str(root), kb_crop=kb_crop)
        from_files, from_cache = (kitti.build(options, "train", MAX_DEPTH_M) for _ in range(2))
        # Write decoded frames, i.e. arrays instead of compressed files: tiekd's evaluation is
        # measured with both, the plain one only with compressed files.
        from_cache.decoded = Decoded(scratch / "decoded", root)
        for index in range(len(from_cache)):
            for path, decode in from_cache.files(index).values():
                from_cache.decoded.write(path, decode)
        compare = partial(_whole, kb_crop=kb_crop, batch_size=batch_size, device=device)
        result = {
            **_metrics_alone(from_files, batch_size, device, args.rounds),
            "whole": compare("from files", _grey, from_files, from_files, rounds=args.rounds),
            "whole_decoded": compare(
                "from decoded frames", _grey, from_cache, from_files, rounds=args.rounds
            ),
        }
        if args.student:
            network = build_network(load_recipe(args.student)["network"]).to(device).eval()
            ours, plain = (
                _First(frames, args.student_frames) for frames in (from_cache, from_files)
            )
            name = f"from decoded frames, {args.student}"
            result["student"] = compare(name, network, ours, plain, rounds=min(3, args.rounds))
    return result | {"frames": len(from_files), "batch_size": batch_size}


class _First(Dataset):
    """The first frames of a dataset, as a dataset.

    Args:
        frames: the whole dataset.
        count: the number of frames to keep; all are kept if there are fewer.
    """

    def __init__(self, frames: Frames, count: int):
        self.frames_there = frames
        self.count = min(count, len(frames))
        self.files = frames.files
        self.stored = frames.stored

    def __len__(self) -> int:
        return self.count

    def image_sizes(self) -> list[tuple[int, int]]:
        """Returns a list of (height, width) in pixels, one for each kept image, in order."""
        return self.frames_there.image_sizes()[: self.count]


def _grey(image: Tensor) -> Prediction:
    """Predicts a depth from the red channel alone, in place of a network, at next to no cost.

    Args:
        image: (B, 3, H, W), normalised.

    Returns:
        A prediction with depth (B, 1, H, W) in metres, from 1 to MAX_DEPTH_M.
    """
    return Prediction((image[:, :1] * 5 + 20).clamp_(1, MAX_DEPTH_M))


def _metrics_alone(frames: Frames, batch_size: int, device: torch.device, rounds: int) -> dict:
    # Take the ground truth with 10 % noise as predictions.
    noise = torch.Generator().manual_seed(0)
    truths = [frames[index].depth for index in range(len(frames))]
    pairs = [
        (truth * torch.empty_like(truth).normal_(1, 0.1, generator=noise).clamp(0.5), truth)
        for truth in truths
    ]
    # Predict 10 m where there is no ground truth, since a network predicts every pixel.
    pairs = [(torch.where(truth > 0, predicted, 10.0), truth) for predicted, truth in pairs]
    # Put the predictions on the device, in batches of the size that an evaluation uses.
    batches = []
    for start in range(0, len(pairs), batch_size):
        predictions, batch_truths = zip(*pairs[start : start + batch_size], strict=True)
        batches.append((torch.stack(predictions).to(device), torch.stack(batch_truths).to(device)))

    def ours() -> dict[str, float]:
        return metrics.aggregate(
            torch.cat([metrics.depth_metrics(*batch, *_RANGE, _CROP) for batch in batches]).cpu()
        )

    def plain() -> dict[str, float]:
        rows = []
        for batch in batches:
            for predicted, truth in zip(*batch, strict=True):
                maps = (depth[0].cpu().numpy().astype("float64") for depth in (predicted, truth))
                rows.append(plain_metrics(*maps, *_RANGE, _CROP))
        return plain_mean(rows)

    return _compare(
        "the metrics of predictions on the device : in NumPy, image by image",
        ours,
        plain,
        rounds,
        device,
    )


def _whole(
    which: str,
    network: Callable[[Tensor], Prediction],
    ours_frames: Dataset,
    plain_frames: Dataset,
    kb_crop: tuple[int, int],
    batch_size: int,
    device: torch.device,
    rounds: int,
) -> dict:
    # Let both evaluations use flip averaging, the same evaluation crop, and means over images.
    settings = evaluate.EvaluationSettings(crop=_CROP, batch_size=batch_size)
    protocol = evaluate.EvaluationProtocol(settings, *_RANGE)
    predictor = partial(flip.predict, network, flip=True)
    ours = partial(evaluate.evaluate, predictor, ours_frames, protocol, device)
    plain = partial(
        plain_evaluation,
        lambda image: network(image).depth,
        plain_frames,
        kb_crop,
        *_RANGE,
        _CROP,
        device,
    )
    return _compare(
        f"an evaluation {which} : image by image from files, with NumPy",
        ours,
        plain,
        rounds,
        device,
    )


def _compare(
    compared: str,
    ours: Callable[[], dict[str, float]],
    plain: Callable[[], dict[str, float]],
    rounds: int,
    device: torch.device,
) -> dict:
    """Compares the time, memory and results of two evaluations that compute the same metrics.

    Args:
        compared: description of the comparison, for the report.
        ours: function that evaluates with tiekd, and returns metrics by name.
        plain: function that evaluates in NumPy, and returns the same metrics.
        rounds: number of times that each is timed.
        device: the device to synchronise with after each call.

    Returns:
        The result of `measure.compare`, i.e. "time_ratio" and "memory_ratio" (ours / plain) with
        the measured times and peaks; "images_per_s_ratio"; and "figures_off", the largest relative
        difference between the metrics of `ours` and those of `plain`.
    """
    result = measure.compare(compared, ours, plain, rounds, device)
    # Report how far the metrics differ, because times are comparable only if the metrics are equal.
    pairs = zip(ours().values(), plain().values(), strict=True)
    result["images_per_s_ratio"] = 1 / result["time_ratio"]
    return result | {"figures_off": max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)}
