"""Makes the last sections of a report: size and latency, what to try next, commands, machine."""

import shlex
from pathlib import Path

from tiekd.tools.report.content import Content
from tiekd.tools.report.markup import Markup, facts, table, tag


def speed_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section on size and latency: a table of the exported files.

    Args:
        content: The content of the report; without timings the result is an empty list.
    """
    rows = []
    for each in content.timings:
        shown = "" if each.size is None else f"{each.size[0]}x{each.size[1]}"
        latency = each.problem or f"{each.median_ms:.1f} ms"
        runs = "" if each.median_ms is None else each.runs
        threads = "" if each.median_ms is None else each.threads
        size = f"{each.num_bytes / 1e6:.2f} MB"
        rows.append((each.name, size, each.runtime, shown, latency, runs, threads))
    head = ("file", "size", "run by", "image", "median latency", "runs", "threads")
    said = f"One image, on the CPU of this machine, {content.time}"
    return [table(head, rows, said)] if rows else []


def suggestions_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section on what to try next: a list of symptoms with advice.

    Args:
        content: The content of the report; without an evaluation the result is an empty list.
    """
    if content.validation is None:
        return []
    if not content.suggestions:
        return [tag("p", "No figure stands out. The largest gain may be in more images.")]
    items = []
    for each in content.suggestions:
        options = [tag("pre", f"--set {' '.join(map(shlex.quote, each.options))}")]
        items.append(
            tag(
                "li",
                tag("strong", each.symptom),
                tag("p", each.advice),
                *(options if each.options else ()),
            )
        )
    said = "Rules of thumb from this run's figures. Whether one helps, the next run shows."
    return [tag("p", said, class_="faint"), tag("ol", *items)]


def repeat_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section with the commands that repeat the run, each with a title.

    Args:
        content: The content of the report.
    """
    parts = []
    for what, command in content.commands:
        parts.append(tag("h3", f"{what[0].upper()}{what[1:]}"))
        parts.append(tag("pre", command))
    return parts


def environment_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section on the run's outcome, machine, plan and recipe.

    Args:
        content: The content of the report.
    """
    records = content.records
    outcome = records.outcome
    pairs = []
    if outcome is not None:
        done = f"{outcome.outcome}, {outcome.iteration} of {outcome.total_iterations} iterations"
        pairs.append(("run", f"{done}, {outcome.time}"))
        if outcome.reason:
            pairs.append(("reason", outcome.reason))
    if records.launch is not None:
        pairs.append(("ranks", f"{records.launch.world_size}, by {records.launch.launcher}"))
    pairs += records.environment.items()
    parts = [facts(pairs)]
    for title, path in (("Plan", content.place.plan), ("Recipe", _saved_recipe(content))):
        if path is not None:
            told = path.read_text(encoding="utf-8", errors="replace")
            summary_tag = tag("summary", f"{title}: {path.name}")
            parts.append(tag("details", summary_tag, tag("pre", told)))
    return parts


def _saved_recipe(content: Content) -> Path | None:
    path = content.place.work_dir / "config.yaml"
    return path if path.is_file() else None
