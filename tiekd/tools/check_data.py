"""Checks the frames of a recipe, and writes a report and split files without the faulty frames.

A frame is an image with its ground truth and teacher map. The dataset's files are never changed.
All output goes to a folder that must not contain earlier results; each file is written atomically
after all frames were read. A faulty frame is dropped from the cleaned split file, i.e. the copy of
the split file that a run can use instead. A frame with only a warning (tiekd/data/checks.py) is
kept, unless the user asks to drop frames with that kind of warning. Then only training frames are
dropped, because metrics on another validation set would not be comparable.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tiekd.config.data_sets import errors_of_set
from tiekd.config.recipe import load_recipe
from tiekd.console import Progress, printable
from tiekd.data import checks, depth_values, read_folders
from tiekd.data.augment.augment import Augment
from tiekd.data.build import build_dataset
from tiekd.data.cameras.source import Intrinsics
from tiekd.data.cameras.summary import summary
from tiekd.data.checks import FAULTS, WARNINGS, Examined, Facts, Finding
from tiekd.data.frames import Frames
from tiekd.data.image_io import write_durably
from tiekd.data.loading import workers
from tiekd.data.resize import Resize
from tiekd.data.splits import read_lines, read_split
from tiekd.errors import DataError, RecipeError
from tiekd.files import claim_folder
from tiekd.training.settings import Recipe

REPORT = "report.json"
TEXT = "report.txt"
_SPLITS = ("train", "val")
_WITH_SPLIT_OPTIONS = ("kitti", "nyu", "folder")
_FRAMES_A_BATCH = 4
_SHOWN = 3


@dataclass
class Split:
    """One split of the dataset, and the faults of its frames.

    Attributes:
        name: "train" or "val".
        frames: the split's frames.
        lines: (line number, text) of each frame in the split file; None if the frames are listed
            from a folder, without a split file.
        facts: for each frame the properties that were read from its files.
        findings: the faults and warnings, in any order.
        dropped: indices of the frames that the cleaned split file leaves out.
        intrinsics: the recipe's `data.intrinsics`, from which the frames' cameras are read.
        about_cameras: lines about the frames' cameras.
    """

    name: str
    frames: Frames
    lines: list[tuple[int, str]] | None
    facts: list[Facts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    intrinsics: Intrinsics = None
    about_cameras: list[str] = field(default_factory=list)

    def where(self, index: int) -> str | None:
        """Returns "FILE:NUMBER", a frame's split file and line number; None without a split file.

        Args:
            index: the frame's index in the split.
        """
        return None if self.lines is None else f"{self.frames.source}:{self.lines[index][0]}"

    def remarks(self) -> list[str]:
        """Returns lines for the user about how the files are read, e.g. the unit of depth maps.

        These are neither faults nor warnings. The frames must have been read (`facts`).
        """
        found = depth_values.describe(
            self.frames, [fact.levels for fact in self.facts if fact.levels is not None]
        )
        turned = [
            frame.name
            for frame, fact in zip(self.frames.frames, self.facts, strict=True)
            if fact.turned
        ]
        if turned:
            found.append(depth_values.turned_line(turned))
        return found + self.about_cameras

    def cleaned(self) -> str:
        """Returns the text of the cleaned split file, i.e. the split file without dropped frames.

        Without a split file a frame's line is its name.
        """
        if self.lines is None:
            texts = [frame.name for frame in self.frames.frames]
        else:
            texts = [text for _, text in self.lines]
        return "".join(f"{text}\n" for index, text in enumerate(texts) if index not in self.dropped)


def splits_of(recipe: Recipe, which: str) -> list[Split]:
    """Returns the splits to check; their frames haven't been read yet.

    Args:
        recipe: the recipe, with overrides applied.
        which: "train", "val" or "both"; "both" means "train" if the recipe has no validation.

    Raises:
        RecipeError: the dataset has no files to check.
    """
    return [_split(recipe, name) for name in recipe.splits(which)]


def check(
    recipe: Recipe,
    splits: list[Split],
    num_workers: int,
    timeout_s: float,
    neighbours: int,
    drop: Sequence[str],
    out: TextIO,
) -> None:
    """Reads all frames, and fills in `facts`, `findings` and `dropped` of the splits.

    Args:
        recipe: the recipe, with overrides applied.
        splits: the splits to check, which are changed in place.
        num_workers: number of processes that read.
        timeout_s: seconds to wait for a few frames to be read before an error is raised.
        neighbours: a training frame gets a warning if its frame number differs by at most this from
            that of a validation frame; 0 for no such warnings.
        drop: kinds of warnings for which training frames are dropped like faulty ones.
        out: text stream that receives the progress.

    Raises:
        DataError: a process dies or doesn't answer in time.
    """
    augment, resize = recipe.augment, recipe.resize
    total = sum(len(split.frames) for split in splits)
    with Progress(
        "frames", total, lambda: sum(len(split.facts) for split in splits), out
    ) as progress:
        for split in splits:
            _examine(
                split,
                augment if split.name == "train" else None,
                resize,
                num_workers,
                timeout_s,
                progress,
            )
    # Compare the splits if both are checked: find training frames that are equal to validation
    # frames, or were taken shortly before or after one.
    by_name = {split.name: split for split in splits}
    if len(by_name) == len(_SPLITS):
        train = by_name["train"]
        val = by_name["val"]
        train.findings += checks.shared(train.frames, train.facts, val.frames, val.facts)
        train.findings += checks.neighbours(train.frames, val.frames, neighbours)
    # Choose the frames to drop: those with a fault or a chosen kind of warning. In training with a
    # teacher, empty ground truth is no reason to drop a frame.
    for split in splits:
        tolerated = () if split.name == "val" or not recipe.teachers.is_given else ("empty",)
        kinds = {*FAULTS, *(drop if split.name == "train" else ())}.difference(tolerated)
        split.dropped = {finding.index for finding in split.findings if finding.kind in kinds}


def claim(out: Path) -> None:
    """Creates the folder for the results, unless it exists.

    Args:
        out: the folder.

    Raises:
        LaunchError: the folder already contains results, or can't be created.
    """
    claim_folder(out, (REPORT, TEXT, *(f"{split}.txt" for split in _SPLITS)))


def write(recipe: Recipe, splits: list[Split], out: Path, section: str = "data") -> str:
    """Writes the report, and the split files without faulty frames (cleaned split files).

    The report is report.txt and report.json, a cleaned split file train.txt or val.txt.

    Args:
        recipe: the recipe, with overrides applied.
        splits: the splits, as `check` leaves them.
        out: the folder for the results.
        section: key of the data set's section in the recipe, such as "data".

    Returns:
        A summary of the report, several lines, with the options that make a run use the cleaned
        split files.
    """
    texts = {f"{split.name}.txt": split.cleaned() for split in _to_clean(recipe, splits)}
    # Write no cleaned split file at all if one of them would be empty.
    empty = [name for name, text in texts.items() if not text]
    texts = {} if empty else texts
    for name, text in texts.items():
        write_durably(out / name, text.encode(errors="surrogateescape"))
    short = _short(recipe, splits, texts, empty, out, section)
    # Write all faults and warnings, as text for the user and as JSON for programs.
    findings = [(split, finding) for split in splits for finding in split.findings]
    lines = [
        printable(f"{s.name} {f.kind}: {f.message} ({s.where(f.index) or s.frames.source})")
        for s, f in findings
    ]
    write_durably(out / TEXT, "\n".join([short, "", *lines, ""]).encode(errors="backslashreplace"))
    report = {
        "splits": {s.name: _figures(s) for s in splits},
        "cleaned": sorted(texts),
        "findings": [
            {
                "split": s.name,
                "kind": f.kind,
                "frame": s.frames.frames[f.index].name,
                "where": s.where(f.index),
                "message": f.message,
                "dropped": f.index in s.dropped,
            }
            for s, f in findings
        ],
    }
    write_durably(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    return short


def _split(recipe: Recipe, name: str) -> Split:
    frames = build_dataset(recipe.dataset.from_files(), name)
    if not isinstance(frames, Frames):
        raise RecipeError(
            f"data.name: {recipe.data['name']} has no files to check; kitti, nyu and folder have"
        )
    intrinsics = recipe.data.get("intrinsics")
    # Return a split without lines if its frames are listed from a folder, since there is no split
    # file to clean.
    if not frames.source.is_file():
        return Split(name, frames, None, intrinsics=intrinsics)
    lines = read_lines(frames.source, "")
    if frames.num_skipped:  # leave out the lines that the dataset skipped
        truths = [line.ground_truth for line in read_split(frames.source)]
        lines = [line for line, truth in zip(lines, truths, strict=True) if truth is not None]
    assert len(lines) == len(frames)
    return Split(name, frames, lines, intrinsics=intrinsics)


def _examine(
    split: Split,
    augment: Augment | None,
    resize: Resize,
    num_workers: int,
    timeout_s: float,
    progress: Progress,
) -> None:
    frames = split.frames.frames
    batches = [
        list(range(len(frames)))[start : start + _FRAMES_A_BATCH]
        for start in range(0, len(frames), _FRAMES_A_BATCH)
    ]

    def describe(indices: list[int]) -> str:
        return ", ".join(str(frames[index].image) for index in indices)

    examined = Examined(split.frames, augment, resize)
    for facts in workers.read(examined.facts, batches, num_workers, describe, timeout_s):
        split.facts += facts
        progress.update()
    # Collect the faults of each frame, then the duplicates, which are found by comparing frames.
    faults = [(index, fault) for index, fact in enumerate(split.facts) for fault in fact.faults]
    split.findings = [Finding(kind, index, message) for index, (kind, message) in faults]
    split.findings += checks.duplicates(split.frames, split.facts)
    listed = [(frame.name, frame.image, frame.camera) for frame in frames]
    split.about_cameras = summary(listed, split.intrinsics)


def _to_clean(recipe: Recipe, splits: list[Split]) -> list[Split]:
    """Returns the splits for which a cleaned split file is written.

    In a folder dataset a split without a split file has the frames that aren't in the other split's
    file. If only the other split's file were cleaned, the dropped frames would become part of this
    split. So both splits get a file, or neither.

    Args:
        recipe: the recipe, with overrides applied.
        splits: the checked splits.
    """
    if recipe.data["name"] not in _WITH_SPLIT_OPTIONS or not any(split.dropped for split in splits):
        return []
    if recipe.data["name"] != "folder":
        return [split for split in splits if split.dropped]
    checked = {split.name: split for split in splits}
    try:
        both = splits_of(recipe, "both")
    except DataError:  # the other split has no frames, so use only the checked ones
        both = splits
    return [checked.get(split.name) or split for split in both]


def _short(
    recipe: Recipe,
    splits: list[Split],
    texts: dict[str, str],
    empty: list[str],
    out: Path,
    section: str,
) -> str:
    rows = [
        f"{split.name}: {len(split.frames)} frames, {checks.median_span(split.facts)}"
        for split in splits
    ]
    rows += [f"{split.name}: {line}" for split in splits for line in split.remarks()]
    rows += [f"WARNING: {note}" for note in _notes(splits)]
    # Add a table with a row for each kind of fault or warning, and a column for each split.
    rows += ["", f"{'':<12}" + "".join(f"{split.name:>7}" for split in splits) + "  first"]
    for kind in (*FAULTS, *WARNINGS):
        counts = [sum(finding.kind == kind for finding in split.findings) for split in splits]
        first = [
            s.frames.frames[f.index].name for s in splits for f in s.findings if f.kind == kind
        ][:_SHOWN]
        if any(counts):
            rows.append(
                f"{kind:<12}"
                + "".join(f"{count:>7}" for count in counts)
                + f"  {printable(', '.join(first))}"
            )
    if not any(split.findings for split in splits):
        return "\n".join(rows[:-1] + ([] if _notes(splits) else ["Nothing was found."]))
    # Add the path of the full report, and the options that make a run use the cleaned split files.
    rows += ["", f"All faults and warnings: {out / TEXT}"]
    if empty:
        rows.append(
            f"No cleaned split is written, for no frame would be left in {', '.join(empty)}"
        )
    if texts:
        options = shlex.join(
            f"{section}.{Path(name).stem}_split={(out / name).resolve()}" for name in texts
        )
        rows.append(
            f"Without the {sum(len(split.dropped) for split in splits)} that can't be used: --set "
            f"{options}"
        )
    elif any(split.dropped for split in splits) and recipe.data["name"] not in _WITH_SPLIT_OPTIONS:
        rows.append(
            f"Splits of data.name={recipe.data['name']} can't be cleaned; repair the files, or "
            "make them again"
        )
    return "\n".join(rows)


def _notes(splits: list[Split]) -> list[str]:
    """Returns the datasets' remarks on how image and depth files were found, each remark once.

    Args:
        splits: the checked splits.
    """
    return list(dict.fromkeys(note for split in splits for note in split.frames.notes))


def _figures(split: Split) -> dict:
    counts = Counter(finding.kind for finding in split.findings)
    return {
        "source": str(split.frames.source),
        "frames": len(split.frames),
        "skipped_without_ground_truth": split.frames.num_skipped,
        "dropped": len(split.dropped),
        "counts": {kind: counts[kind] for kind in (*FAULTS, *WARNINGS)},
        "remarks": [*split.frames.notes, *split.remarks()],
    }


def run(args: argparse.Namespace) -> int:
    """Runs bin/check_data.py: checks a recipe's dataset, writes the results, and prints a summary.

    Args:
        args: the program's parsed command line.

    Returns:
        The program's exit code: 0 if there are no faults, warnings or notes on how files were
        found; else 1.

    Raises:
        UserError: the recipe is invalid, or the results can't be written.
    """
    recipe = Recipe(load_recipe(args.recipe, args.overrides))
    out = args.out or Path("work_dirs") / f"check_{Path(args.recipe).stem}"
    found = []
    for name, _, own in recipe.sets_named(args.data_set):
        if name:
            print(f"Data set {name}:")
        with errors_of_set(name):
            found.append(_run_on_set(own, args, out / name, f"data.{name}" if name else "data"))
    return int(any(found))


def _run_on_set(recipe: Recipe, args: argparse.Namespace, out: Path, section: str) -> bool:
    """Checks one data set, writes the results, and prints a summary.

    Args:
        recipe: the recipe with this data set as its only one.
        args: the program's parsed command line.
        out: the folder for the results.
        section: key of the data set's section in the recipe, such as "data"; used in the options
            that the summary recommends.

    Returns:
        True if there is a fault, a warning, or a remark on how files were found.
    """
    splits = splits_of(recipe, args.split)
    read_folders.refuse("--out", out, (".txt", ".json"), recipe.data, recipe.dataset.maps)
    claim(out)
    timeout_s = recipe.loading.timeout_s
    check(recipe, splits, args.workers, timeout_s, args.neighbours, args.drop, sys.stdout)
    print(write(recipe, splits, out, section))
    return any(split.findings or split.frames.notes for split in splits)
