"""Refuses output folders from which a dataset reads, so that no output becomes a frame.

The dataset `folder` uses all files in and below its folders, so a depth map that is written there
would be an image of the next run. The check compares paths, without listing a folder. Not covered:
datasets from outside tiekd, and NYU's folders of scenes, of which only files named in a split file
are read.
"""

import os
from collections.abc import Collection, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tiekd.errors import LaunchError

DECODED = "data.decoded"


def read_folders(
    data: Mapping, maps: Mapping[str, str] | None = None
) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Returns the folders from which a recipe's dataset reads, by the options that name them.

    Args:
        data: The recipe's `data` section, which may be incomplete.
        maps: The recipe's folders of cached teacher maps by their options; None if it has none.

    Returns:
        option, such as "data.images" -> (folder, suffixes of the files that are read there). An
        empty tuple of suffixes means that all files are read.
    """
    root = Path(str(data.get("root", "."))).expanduser()
    named = [(DECODED, data.get("decoded"), ())]
    named += [(option, folder, ()) for option, folder in (maps or {}).items()]
    module = f"tiekd.data.datasets.{data.get('name')}"
    if str(data.get("name")).isidentifier() and find_spec(module) is not None:
        reads = getattr(import_module(module), "READS", {})
        named += [
            (f"data.{key}", data.get(key, default), suffixes)
            for key, (default, suffixes) in reads.items()
        ]
    return {
        option: (root / Path(given).expanduser(), suffixes)
        for option, given, suffixes in named
        if isinstance(given, str)
    }


def refuse(
    option: str,
    out: Path,
    suffixes: Collection[str],
    data: Mapping,
    maps: Mapping[str, str] | None = None,
    *,
    own: str | None = None,
) -> None:
    """Raises LaunchError for an output folder whose files the dataset could read as frames.

    Such a folder is one from which the dataset reads, or is below one from which it reads files
    with a suffix of the outputs.

    Args:
        option: The option that names the output folder, for the error message.
        out: The output folder; it needn't exist.
        suffixes: Suffixes of the files that are written there.
        data: The recipe's `data` section.
        maps: The recipe's folders of cached teacher maps by their options; None if it has none.
        own: An option, such as DECODED, whose folder the program is meant to write, so that it is
            allowed; None for none.
    """
    place = os.path.realpath(out)
    for name, (folder, read) in read_folders(data, maps).items():
        there = os.path.realpath(folder)
        is_below = os.path.commonpath([place, there]) == there
        is_read = not read or not set(suffixes).isdisjoint(read)
        if name != own and (place == there or (is_below and is_read)):
            raise LaunchError(
                f"{option} {out}: the data set reads from {folder} ({name}); give a folder outside "
                "of it"
            )
