"""Formats what an evaluation prints: frames and settings, tables of metrics, the worst frames."""

from collections.abc import Mapping

from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.evaluation import metrics, per_frame
from tiekd.evaluation.compare import Result
from tiekd.evaluation.evaluate import EvaluationProtocol


def report_texts(results: Mapping[str, Result], protocol: EvaluationProtocol) -> list[str]:
    """Returns the report of an evaluation of one or several networks, as a list of texts.

    Args:
        results: network's name -> its result. The last network is compared with each of the others,
            and its worst frames are listed.
        protocol: the settings with which the networks were evaluated.
    """
    last = list(results)[-1]
    result = results[last]
    compared = "ground truth" if protocol.reference is None else "teacher's depth"
    texts = [
        "\n".join([protocol_lines(protocol, result), *trained_on_lines(results)]),
        comparison_table({name: each.metrics for name, each in results.items()}),
        f"By range of the {compared}, mean over pixels; bias below 0 is predicted too near:\n"
        + ranges_table(results),
    ]
    edges = [f"{name}: {each.edges}" for name, each in results.items() if each.edges is not None]
    if edges:
        texts.append("\n".join(edges))
    if len(results) > 1:
        texts.append(pairwise_table(results))
    return [*texts, worst_lines(last, result)] if any(result.frames.pixels) else texts


def protocol_lines(protocol: EvaluationProtocol, result: Result) -> str:
    """Returns a text that states which frames were evaluated, and how.

    Args:
        protocol: the settings with which the networks were evaluated.
        result: the result of a network, from which the numbers of frames and pixels, and the size
            to which images were scaled for the network, are taken.
    """
    table = result.frames
    with_truth = sum(map(bool, table.pixels))
    settings = protocol.settings
    resized = ""
    scored_at = "ground truth's own" if protocol.reference is None else "images' own"
    if result.resize not in (OWN_SIZE, Resize(at_most=result.resize.at_most)):
        resized = (
            f"\nimages at {result.resize}; depth is brought up bilinearly to the {scored_at} "
            "size and scored there"
        )
    heading, compared = "", "ground truth"
    if protocol.reference is not None:
        heading = f"{protocol.reference.label.upper()}: compared with {protocol.reference.name}\n"
        compared = "the teacher's depth"
    return (
        f"{heading}"
        f"{len(table.names)} {protocol.split} frames, {with_truth} of them with {compared} that "
        f"counts, {sum(table.pixels)} pixels\n"
        f"{compared} {protocol.min_depth:g} < d < {protocol.cap:g} m, crop {settings.crop}, "
        f"flip averaging {'on' if settings.flip else 'off'}, mean over images{resized}"
    )


def trained_on_lines(results: Mapping[str, Result]) -> list[str]:
    """Returns a warning of one line for each network that was trained on some evaluated frames.

    Args:
        results: network's name -> its result.
    """
    known = {name: result.overlap for name, result in results.items() if result.overlap is not None}
    return [f"Warning: {name}: {overlap}" for name, overlap in known.items() if overlap.seen]


def comparison_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a text table with one row per network and one column per metric.

    With several networks, a last column has each network's abs_rel divided by that of the first.

    Args:
        figures: network's name -> metric's name -> value.
    """
    width = max(map(len, figures))
    several = len(figures) > 1
    first = next(iter(figures.values()))["abs_rel"]
    lines = [_head(width) + ("  abs_rel / first" if several else "")]
    for label, row in figures.items():
        cells = "  ".join(f"{row[name]:8.4f}" for name in metrics.METRIC_NAMES)
        lines.append(
            f"{label:{width}}  {cells}" + (f"  {row['abs_rel'] / first:15.3f}" if several else "")
        )
    return "\n".join(lines)


def ranges_table(results: Mapping[str, Result]) -> str:
    """Returns a text table of the number of pixels, bias and errors in each depth range.

    Args:
        results: network's name -> its result; there is one row per network and depth range.
    """
    width = max(map(len, results))
    head = f"{'':{width}}  {'range, m':>13}  {'pixels':>11}"
    lines = [f"{head}  {'bias, m':>8}  {'abs_rel':>8}  {'rmse, m':>8}"]
    for label, result in results.items():
        for row in result.ranges:
            bounds = f"{row.from_m:g} - {row.to_m:g}"
            figures = (
                f"{row.bias_m:+8.3f}  {row.abs_rel:8.4f}  {row.rmse_m:8.3f}"
                if row.pixels
                else "no pixel"
            )
            lines.append(f"{label:{width}}  {bounds:>13}  {row.pixels:>11}  {figures:>8}")
            label = ""  # show a network's name only in the first of its rows
    return "\n".join(lines)


def pairwise_table(results: Mapping[str, Result]) -> str:
    """Returns one text table for each network but the last, which compares the last one with it.

    A table has, for each metric, the last network's value minus the other's, the number of frames
    on which the last network is better, and the number on which the other one is.

    Args:
        results: network's name -> its result, of two networks or more.
    """
    *others, last = results
    ours = results[last]
    blocks = []
    for other in others:
        theirs = results[other]
        counts = per_frame.count_better_frames(ours.frames, theirs.frames)
        rows = {
            f"{last} - {other}": [
                f"{ours.metrics[n] - theirs.metrics[n]:+8.4f}" for n in metrics.METRIC_NAMES
            ],
            f"frames where {last} is better": [f"{better:8}" for better, _ in counts.values()],
            f"frames where {other} is better": [f"{worse:8}" for _, worse in counts.values()],
        }
        width = max(map(len, rows))
        lines = [f"{label:{width}}  {'  '.join(row)}" for label, row in rows.items()]
        blocks.append("\n".join([_head(width), *lines]))
    return "\n\n".join(blocks)


def worst_lines(label: str, result: Result) -> str:
    """Returns a text that lists the three frames with a network's largest abs_rel, one per line.

    Args:
        label: the network's name.
        result: the network's result.
    """
    rows = per_frame.worst(result.frames)
    return "\n".join(
        [
            f"Worst frames of {label} by abs_rel:",
            *(f"  {value:.4f}  {name}" for name, value in rows),
        ]
    )


def _head(width: int) -> str:
    return f"{'':{width}}  " + "  ".join(f"{name:>8}" for name in metrics.METRIC_NAMES)
