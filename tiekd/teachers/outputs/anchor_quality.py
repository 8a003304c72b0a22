"""Writes the file that says how well each cached map of a relative teacher fits its anchor.

The file, `anchor.jsonl` in the folder of the maps, has one line of JSON for each map. While maps
are computed, each rank appends lines to its own file `anchor_<rank>.jsonl`. In the end `merge`
moves the lines of all ranks to `anchor.jsonl`. Lines that a killed job has left are merged by the
next job. Left out: a line that was incomplete when the job was killed; its map isn't complete
either.
"""

import json
from collections.abc import Collection
from pathlib import Path

from tiekd.files import append_line, replace_text
from tiekd.teachers.outputs.anchoring import Quality

NAME = "anchor.jsonl"


def add(folder: Path, rank: int, map_name: str, quality: Quality) -> None:
    """Appends the line of one map to this rank's file of lines.

    Args:
        folder: The folder of the maps.
        rank: This rank's number, which is part of the file's name.
        map_name: The name of the map's file.
        quality: The fit of the map to its anchor.
    """
    line = json.dumps({"map": map_name, **quality.node()})
    append_line(folder / f"anchor_{rank}.jsonl", line)


def merge(folder: Path, map_names: Collection[str]) -> str:
    """Moves the lines of all ranks' files to `anchor.jsonl`. Called on rank 0 only.

    Args:
        folder: The folder of the maps.
        map_names: The names of all maps of the split, in the order that the lines get.

    Returns:
        A message for the log: how many maps are empty because their fit isn't good, and the reason
        for the first of them.
    """
    files = sorted(folder.glob("anchor_*.jsonl"))
    lines = {}
    for path in (folder / NAME, *files):
        lines |= _read(path)
    # Write this split's records in the order of its maps, then those of other splits.
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
    """Reads a file of lines.

    Args:
        path: The file; it needn't exist.

    Returns:
        The parsed lines by the name of the map. A line that isn't complete is skipped.
    """
    found = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines():
        try:
            node = json.loads(line)
        except ValueError:
            continue
        found[node["map"]] = node
    return found
