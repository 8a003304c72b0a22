"""Checks the values in depth files: their unit, and values that seem to mean "not measured".

`check_range` reads the ground truth of five frames before training and rejects depths that can't be
metres. `levels_of` and `describe` collect statistics for bin/check_data.py, from which the user can
tell a wrong unit or an unknown invalid value that can't be detected automatically. Reading a depth
map takes 5 ms. Not covered: frequent values in the middle of a floating-point map's range, since
only its largest and smallest values are counted.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from tiekd.data import image_io
from tiekd.data.frame_table import spaced
from tiekd.data.frames import Frames
from tiekd.data.stored import ShardMember, Source, as_openable, source_of
from tiekd.errors import DataError

NEAREST_M = 0.1  # smallest plausible median depth, metres
FARTHEST = 3.0  # largest plausible median depth, as a multiple of max_depth
_NUM_SAMPLED = 5  # number of frames that `check_range` reads
_FREQUENT = 0.05  # a value is suspicious if at least this fraction of the pixels above 0 has it
_8_BITS = 255


class Levels(NamedTuple):
    """Statistics of the values in a depth file as they are stored, i.e. not converted to metres.

    Attributes:
        kind: The kind of file, such as "16-bit PNG" (see `image_io.kind_of_depth`).
        count: Number of pixels whose value is finite and above 0.
        largest: The largest of these values; 0 if there are none.
        frequent_values: The number of pixels of each suspiciously frequent value, which may mean
            "not measured", keyed by the value. At least the fraction _FREQUENT of the counted
            pixels, but not all of them, have such a value.
    """

    kind: str
    count: int
    largest: float
    frequent_values: dict[float, int]


def unit_phrase(frames: Frames, kind: str) -> str:
    """Returns a phrase with the unit in which a kind of depth file is read, and the unit's option.

    An example is "16-bit PNG is taken as 256 levels a metre (data.depth_unit)".

    Args:
        frames: The dataset, whose `depth_format` has the units.
        kind: The kind of file, such as "16-bit PNG" (see `image_io.kind_of_depth`).
    """
    if _is_float(kind):
        units_per_m = frames.depth_format.float_units_per_m or 1.0
        unit = "metres" if units_per_m == 1 else f"{units_per_m:g} a metre"
        return f"{kind} is taken as {unit} (data.float_depth_unit)"
    if frames.depth_format.units_per_m is None:
        return f"{kind} has no unit (data.depth_unit)"
    option = " (data.depth_unit)" if frames.depth_format.float_units_per_m is not None else ""
    return f"{kind} is taken as {frames.depth_format.units_per_m:g} levels a metre{option}"


def check_range(frames: Dataset) -> list[str]:
    """Checks the ground truth of five frames for depths that can't be metres.

    Args:
        frames: The dataset. Only a `Frames`, which reads depth files of a known unit, is checked.

    Returns:
        Warnings for the log; empty if there are none.

    Raises:
        DataError: The median depth of each of these frames is above three times max_depth, so that
            nothing would be learned and the metrics would be NaN.
    """
    if not isinstance(frames, Frames):
        return []
    indices = _sampled_indices(frames)
    turned = [frames.frames[index].name for index in indices if frames.is_turned(index)]
    lines = _range_lines(frames, _medians(frames, indices))
    if turned:
        lines.append(turned_line(turned))
    return lines


def share_beyond(frames: Dataset) -> float:
    """Returns the share, 0 to 1, of the measured pixels whose depth is above max_depth.

    Five frames are read, evenly spaced over those with ground truth.

    Args:
        frames: The dataset. The result is 0 if it isn't a `Frames`, or none of these frames has a
            depth map that can be read.
    """
    if not isinstance(frames, Frames):
        return 0.0
    beyond, total = 0, 0
    for index in _sampled_indices(frames):
        try:
            depth = frames.measured(index)
        except DataError:
            continue  # reported when it is read in training
        beyond += int((depth > frames.max_depth).sum())
        total += int((depth > 0).sum())
    return beyond / max(total, 1)


def _sampled_indices(frames: Frames) -> list[int]:
    """Returns the indices of five frames, evenly spaced over those with ground truth.

    There are fewer if fewer frames have ground truth.
    """
    known = np.flatnonzero(frames.frames.has_depth)
    return known[spaced(len(known), _NUM_SAMPLED)].tolist()


def turned_line(names: Sequence[str]) -> str:
    """Returns a log line about images that were turned upright by their EXIF orientation.

    The line reminds the user that depth maps and intrinsics must be those of the upright image.

    Args:
        names: The paths of the images that were turned, all of which have ground truth.
    """
    return (
        f"{len(names)} image(s) are turned by their EXIF orientation, such as {names[0]}: depth "
        "maps and intrinsics must be of the upright image"
    )


def _range_lines(frames: Frames, medians: dict[str | ShardMember, float]) -> list[str]:
    """Returns warnings about implausible median depths, for the log.

    Args:
        frames: The dataset, for the unit of its depth files and max_depth.
        medians: The median depth in metres of each of the read depth files, keyed by the file.

    Raises:
        DataError: All medians are above FARTHEST times max_depth.
    """
    if not medians:
        return []
    # Warn only if the medians of all sampled frames are outside the range, because a single frame
    # may have unusual depths. Name the first frame as an example.
    path, median_m = next(iter(medians.items()))
    unit = unit_phrase(frames, image_io.kind_of_depth(source_of(path)))
    count = (
        "as in the only depth map" if len(medians) == 1 else f"as in all {len(medians)} depth maps"
    )
    if max(medians.values()) < NEAREST_M:
        return [
            f"Warning: {path}: half of its depths are nearer than {median_m:.4g} m, {count} looked "
            f"at; {unit}"
        ]
    start = (
        f"{path}: half of its depths are farther than {median_m:.4g} m, {count} looked at, and "
        "max_depth is"
    )
    if min(medians.values()) > FARTHEST * frames.max_depth:
        message = (
            f"{start} {frames.max_depth:g} m; {unit}: give the unit, such as 1000 for millimetres"
        )
        raise DataError(message, "unit")
    if min(medians.values()) > frames.max_depth:
        return [f"Warning: {start} {frames.max_depth:g} m, beyond which nothing is learned; {unit}"]
    return []


def levels_of(path: Source) -> Levels:
    """Returns statistics (`Levels`) of a depth file's values as they are stored.

    No unit is applied, and no value other than 0, negatives and non-finite ones is left out.

    Args:
        path: The depth file, a 16-bit PNG or an NPY file.

    Raises:
        DataError: There is no such file, or it can't be read.
    """
    if image_io.needs_decoding(path):
        values = image_io.read_levels(path).numpy()
    else:
        values = np.load(as_openable(path), allow_pickle=False)
    values = values[np.isfinite(values) & (values > 0)]
    kind = image_io.kind_of_depth(path)
    if values.size == 0:
        return Levels(kind, 0, 0.0, {})
    # Select the values that may mean "not measured": the smallest, the largest and, with 16 bits,
    # the most frequent one.
    likely = {
        values.min(),
        values.max(),
    }
    if values.dtype == np.uint16:
        likely.add(np.bincount(values).argmax())
    counts = {float(value): int((values == value).sum()) for value in likely}
    frequent_values = {
        value: count
        for value, count in counts.items()
        if _FREQUENT * values.size <= count < values.size
    }
    return Levels(kind, values.size, float(values.max()), frequent_values)


def describe(frames: Frames, found: Sequence[Levels]) -> list[str]:
    """Returns lines for the user about the unit of a dataset's depth maps and suspicious values.

    A value is suspicious if so many pixels have it that it may mean "not measured".

    Args:
        frames: The dataset, whose `depth_format` has the units and the invalid values.
        found: The statistics of each depth file, as `levels_of` returns them.
    """
    kinds = Counter(levels.kind for levels in found)
    lines = [
        f"{count} depth maps: {unit_phrase(frames, kind)}" for kind, count in sorted(kinds.items())
    ]
    for are_float in (False, True):
        lines += _frequent_value_lines(
            frames, [levels for levels in found if _is_float(levels.kind) is are_float], are_float
        )
    whole = [levels.largest for levels in found if not _is_float(levels.kind)]
    if max(whole, default=0) == _8_BITS:
        lines.append(
            "WARNING: no level is above 255, as in files of 8 bits: depth is coarse then, and 255 "
            "may mean not measured (data.invalid=[255])"
        )
    return lines


def _frequent_value_lines(frames: Frames, found: Sequence[Levels], are_float: bool) -> list[str]:
    """Returns a line for each value so frequent that it may mean "not measured".

    Args:
        frames: The dataset, whose `depth_format` has the values that are known to be invalid.
        found: The statistics of each depth file, as `levels_of` returns them; either all of
            integers or all of floats.
        are_float: True for maps of floating-point values.
    """
    total = sum(levels.count for levels in found)
    pixels = Counter()
    maps = Counter()
    for levels in found:
        pixels.update(levels.frequent_values)
        maps.update(levels.frequent_values.keys())
    lines = []
    for value, count in sorted(pixels.items()):
        # Skip a value unless it is frequent in all depth maps together, and also in at least two
        # single ones (or in the only one).
        if count < _FREQUENT * total or maps[value] < min(2, len(found)):
            continue
        is_none = value in frames.depth_format.invalid or (
            value == image_io.NO_RETURN and not are_float
        )
        meant = (
            "counts as none"
            if is_none
            else f"if it means not measured, set data.invalid=[{value:.9g}]"
        )
        share = f"{count / total:.0%} of what isn't 0, in {maps[value]} of {len(found)} depth maps"
        lines.append(f"{'value' if are_float else 'level'} {value:.9g} is {share}: {meant}")
    return lines


def _medians(frames: Frames, indices: Sequence[int]) -> dict[str | ShardMember, float]:
    """Returns the median measured depth of some frames in metres, keyed by their depth files.

    Files without a measured pixel are left out. Files that can't be read are left out, too, since
    training reports them.

    Args:
        frames: The dataset.
        indices: The frames' indices in the dataset.
    """
    medians = {}
    for index in indices:
        try:
            depth = frames.measured(index)
        except DataError:
            continue
        if (depth > 0).any():
            medians[frames.frames[index].depth] = depth[depth > 0].median().item()
    return medians


def _is_float(kind: str) -> bool:
    return kind.startswith("float")
