"""Writes the report of a run: what bin/report.py does.

The report is made with what there is. What stops it are a folder without a run, missing weights,
and an output that can't be written; what can't be read besides is named in the report.
"""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from torch.utils.data import Dataset

from tiekd import console, files
from tiekd.config.recipe import load_recipe
from tiekd.data import least_size, trained_on
from tiekd.data.build import DataSettings, build_dataset
from tiekd.errors import CheckpointError, LaunchError, UserError
from tiekd.evaluation import compare
from tiekd.evaluation.agreement import Reference
from tiekd.evaluation.compare import Entrant
from tiekd.inference.student import pick_device
from tiekd.tools.evaluate import teacher_reference
from tiekd.tools.report import (
    calibrated,
    exports,
    measure,
    page,
    place,
    records,
    repeat,
    shown_frames,
)
from tiekd.tools.report.content import Content, Evaluation
from tiekd.tools.report.findings import findings_of
from tiekd.tools.report.measure import WatchedPredictor
from tiekd.tools.report.symptoms import suggestions
from tiekd.training import inputs
from tiekd.training.canonical import require_focals
from tiekd.training.settings import Recipe
from tiekd.workdir import launch_record, workdir

NAME = "report.html"
_SAMPLE = 32  # frames on which the gap to training, and agreement beside accuracy, are measured
_ANY_SIZE = 480, 640  # (height, width) of the image for a latency, if no frame says one


def run(args: argparse.Namespace) -> None:
    """Writes a report, and prints where it is.

    Args:
        args: The program's parsed command line.

    Raises:
        UserError: There is no run or no weights, or an option is wrong.
    """
    # Paths are those of the current folder; the recipe's are those of the folder of the run.
    where = place.find(args.work_dir, args.export, args.recipe is not None)
    out = (where.folder / NAME if args.out is None else args.out).absolute()
    check_out(out, is_given=args.out is not None, force=args.force)
    recipe_path = (args.recipe or where.work_dir / workdir.RECIPE).absolute()
    device = pick_device(args.device)
    with _in_folder_of(where.work_dir):
        content = collect(where, recipe_path, args.overrides, device)
    text = page.document(content)
    try:
        files.replace_text(out, text)
    except OSError as error:
        raise LaunchError(
            f"--out {out}: can't be written ({files.cause_of(error)}); give another place"
        ) from None
    for line in content.left_out:
        print(f"Left out: {console.printable(line)}")
    print(f"Written: {out} ({len(text.encode(errors='surrogateescape')) / 1e6:.1f} MB)")


def check_out(out: Path, is_given: bool, force: bool) -> None:
    """Refuses an output path that no report can have, and one at which there is something else.

    Args:
        out: The path.
        is_given: True if the user gave it.
        force: True to replace any file.

    Raises:
        LaunchError: The path is a folder, doesn't end in .html, or is a file that is no report.
    """
    files.check_output("--out", out, ".html")
    if out.exists() and not force and not page.is_report(out):
        given = "--out " if is_given else ""
        raise LaunchError(
            f"{given}{out}: is there already, and is no report of tiekd; give another --out, or "
            "--force to replace it"
        )


def collect(
    where: place.Place, recipe_path: Path, overrides: list[str], device: torch.device
) -> Content:
    """Measures and reads everything that a report shows.

    Args:
        where: The files that the report is about.
        recipe_path: The recipe.
        overrides: Overrides of the recipe's values.
        device: The device of student and teacher.

    Raises:
        UserError: The recipe is invalid, or there are no weights that fit it.
    """
    recipe = Recipe(load_recipe(recipe_path, overrides))
    named = [(str(recipe_path), str(where.work_dir))]
    try:
        (entrant,) = compare.entrants(named, overrides, recipe.evaluation.flip, device).values()
    except CheckpointError as error:
        if not str(error).startswith("there are no weights"):
            raise
        command = f"{console.command('resume')} {shlex.quote(str(where.work_dir))}"
        raise CheckpointError(
            f"{error} yet; they come with the first evaluation or checkpoint, and {command} "
            "resumes a run that stopped"
        ) from None
    network = entrant.predict.network
    content = Content(
        name=where.work_dir.name,
        time=datetime.now().strftime("%Y-%m-%d %H:%M"),
        place=where,
        recipe=recipe,
        records=records.read(where.work_dir, entrant.weights),
        parameters=sum(each.numel() for each in network.parameters()),
        resize=entrant.resize,
        max_depth_m=network.max_depth,
    )
    content.left_out += content.records.left_out
    with _attempt(content, "The calibrated confidence"):
        content.calibration = calibrated.read(where.work_dir)
    focal = _evaluate(content, entrant, device)
    # Time last, when nothing else runs.
    size = _image_size(content)
    content.timings = [exports.of_file(path, size) for path in where.exports]
    content.timings = content.timings or [exports.of_network(network, entrant.resize, size)]
    if content.validation is not None:
        content.suggestions = suggestions(findings_of(content, focal))
    content.commands = repeat.commands(
        where,
        recipe_path,
        content.records.launch,
        overrides,
        content.validation is not None,
        {each.name: each.options for each in content.timings},
    )
    return content


def _evaluate(content: Content, entrant: Entrant, device: torch.device) -> float | None:
    """Evaluates the student on validation and training frames, and draws some.

    Args:
        content: The content of the report, which gets the figures and pictures.
        entrant: The student.
        device: The device of student and teacher.

    Returns:
        The median focal length of the validation frames at the working resolution; None if the
        focal length of a frame isn't known.
    """
    recipe, left_out = content.recipe, content.left_out
    if not recipe.validates:
        left_out.append(
            "Everything about validation frames: the run didn't validate (train.validate is false)"
        )
        return None
    held_out = inputs.held_out(content.records.inputs, recipe)
    try:
        scores_teacher = recipe.scores_teacher
        data = (recipe if scores_teacher else recipe.without_teacher()).dataset
        frames = build_dataset(data, "val", as_evaluated=True, held_out=held_out)
        least_size.check_frames(frames, entrant.resize, entrant.least_side, "data.resize")
        if entrant.needs_focal:
            require_focals(frames, entrant.resize, "val")
        reference = teacher_reference(recipe, frames, device) if scores_teacher else None
        content.validation = _measured(
            entrant, frames, len(frames), recipe, "val", reference, device
        )
    except (UserError, OSError) as error:
        left_out.append(f"Everything about validation frames: {error}")
        return None
    content.warnings += _warnings(content, frames)
    names = held_out or [frame.name for frame in getattr(frames, "frames", ())] or None
    with _attempt(content, "The comparison with training frames"):
        training = build_dataset(data, "train", as_evaluated=True, held_out=names)
        sample = measure.spaced(training, _SAMPLE)
        seen = None if reference is None else teacher_reference(recipe, training, device)
        content.training = _measured(entrant, sample, len(training), recipe, "train", seen, device)
    taught = None if reference is None else (frames, reference)
    if not scores_teacher and recipe.teachers.is_given:
        with _attempt(content, "The teacher's depth"):
            taught = _taught(recipe, data, names, device)
            sample = measure.spaced(taught[0], _SAMPLE)
            content.agreement = _measured(
                entrant, sample, len(frames), recipe, "val", taught[1], device
            )
    with _attempt(content, "Pictures of frames"):
        content.shown = shown_frames.draw(
            shown_frames.choose(content.validation.measured.result.frames),
            frames,
            taught,
            WatchedPredictor(entrant.predict.network, entrant.predict.flip),
            entrant.resize,
            device,
        )
    return _median_focal(frames, entrant)


def _measured(
    entrant: Entrant,
    frames: Dataset,
    of: int,
    recipe: Recipe,
    split: str,
    reference: Reference | None,
    device: torch.device,
) -> Evaluation:
    """Evaluates the student on some frames.

    Args:
        entrant: The student.
        frames: The frames.
        of: Number of frames of which they were taken.
        recipe: The recipe, whose protocol is followed.
        split: The name of the frames' split.
        reference: The teacher to compare with; None for ground truth.
        device: The student's device.
    """
    protocol = replace(recipe.protocol(split), reference=reference)
    if not hasattr(frames, "image_sizes"):
        protocol = measure.one_by_one(protocol)
    measured = measure.evaluate(entrant, frames, protocol, device, recipe.loading, sys.stderr)
    return Evaluation(measured, protocol, of)


def _taught(
    recipe: Recipe, data: DataSettings, names: list[str] | None, device: torch.device
) -> tuple[Dataset, Reference]:
    """Returns the validation frames with what the teacher needs, and the teacher.

    Args:
        recipe: The recipe, whose evaluation compares with ground truth.
        data: The settings of its data set without the teacher.
        names: The names of the validation frames, where none are listed.
        device: The teacher's device.
    """
    settings = replace(recipe.dataset, scores_teacher=True, loading=data.loading)
    frames = build_dataset(settings, "val", as_evaluated=True, held_out=names)
    return frames, teacher_reference(recipe, frames, device)


def _warnings(content: Content, frames: Dataset) -> list[str]:
    """Returns what a reader has to know about the validation frames.

    Args:
        content: The content of the report.
        frames: The validation frames.
    """
    found = []
    seen = trained_on.overlap(content.records.trained_on, trained_on.hashes_of(frames))
    if seen is not None and seen.seen:
        found.append(f"Of the validation frames {seen}; figures say less of new images.")
    found += _changes(content, frames)
    found += [str(note) for note in getattr(frames, "notes", ())]
    outcome = content.records.outcome
    if outcome is not None and not outcome.is_complete:
        # A run that is going on, or was killed, has written its outcome at the start only.
        done = f", {outcome.iteration} of {outcome.total_iterations} iterations"
        told = outcome.outcome + ("" if outcome.outcome == "running" else done)
        found.append(f"The run isn't complete: {told}.")
    return found


def _changes(content: Content, frames: Dataset) -> list[str]:
    """Returns how the validation frames differ from those of the run's start; empty if they don't.

    Args:
        content: The content of the report.
        frames: The validation frames.
    """
    record = content.records.inputs
    names = None if record is None else record["splits"].get("val", {}).get("names")
    if names is None or not hasattr(frames, "frames"):
        return []
    now, then = {frame.name for frame in frames.frames}, set(names)
    found = []
    if missing := sorted(then - now):
        found.append(
            f"{len(missing)} of the {len(then)} validation frames of the run's start are missing, "
            f"such as {missing[0]}; figures are of the others."
        )
    if added := sorted(now - then):
        found.append(f"{len(added)} validation frames are new since the run's start.")
    return found


def _median_focal(frames: Dataset, entrant: Entrant) -> float | None:
    try:
        found = require_focals(frames, entrant.resize, "val")
    except UserError:
        return None
    return sorted(found)[len(found) // 2] if found else None


def _image_size(content: Content) -> tuple[int, int]:
    found = content.validation
    return found.measured.sizes.most_common(1)[0][0] if found is not None else _ANY_SIZE


@contextlib.contextmanager
def _attempt(content: Content, noun: str) -> Iterator[None]:
    """Context manager that leaves a part out of the report if a user's mistake stops it.

    Args:
        content: The content of the report.
        noun: The name of the part.
    """
    try:
        yield
    except (UserError, OSError) as error:
        content.left_out.append(f"{noun}: {error}")


@contextlib.contextmanager
def _in_folder_of(work_dir: Path) -> Iterator[None]:
    """Context manager in which the current folder is the one where a run was started.

    Relative paths in a run's recipe begin there. Without a record of it, or if that folder is gone,
    the current folder stays.

    Args:
        work_dir: The run's folder.
    """
    before = os.getcwd()
    with contextlib.suppress(UserError, OSError):
        os.chdir(launch_record.read(work_dir).folder)
    try:
        yield
    finally:
        os.chdir(before)
