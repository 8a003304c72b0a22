"""Compares the time to make a training sample with the time to only decode its files.

The sample is made as by a data worker in the published setting, on one core: decode the files, crop
to 352x1216, sample an augmentation at random, cut out the region that the augmented image needs,
and collate a batch. The reference is Pillow decoding the image, ground truth and teacher map.
Further comparisons:

- samples from decoded frames (bin/cache_frames.py);
- the device's part of making a sample: rotation, flip and crop to 352x704, colours, normalisation,
  conversion to metres;
- worker and device together;
- the published pipeline in plain NumPy, which must give the same pixels.

--data FOLDER is a KITTI folder; without it scenes are rendered. All files are in the machine's page
cache, so the times don't include a disk's.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable

import numpy as np
import torch

from tiekd.data.augment.augment import IMAGENET_STD, Augment
from tiekd.data.augment.resample import resample
from tiekd.data.datasets import kitti
from tiekd.data.decoded_cache import Decoded
from tiekd.data.frames import Frames
from tiekd.data.loading.reader import BatchReader
from tiekd.tools.benchmarks import measure
from tiekd.tools.benchmarks.kitti_folder import kitti_folder, with_teacher_maps
from tiekd.tools.benchmarks.plain_sample import decode, plain_sample
from tiekd.tools.benchmarks.training import device_of

_SEED = 0
_CPU = torch.device("cpu")


def run(args: argparse.Namespace) -> dict:
    """Compares several ways to make a training sample: tiekd's loader, decoding alone, plain NumPy.

    Args:
        args: the command-line options that `arguments.of_loader` defines.

    Returns:
        "time_ratio" with "time_ratio_range" [least, largest], and "memory_ratio", all loader /
        decoding alone. "ms_per_sample" has the milliseconds of each way by its name. Further
        comparisons are dicts with such ratios: "with_device_share" (loader and device's part /
        decoding), "cached" (from decoded frames / from files) and "plain" (loader / published
        pipeline in NumPy), which also has the differences between the pixels of both. "frames" and
        "rounds" are the numbers of samples and of rounds.
    """
    device = device_of(args.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a data worker has one thread, too
    try:
        with kitti_folder(args.data, tuple(args.kb_crop)) as (root, scratch):
            frames = with_teacher_maps(root, scratch, tuple(args.kb_crop))
            augment = Augment(crop=tuple(args.crop))
            # Build the same dataset once more, to read it from a folder of decoded files (arrays).
            cached = kitti.build(
                kitti.KittiOptions(str(root), kb_crop=tuple(args.kb_crop)),
                "train",
                frames.max_depth,
                needs_ground_truth=False,
                maps=str(frames.maps),
            )
            cached.decoded = _fill(Decoded(scratch / "decoded", root), cached)
            return _measure(frames, cached, augment, tuple(args.kb_crop), device, args.rounds)
    finally:
        torch.set_num_threads(threads)


def _fill(cache: Decoded, frames: Frames) -> Decoded:
    for index in range(len(frames)):
        for path, decode_file in frames.files(index).values():
            cache.write(path, decode_file)
    return cache


def _measure(
    frames: Frames,
    cached: Frames,
    augment: Augment,
    kb_crop: tuple[int, int],
    device: torch.device,
    rounds: int,
) -> dict:
    # Give both readers the same seed, so that a sample gets the same augmentation from both.
    from_files, from_cache = (BatchReader(each, augment, _SEED) for each in (frames, cached))

    def plain(epoch: int, index: int):
        return plain_sample(frames, index, kb_crop, augment.draw(_SEED, epoch, index, *kb_crop))

    # Make the batches that the device will process beforehand, so that their time isn't measured.
    ready = {
        key: from_cache.read([key])
        for key in itertools.product(range(rounds + 1), range(len(frames)))
    }
    # Define functions of (epoch, index). Each makes the sample `index` of an epoch, or only decodes
    # its files.
    calls = {
        "ours": lambda epoch, index: from_files.read([(epoch, index)]),
        "decoding": lambda _, index: decode(frames, index),
        "cached": lambda epoch, index: from_cache.read([(epoch, index)]),
        "plain": plain,
    }
    on_device = {"device": lambda epoch, index: ready[epoch, index].to(device)}
    times = _times(calls, len(frames), rounds, _CPU) | _times(
        on_device, len(frames), rounds, device
    )
    peaks = {
        name: measure.peak_bytes(lambda call=call: call(0, 0), _CPU) for name, call in calls.items()
    }

    def ratio(name: str, reference: str) -> dict:
        ratios = [a / b for a, b in zip(times[name], times[reference], strict=True)]
        figures = {
            "time_ratio": statistics.median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
        }
        return figures | {"memory_ratio": peaks[name] / max(1, peaks[reference])}

    return {
        "compared": "a training sample as a worker makes it : decoding its image, ground truth "
        "and teacher map",
        **ratio("ours", "decoding"),
        "with_device_share": {
            "compared": f"worker's and {device.type}'s share, one after the other : decoding",
            "time_ratio": statistics.median(
                map(_sum_ratio, times["ours"], times["device"], times["decoding"])
            ),
        },
        "cached": {
            "compared": "a sample from decoded frames : from files",
            **ratio("cached", "ours"),
        },
        "plain": {
            "compared": "a sample as a worker makes it : the published pipeline in float64, "
            "written plainly in NumPy",
            **ratio("ours", "plain"),
            **_differences(from_files, plain, len(frames)),
        },
        "ms_per_sample": {
            name: statistics.median(values) / len(frames) * 1e3 for name, values in times.items()
        },
        "frames": len(frames),
        "rounds": rounds,
    }


def _sum_ratio(ours_s: float, device_s: float, decoding_s: float) -> float:
    return (ours_s + device_s) / decoding_s


def _times(
    calls: dict[str, Callable], num_frames: int, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Returns the seconds that each function takes for all samples, name -> seconds of each round.

    The functions alternate sample by sample. Every round is another epoch, so the samples are
    augmented differently.

    Args:
        calls: name -> function of (epoch, index of the sample).
        num_frames: number of samples in an epoch.
        rounds: number of rounds after the warm-up.
        device: the device to synchronise with after each call.
    """

    def one_by_one(call: Callable[[int, int], object]) -> Callable[[], object]:
        keys = itertools.product(range(rounds + 1), range(num_frames))
        return lambda: call(*next(keys))

    # Time each call by itself, then add up the calls of each round.
    singly = measure.interleaved(
        {name: one_by_one(call) for name, call in calls.items()}, rounds * num_frames, device
    )
    starts = range(0, rounds * num_frames, num_frames)
    times = {}
    for name, values in singly.items():
        times[name] = [sum(values[start : start + num_frames]) for start in starts]
    return times


def _differences(ours: BatchReader, plain: Callable, num_frames: int, epochs: int = 3) -> dict:
    """Returns the largest differences between the loader's samples and those of the plain pipeline.

    Args:
        ours: the loader's reader.
        plain: function of (epoch, index) that returns a PlainSample.
        num_frames: number of samples in an epoch.
        epochs: number of epochs to compare.

    Returns:
        "grey_levels_off" and "grey_levels_off_after_colours", the largest difference of a pixel in
        grey levels, before and after colour augmentation; and "share_of_depths_off", the largest
        fraction of a depth map's pixels that differ by more than 0.1 mm.
    """
    before = 0.0
    after = 0.0
    unlike = 0.0
    deviation = np.array(IMAGENET_STD)
    # Compare several epochs, because a sample is augmented differently in each.
    for epoch, index in itertools.product(range(epochs), range(num_frames)):
        sent = ours.read([(epoch, index)])
        expected = plain(epoch, index)
        batch = sent.to(_CPU)
        grey, *_ = resample(sent.image, sent.depth, sent.teacher_depth, sent.affine_maps, sent.size)
        before = max(before, np.abs(_pixels(grey) - expected.grey).max())
        after = max(after, (np.abs(_pixels(batch.image) - expected.image) * deviation).max())
        for depth, plain_depth in (
            (batch.depth, expected.depth),
            (batch.teacher_depth, expected.teacher_depth),
        ):
            unlike = max(unlike, np.mean(np.abs(depth[0, 0].numpy() - plain_depth) > 1e-4))
    return {
        "grey_levels_off": float(before),
        "grey_levels_off_after_colours": float(after),
        "share_of_depths_off": float(unlike),
    }


def _pixels(image: torch.Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).double().numpy()
