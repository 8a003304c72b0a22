"""The file that says how well each cached map of a relative teacher fits its anchor.

`anchor.jsonl` in the folder of the maps has one line of JSON a map. While maps are made, each rank
appends lines to a file of its own, which `merge` takes into it; what a killed job leaves is merged
by the next one. Left out: a line that was being written then. Its map isn't there either.
"""

import json
from collections.abc import Collection
from pathlib import Path

from tiekd.files import append_line, replace_text
from tiekd.teachers.outputs.anchoring import Quality

NAME = "anchor.jsonl"


def add(folder: Path, rank: int, map_name: str, quality: Quality) -> None:
    """Appends the line of one map to this rank's file."""
    line = json.dumps({"map": map_name, **quality.node()})
    append_line(folder / f"anchor_{rank}.jsonl", line)


def merge(folder: Path, map_names: Collection[str]) -> str:
    """Merges all files of lines to one, in the order of the maps; called on rank 0 only.

    Args:
        folder: Of the maps.
        map_names: Of all maps of the split.

    Returns:
        A line for the log: how many images are left out, and why the first of them is.
    """
    files = sorted(folder.glob("anchor_*.jsonl"))
    lines = {}
    for path in (folder / NAME, *files):
        lines |= _read(path)
    # The maps' own order, then whatever other splits have left here.
    order = [*(name for name in map_names if name in lines), *(lines.keys() - set(map_names))]
    replace_text(folder / NAME, "".join(f"{json.dumps(lines[name])}\n" for name in order))
    for path in files:
        path.unlink()
    poor = [lines[name] for name in map_names if name in lines and lines[name]["reason"]]
    said = f"Anchor: {len(poor)} of {len(map_names)} maps are left out"
    if poor:
        said += f" (empty), as {poor[0]['map']}: {poor[0]['reason']}"
    return f"{said}; {NAME} has the fit of each"


def _read(path: Path) -> dict[str, dict]:
    """Returns the lines of a file by map; a line that was cut off is skipped."""
    found = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines():
        try:
            node = json.loads(line)
        except ValueError:
            continue
        found[node["map"]] = node
    return found
