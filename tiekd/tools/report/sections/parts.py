"""HTML elements and functions that several sections share: labels, notes, units and means."""

import math
from collections.abc import Iterable

from tiekd.tools.report.content import Evaluation
from tiekd.tools.report.markup import Markup, tag

_UNITS = {"rmse": "m", "sq_rel": "m", "silog": "%"}


def label(found: Evaluation | None) -> Markup:
    """Returns a line of HTML that warns that metrics are agreement with the teacher, not accuracy.

    Args:
        found: The evaluation; None if there is none. The result is empty for it, and for an
            evaluation against ground truth.
    """
    if found is None or not found.is_agreement:
        return Markup("")
    return tag("p", f"{found.protocol.reference.label.upper()}", class_="label")


def note(title: str, lines: Iterable[str]) -> Markup:
    """Returns the HTML of a highlighted box with a title and a list of lines.

    Args:
        title: The title.
        lines: The lines.
    """
    items = tag("ul", *(tag("li", line) for line in lines))
    return tag("div", tag("strong", title), items, class_="note")


def unit_of(metric: str) -> str:
    """Returns a metric's unit with a comma before it, such as ", m"; "" if it has no unit.

    Args:
        metric: The metric's name.
    """
    return f", {_UNITS[metric]}" if metric in _UNITS else ""


def mean_of(values: Iterable[float]) -> float:
    """Returns the mean of the values that aren't NaN; NaN if there are none.

    Args:
        values: The values.
    """
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
