"""Parts that several sections share: labels, notes, units and means."""

import math
from collections.abc import Iterable

from tiekd.tools.report.content import Evaluation
from tiekd.tools.report.markup import Markup, tag

_UNITS = {"rmse": "m", "sq_rel": "m", "silog": "%"}


def label(found: Evaluation | None) -> Markup:
    """Returns the line that says that figures are no accuracy; empty if they are.

    Args:
        found: The evaluation that the figures are of; None without one.
    """
    if found is None or not found.is_agreement:
        return Markup("")
    return tag("p", f"{found.protocol.reference.label.upper()}", class_="label")


def note(title: str, lines: Iterable[str]) -> Markup:
    """Returns a box with a title and a list of lines, which stands out from the page.

    Args:
        title: The title.
        lines: The lines.
    """
    items = tag("ul", *(tag("li", line) for line in lines))
    return tag("div", tag("strong", title), items, class_="note")


def unit_of(metric: str) -> str:
    """Returns a metric's unit with a comma before it; empty without one.

    Args:
        metric: The metric's name.
    """
    return f", {_UNITS[metric]}" if metric in _UNITS else ""


def mean_of(values: Iterable[float]) -> float:
    """Returns the mean of the values that aren't NaN; NaN without one.

    Args:
        values: The values.
    """
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
