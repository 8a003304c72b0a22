"""What people read after training: tables that compare networks, and a picture of what they see."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd import frame_rows, metrics
from tiekd.comparison import Protocol, Result
from tiekd.data.depth_io import write_image
from tiekd.data.geometry import in_grey_levels
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.drawing import pictures
from tiekd.drawing.frame_pictures import growth
from tiekd.errors import LaunchError


def check_output(option: str, path: Path | None, suffix: str | None) -> None:
    """Makes the folder that a result is to be written into, hours before. suffix: of a file; None for a folder.

    Raises LaunchError where it can't be made, and for a file that ends otherwise, or as a run's log does: it might be
    one of the user's. One that ends so is replaced.
    """
    if path is None:
        return
    if suffix is not None and (path.suffix.lower() != suffix or path.is_dir()):
        raise LaunchError(f"{option} {path}: a file that ends in {suffix} is written; give one")
    if path.name.lower().endswith(".log.json"):
        raise LaunchError(f"{option} {path}: runs' logs end in .log.json; give another name, such as figures.json")
    folder = path if suffix is None else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"{option} {path}: {folder} can't be made ({error.strerror}); give another place") from None


def everything(results: Mapping[str, Result], protocol: Protocol) -> list[str]:
    """All that an evaluation has to say, block by block, the last network's worst frames included."""
    last = list(results)[-1]
    result = results[last]
    said = [
        "\n".join([protocol_lines(protocol, result), *trained_on_lines(results)]),
        comparison_table({name: each.metrics for name, each in results.items()}),
        "By range of the ground truth, mean over pixels; bias below 0 is predicted too near:\n" + ranges_table(results),
    ]
    if len(results) > 1:
        said.append(duels_table(results))
    return [*said, worst_lines(last, result)] if any(result.frames.pixels) else said


def protocol_lines(protocol: Protocol, result: Result) -> str:
    """How the figures were made and on what, in words."""
    table = result.frames
    with_truth, settings = sum(map(bool, table.pixels)), protocol.settings
    resized = ""
    if result.resize not in (OWN_SIZE, Resize(at_most=result.resize.at_most)):
        resized = (
            f"\npictures at {result.resize}; depth is brought up bilinearly to the ground truth's own size and scored "
            "there"
        )
    return (
        f"{len(table.names)} {protocol.split} frames, {with_truth} of them with ground truth that counts, "
        f"{sum(table.pixels)} pixels\n"
        f"ground truth {protocol.min_depth:g} < d < {protocol.cap:g} m, crop {settings.crop}, "
        f"flip averaging {'on' if settings.flip else 'off'}, mean over images{resized}"
    )


def trained_on_lines(results: Mapping[str, Result]) -> list[str]:
    """A line for each network that was trained on some of the frames."""
    known = {name: result.overlap for name, result in results.items() if result.overlap is not None}
    return [f"Warning: {name}: {overlap}" for name, overlap in known.items() if overlap.seen]


def comparison_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """One row a network, one column a metric; where there are several, the last column is abs_rel over the first's."""
    width, several = max(map(len, figures)), len(figures) > 1
    first = next(iter(figures.values()))["abs_rel"]
    lines = [_head(width) + ("  abs_rel / first" if several else "")]
    for label, row in figures.items():
        cells = "  ".join(f"{row[name]:8.4f}" for name in metrics.METRIC_NAMES)
        lines.append(f"{label:{width}}  {cells}" + (f"  {row['abs_rel'] / first:15.3f}" if several else ""))
    return "\n".join(lines)


def ranges_table(results: Mapping[str, Result]) -> str:
    """One row a network and range: pixels, bias and error."""
    width = max(map(len, results))
    lines = [f"{'':{width}}  {'range, m':>13}  {'pixels':>11}  {'bias, m':>8}  {'abs_rel':>8}  {'rmse, m':>8}"]
    for label, result in results.items():
        for row in result.ranges:
            place = f"{row.from_m:g} - {row.to_m:g}"
            figures = f"{row.bias_m:+8.3f}  {row.abs_rel:8.4f}  {row.rmse_m:8.3f}" if row.pixels else "no pixel"
            lines.append(f"{label:{width}}  {place:>13}  {row.pixels:>11}  {figures:>8}")
            label = ""
    return "\n".join(lines)


def duels_table(results: Mapping[str, Result]) -> str:
    """The last network against each other one: the differences of the metrics, and on how many frames who is better."""
    *others, last = results
    ours = results[last]
    blocks = []
    for other in others:
        theirs, counts = results[other], frame_rows.wins(ours.frames, results[other].frames)
        rows = {
            f"{last} - {other}": [f"{ours.metrics[n] - theirs.metrics[n]:+8.4f}" for n in metrics.METRIC_NAMES],
            f"frames where {last} is better": [f"{won:8}" for won, _ in counts.values()],
            f"frames where {other} is better": [f"{lost:8}" for _, lost in counts.values()],
        }
        width = max(map(len, rows))
        blocks.append("\n".join([_head(width), *(f"{label:{width}}  {'  '.join(row)}" for label, row in rows.items())]))
    return "\n\n".join(blocks)


def worst_lines(label: str, result: Result) -> str:
    """The three frames with the largest abs_rel, one a line."""
    rows = frame_rows.worst(result.frames)
    return "\n".join([f"Worst frames of {label} by abs_rel:", *(f"  {value:.4f}  {name}" for name, value in rows)])


def _head(width: int) -> str:
    return f"{'':{width}}  " + "  ".join(f"{name:>8}" for name in metrics.METRIC_NAMES)


@torch.no_grad()
def write_panel(
    path: Path,
    frames: Dataset,
    predictors: Mapping[str, Callable[[Tensor, torch.device], Tensor]],
    max_depth: float,
    device: torch.device,
    num_rows: int = 5,
) -> None:
    """A picture with `num_rows` frames, evenly spaced: image | ground truth | each network | error of the last one.

    predictors: (B, 3, H, W) uint8 pictures at their own size, and the device -> metres (B, 1, H, W).
    """
    titles = ["image", "ground truth", *predictors, f"error of {list(predictors)[-1]}"]
    max_error = max_depth / 8
    rows = []
    for row in range(min(num_rows, len(frames))):
        sample = in_grey_levels(frames[row * len(frames) // min(num_rows, len(frames))])
        truth = sample.depth[0].numpy()
        radius = growth(truth)
        depths = [predict(sample.image[None], device)[0, 0].cpu().numpy() for predict in predictors.values()]
        rows.append(
            [
                sample.image.permute(1, 2, 0).numpy(),
                pictures.colourise(pictures.dilate(truth, radius), max_depth),
                *(pictures.colourise(depth, max_depth) for depth in depths),
                pictures.error_map(depths[-1], truth, max_error, radius),
            ]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, pictures.panel(rows, titles, max_depth, max_error))
