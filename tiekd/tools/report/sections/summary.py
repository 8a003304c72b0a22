"""Makes the head of a report: main metrics, warnings, and the parts that couldn't be made."""

from tiekd.tools.report.content import Content
from tiekd.tools.report.markup import Markup, tag
from tiekd.tools.report.sections.parts import label, note, unit_of

_TILES = ("abs_rel", "rmse", "a1")


def summary_section(content: Content) -> list[Markup]:
    """Returns the HTML of the report's head: main metrics, warnings, parts that couldn't be made.

    Args:
        content: The content of the report.
    """
    tiles = []
    found = content.validation
    if found is not None:
        figures = found.measured.result.metrics
        tiles += [(f"{key}{unit_of(key)}", f"{figures[key]:.4f}") for key in _TILES]
        if found.measured.floor is not None:
            floor = f"{found.measured.floor['abs_rel']:.4f}"
            tiles.append(("abs_rel of the median map, without an image", floor))
        tiles.append(("validation frames", len(found.measured.frames)))
    tiles.append(("parameters", f"{content.parameters / 1e6:.2f} M"))
    timed = next((each for each in content.timings if each.median_ms is not None), None)
    if timed is not None:
        tiles.append((f"latency here, {timed.runtime}", f"{timed.median_ms:.1f} ms"))
    parts = [label(found)] if found is not None else []
    parts.append(
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in tiles), class_="tiles")
    )
    if content.warnings:
        parts.append(note("Read the figures with this in mind", content.warnings))
    if content.left_out:
        parts.append(note("Left out of this report", content.left_out))
    return parts
