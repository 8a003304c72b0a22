"""Puts a report's sections together to one HTML document, and recognises such documents.

The document needs no other file: pictures are data URIs, charts are inline SVG, and there is no
script. A `meta` element in its head says that it is a report. So a later report may replace it
without --force, while other files of the user aren't replaced.
"""

from pathlib import Path

from tiekd.files import instead_of_file
from tiekd.tools.report.content import Content
from tiekd.tools.report.markup import Markup, joined, tag
from tiekd.tools.report.sections import (
    closing,
    confidence,
    curves,
    errors,
    frames,
    learned,
    summary,
)
from tiekd.tools.report.style import STYLE

_MARK = "tiekd report"
_HEAD_BYTES = 2048  # number of bytes at the start of a file in which _MARK is searched
# The sections: (value of the HTML attribute `id`, title, function that makes the content).
_SECTIONS = (
    ("learned", "What was learned from what", learned.learned_section),
    ("curves", "Learning curves", curves.curves_section),
    ("figures", "Errors", errors.errors_section),
    ("frames", "Worst, median and best frames", frames.frames_section),
    ("confidence", "Confidence", confidence.confidence_section),
    ("speed", "Size and latency", closing.speed_section),
    ("next", "What to try next", closing.suggestions_section),
    ("repeat", "Repeat it", closing.repeat_section),
    ("run", "The run and its machine", closing.environment_section),
)


def document(content: Content) -> str:
    """Returns a whole report as the text of an HTML document.

    Args:
        content: The content of the report.
    """
    made = [(anchor, title, build(content)) for anchor, title, build in _SECTIONS]
    made = [(anchor, title, parts) for anchor, title, parts in made if parts]
    # Rename the section "Errors" if the student was compared with the teacher, since its true
    # errors aren't known then.
    if content.validation is not None and content.validation.is_agreement:
        made = [
            (anchor, "Agreement with the teacher" if anchor == "figures" else title, parts)
            for anchor, title, parts in made
        ]
    links = [tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _ in made]
    title = f"Report of {content.name}"
    body = [
        tag(
            "header",
            tag("h1", title),
            tag("p", f"{content.records.weights}, {content.time}", class_="faint"),
            *summary.summary_section(content),
        ),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(_section(*each) for each in made)),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=_MARK),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    ]
    page = tag("html", tag("head", *head), tag("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def is_report(path: Path) -> bool:
    """Returns True if a file is a report that `document` made.

    Args:
        path: The file.
    """
    if instead_of_file(path) is not None:
        return False
    try:
        with path.open("rb") as file:
            return f'content="{_MARK}"'.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def _section(anchor: str, title: str, parts: list[Markup]) -> Markup:
    return tag("section", tag("h2", title), joined(parts), id=anchor)
