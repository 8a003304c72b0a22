"""Checks the frames that a recipe reads, and writes a report and split files without the faulty ones.

Nothing of the user's is touched: all goes to a folder that must not hold such files yet, each written whole, after all
frames were read. A faulty frame is dropped from the cleaned split; what is only a warning (tiekd/data/checks.py)
stays, unless asked for, and then training frames only, for another validation set gives other figures.
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

from tiekd.config.recipe import load_recipe
from tiekd.console import Progress
from tiekd.data import checks, depth_values
from tiekd.data.augment.augment import Augment
from tiekd.data.build import build_dataset
from tiekd.data.checks import FAULTS, WARNINGS, Examined, Facts, Finding
from tiekd.data.decoded_cache import without_cache
from tiekd.data.frames import Frames
from tiekd.data.image_io import write_durably
from tiekd.data.loading import workers
from tiekd.data.resize import Resize
from tiekd.data.splits import read_lines, read_split
from tiekd.errors import LaunchError, RecipeError
from tiekd.training.settings import Recipe

REPORT, TEXT = "report.json", "report.txt"
_SPLITS = ("train", "val")
_WITH_SPLIT_OPTIONS = ("kitti", "nyu", "folder")
_FRAMES_A_BATCH = 4
_SHOWN = 3


@dataclass
class Split:
    """One split and what was found in it. lines: of its split file, (number, text) a frame; None for one without."""

    name: str
    frames: Frames
    lines: list[tuple[int, str]] | None
    facts: list[Facts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)

    def where(self, index: int) -> str | None:
        """The split file's line of a frame."""
        return None if self.lines is None else f"{self.frames.source}:{self.lines[index][0]}"

    def remarks(self) -> list[str]:
        """What the depth maps count as, and what else a person should look at; no fault by itself."""
        found = depth_values.describe(self.frames, [fact.levels for fact in self.facts if fact.levels is not None])
        turned = [frame.name for frame, fact in zip(self.frames.frames, self.facts, strict=True) if fact.turned]
        if turned:
            found.append(depth_values.turned_line(turned))
        return found

    def cleaned(self) -> str:
        """The split file's text without the lines of frames that are dropped."""
        texts = [f.name for f in self.frames.frames] if self.lines is None else [text for _, text in self.lines]
        return "".join(f"{text}\n" for index, text in enumerate(texts) if index not in self.dropped)


def splits_of(recipe: dict, which: str) -> list[Split]:
    """The splits to check: "train", "val" or "both", which means "train" where the recipe has no validation."""
    validates = recipe.get("train", {}).get("validate", True)
    names = _SPLITS[: 2 if validates else 1] if which == "both" else (which,)
    return [_split(recipe, name) for name in names]


def check(
    recipe: dict,
    splits: list[Split],
    num_workers: int,
    timeout_s: float,
    neighbours: int,
    drop: Sequence[str],
    out: TextIO,
) -> None:
    """Fills in the splits' facts, findings and dropped frames.

    neighbours: how many frame numbers apart, 0 for no such warnings; drop: kinds of warnings whose training frames are
    dropped as faulty ones are.
    """
    sections = Recipe(recipe)
    augment, resize = sections.augment, sections.resize
    total = sum(len(split.frames) for split in splits)
    with Progress("frames", total, lambda: sum(len(split.facts) for split in splits), out) as progress:
        for split in splits:
            _examine(split, augment if split.name == "train" else None, resize, num_workers, timeout_s, progress)
    by_name = {split.name: split for split in splits}
    if len(by_name) == len(_SPLITS):
        train, val = by_name["train"], by_name["val"]
        train.findings += checks.shared(train.frames, train.facts, val.frames, val.facts)
        train.findings += checks.neighbours(train.frames, val.frames, neighbours)
    for split in splits:
        tolerated = () if split.name == "val" or recipe.get("teacher") is None else ("empty",)
        kinds = {*FAULTS, *(drop if split.name == "train" else ())}.difference(tolerated)
        split.dropped = {finding.index for finding in split.findings if finding.kind in kinds}


def claim(out: Path) -> None:
    """Makes the folder for the results. Raises LaunchError where it has some already."""
    held = [name for name in (REPORT, TEXT, *(f"{split}.txt" for split in _SPLITS)) if (out / name).exists()]
    if held:
        raise LaunchError(f"--out {out}: holds {held[0]} already, which is not overwritten; give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--out {out}: can't be made ({error.strerror}); give another folder") from None


def write(recipe: dict, splits: list[Split], out: Path) -> str:
    """Writes report and cleaned split files; returns the report in short, with the options that use the latter."""
    texts = {f"{split.name}.txt": split.cleaned() for split in _to_clean(recipe, splits)}
    empty = [name for name, text in texts.items() if not text]
    texts = {} if empty else texts
    for name, text in texts.items():
        write_durably(out / name, text.encode(errors="surrogateescape"))
    short = _short(recipe, splits, texts, empty, out)
    findings = [(split, finding) for split in splits for finding in split.findings]
    lines = [f"{s.name} {f.kind}: {f.message} ({s.where(f.index) or s.frames.source})" for s, f in findings]
    write_durably(out / TEXT, "\n".join([short, "", *lines, ""]).encode(errors="backslashreplace"))
    report = {
        "splits": {s.name: _figures(s) for s in splits},
        "cleaned": sorted(texts),
        "findings": [
            {
                **{"split": s.name, "kind": f.kind, "frame": s.frames.frames[f.index].name, "where": s.where(f.index)},
                **{"message": f.message, "dropped": f.index in s.dropped},
            }
            for s, f in findings
        ],
    }
    write_durably(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    return short


def _split(recipe: dict, name: str) -> Split:
    frames = build_dataset(without_cache(recipe), name)
    if not isinstance(frames, Frames):
        raise RecipeError(f"data.name: {recipe['data']['name']} has no files to check; kitti, nyu and folder have")
    if not frames.source.is_file():
        return Split(name, frames, None)
    lines = read_lines(frames.source, "")
    if frames.num_skipped:  # frames without ground truth, where it is needed
        truths = [line.ground_truth for line in read_split(frames.source)]
        lines = [line for line, truth in zip(lines, truths, strict=True) if truth is not None]
    assert len(lines) == len(frames)
    return Split(name, frames, lines)


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
        list(range(len(frames)))[start : start + _FRAMES_A_BATCH] for start in range(0, len(frames), _FRAMES_A_BATCH)
    ]

    def describe(indices: list[int]) -> str:
        return ", ".join(frames[index].image for index in indices)

    for facts in workers.read(Examined(split.frames, augment, resize), batches, num_workers, list, describe, timeout_s):
        split.facts += facts
        progress.update()
    faults = [(index, fault) for index, fact in enumerate(split.facts) for fault in fact.faults]
    split.findings = [Finding(kind, index, message) for index, (kind, message) in faults]
    split.findings += checks.duplicates(split.frames, split.facts)


def _to_clean(recipe: dict, splits: list[Split]) -> list[Split]:
    """The splits that get a file. In a folder the rest of one split is the other, so both get one or none."""
    if recipe["data"]["name"] not in _WITH_SPLIT_OPTIONS or not any(split.dropped for split in splits):
        return []
    if recipe["data"]["name"] != "folder":
        return [split for split in splits if split.dropped]
    checked = {split.name: split for split in splits}
    return [checked.get(split.name) or split for split in splits_of(recipe, "both")]


def _short(recipe: dict, splits: list[Split], texts: dict[str, str], empty: list[str], out: Path) -> str:
    rows = [f"{split.name}: {len(split.frames)} frames, {checks.median_span(split.facts)}" for split in splits]
    rows += [f"{split.name}: {line}" for split in splits for line in split.remarks()]
    rows += [f"WARNING: {note}" for note in _notes(splits)]
    rows += ["", f"{'':<12}" + "".join(f"{split.name:>7}" for split in splits) + "  first"]
    for kind in (*FAULTS, *WARNINGS):
        counts = [sum(finding.kind == kind for finding in split.findings) for split in splits]
        first = [s.frames.frames[f.index].name for s in splits for f in s.findings if f.kind == kind][:_SHOWN]
        if any(counts):
            rows.append(f"{kind:<12}" + "".join(f"{count:>7}" for count in counts) + f"  {', '.join(first)}")
    if not any(split.findings for split in splits):
        return "\n".join(rows[:-1] + ([] if _notes(splits) else ["Nothing was found."]))
    rows += ["", f"All of them: {out / TEXT}"]
    if empty:
        rows.append(f"No cleaned split is written, for no frame would be left in {', '.join(empty)}")
    if texts:
        options = shlex.join(f"data.{Path(name).stem}_split={(out / name).resolve()}" for name in texts)
        rows.append(f"Without the {sum(len(split.dropped) for split in splits)} that can't be used: --set {options}")
    elif any(split.dropped for split in splits) and recipe["data"]["name"] not in _WITH_SPLIT_OPTIONS:
        rows.append(f"Splits of data.name={recipe['data']['name']} can't be cleaned; mend the files, or make them anew")
    return "\n".join(rows)


def _notes(splits: list[Split]) -> list[str]:
    """What is to be said of how the files were found, each once."""
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


def run(args: argparse.Namespace) -> None:
    """What bin/check_data.py does, with its arguments. Prints; raises UserErrors."""
    recipe = load_recipe(args.recipe, args.overrides)
    out = args.out or Path("work_dirs") / f"check_{Path(args.recipe).stem}"
    splits = splits_of(recipe, args.split)
    claim(out)
    timeout_s = Recipe(recipe).loading.timeout_s
    check(recipe, splits, args.workers, timeout_s, args.neighbours, args.drop, sys.stdout)
    print(write(recipe, splits, out))
    if any(split.findings or split.frames.notes for split in splits):
        sys.exit(1)
