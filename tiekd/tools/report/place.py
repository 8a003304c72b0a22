"""Finds the files that a report is about: the work dir of a run, and its exported files.

The user gives a work dir, or a folder that contains the work dir of one run, such as the folder of
--out of bin/distill.py. The latter also contains a plan (plan.yaml) and exported files, and is
found if its work dir is given. Exported files are searched in both folders and in their subfolders
`exports` and `export`. Others are given by --export. No file is opened here. Not covered: work dirs
deeper than one folder.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tiekd import console
from tiekd.errors import LaunchError
from tiekd.files import instead_of_file
from tiekd.workdir import workdir

EXPORTS = (".onnx", ".pt2")
PLAN = "plan.yaml"
_RUN = "run"  # name of the work dir in a folder with a plan.yaml
_EXPORT_FOLDERS = ("", "exports", "export")


class Place(NamedTuple):
    """The files of a report.

    Attributes:
        folder: The folder that the user gave.
        work_dir: The work dir of the run: `folder` itself, or a folder in it.
        exports: The exported files.
        plan: The file plan.yaml of bin/distill.py, with the settings of the run; None without one.
    """

    folder: Path
    work_dir: Path
    exports: list[Path]
    plan: Path | None


def find(folder: Path, exports: Sequence[Path], has_recipe: bool) -> Place:
    """Finds the work dir, the exported files and plan.yaml, and returns their absolute paths.

    Args:
        folder: The folder that the user gave.
        exports: The exported files that the user gave.
        has_recipe: True if the recipe is given by an option, so that the work dir needs none.

    Raises:
        LaunchError: There is no run, there are several, or a given export isn't a .onnx or .pt2
            file.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        there = "is a file" if folder.exists() else "there is no such folder"
        raise LaunchError(
            f"{folder}: {there}; give the work dir that {console.command('train')} made"
        )
    work_dir = folder if has_recipe or _is_run(folder) else _only_run_in(folder)
    found = list(dict.fromkeys(map(_checked, exports)))
    # Search the work dir's parent only if it has a plan.yaml: then all its files belong to one run.
    # Otherwise they may belong to other runs.
    around = work_dir.parent if (work_dir.parent / PLAN).is_file() else folder
    # Search the work dir first, then the folder around it.
    for place in dict.fromkeys((work_dir, around)):
        for name in _EXPORT_FOLDERS:
            files = sorted((place / name).glob("*")) if (place / name).is_dir() else []
            found += [path for path in files if _is_export(path) and path not in found]
    plans = [place / PLAN for place in (around, work_dir) if (place / PLAN).is_file()]
    return Place(folder, work_dir, found, plans[0] if plans else None)


def _is_run(folder: Path) -> bool:
    return (folder / workdir.RECIPE).is_file()


def _is_export(path: Path) -> bool:
    # Ignore files whose name begins with a dot: an export writes such a file first, and then
    # renames it.
    return path.suffix.lower() in EXPORTS and not path.name.startswith(".") and path.is_file()


def _only_run_in(folder: Path) -> Path:
    """Returns the only work dir in a folder; with a plan.yaml in the folder, the work dir `run`.

    Args:
        folder: The folder that the user gave, which isn't a work dir itself.

    Raises:
        LaunchError: There is no work dir, or there are several.
    """
    # Use the work dir `run` beside a plan.yaml even if there are others, such as a repetition of
    # the run.
    if (folder / PLAN).is_file() and _is_run(folder / _RUN):
        return folder / _RUN
    runs = sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise LaunchError(
            f"{folder}: has no {workdir.RECIPE}, so no run was started here; give the work dir "
            f"that {console.command('train')} made, or --recipe"
        )
    command = f"{console.command('report')} {shlex.quote(str(runs[0]))}"
    raise LaunchError(
        f"{folder}: has {len(runs)} runs; give the work dir of one, such as {command}"
    )


def _checked(path: Path) -> Path:
    """Checks an exported file that the user gave, and returns its absolute path.

    Args:
        path: The value of --export.

    Raises:
        LaunchError: There is no such file, or it isn't .onnx or .pt2.
    """
    there = instead_of_file(path)
    if there is not None or not path.exists():
        raise LaunchError(f"--export {path}: {there or 'there is no such file'}; give a file")
    if path.suffix.lower() not in EXPORTS:
        raise LaunchError(f"--export {path}: allowed are files {', '.join(EXPORTS)}")
    return path.absolute()
