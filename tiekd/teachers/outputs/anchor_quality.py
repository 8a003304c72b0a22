"""Writes a file with the quality of the fit of each cached map of a relative teacher to its anchor.

The file, `anchor.jsonl` in the folder of the maps, has one line of JSON for each map. While maps
are computed, each rank appends lines to its own file `anchor_<rank>.jsonl`. In the end `merge`
moves the lines of all ranks to `anchor.jsonl`. If a job was killed, the next job merges the lines
that it left. A line that was incomplete at the kill is dropped; its map is incomplete, too, and is
computed again.
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
        map_names: The names of all maps of the split, in the order in which their lines are
            written.

    Returns:
        A message for the log: how many maps are empty because their fit isn't good, and the reason
        for the first of them.
    """
    files = sorted(folder.glob("anchor_*.jsonl"))
    lines = {}
    for path in (folder / NAME, *files):
        lines |= _read(path)
    # Write the lines of this split in the order of the maps, then those of other splits.
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
    """Reads a file with one line of JSON per map.

    Args:
        path: The file; it needn't exist.

    Returns:
        A dict from the name of a map to its parsed line. Incomplete lines are skipped.
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
