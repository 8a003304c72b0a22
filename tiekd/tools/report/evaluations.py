"""Evaluates the student for a report: on validation frames, on training frames, and the teacher.

The validation frames are those of the run's start, where its record names them. A part that can't
be made, such as pictures without the teacher's weights, is left out and named; the others are made.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from tiekd.data import least_size, trained_on
from tiekd.data.build import DataSettings, build_dataset
from tiekd.errors import UserError
from tiekd.evaluation.agreement import Reference
from tiekd.evaluation.compare import Entrant
from tiekd.tools.evaluate import teacher_reference
from tiekd.tools.report import measure, shown_frames
from tiekd.tools.report.content import Content, Evaluation
from tiekd.tools.report.measure import WatchedPredictor
from tiekd.training import inputs
from tiekd.training.canonical import require_focals
from tiekd.training.settings import Recipe

_SAMPLE = 32  # frames on which the gap to training, and agreement beside accuracy, are measured


def evaluate(content: Content, entrant: Entrant, device: torch.device) -> float | None:
    """Evaluates the student on validation and training frames, and draws some.

    Args:
        content: The content of the report, which gets the figures and pictures.
        entrant: The student.
        device: The device of student and teacher.

    Returns:
        The median focal length of the validation frames at the working resolution; None if the
        focal length of a frame isn't known.
    """
    name, _, recipe = content.data_set
    left_out = content.left_out
    if not recipe.validates:
        key = f"data.{name}.validate" if name else "train.validate"
        left_out.append(
            f"Everything about validation frames: the run didn't validate ({key} is false)"
        )
        return None
    # Every validation frame, compared with the ground truth or the teacher, as the recipe says.
    held_out = inputs.held_out_of(content.records.inputs, content.recipe, name)
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
    # Some training frames, in the same way. The names hold the validation frames out of them.
    names = held_out or [frame.name for frame in getattr(frames, "frames", ())] or None
    with attempt(content, "The comparison with training frames"):
        training = build_dataset(data, "train", as_evaluated=True, held_out=names)
        sample = measure.spaced(training, _SAMPLE)
        seen = None if reference is None else teacher_reference(recipe, training, device)
        content.training = _measured(entrant, sample, len(training), recipe, "train", seen, device)
    # The agreement with the teacher beside accuracy, on some frames, since a teacher is slow.
    taught = None if reference is None else (frames, reference)
    if not scores_teacher and recipe.teachers.is_given:
        with attempt(content, "The teacher's depth"):
            taught = _taught(recipe, data, names, device)
            sample = measure.spaced(taught[0], _SAMPLE)
            content.agreement = _measured(
                entrant, sample, len(frames), recipe, "val", taught[1], device
            )
    # The pictures need the frames' figures, so their frames are read again.
    with attempt(content, "Pictures of frames"):
        content.shown = shown_frames.draw(
            shown_frames.choose(content.validation.measured.result.frames),
            frames,
            taught,
            scores_teacher,
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
    seen = trained_on.overlap_of(content.records.trained_on, frames)
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


@contextlib.contextmanager
def attempt(content: Content, noun: str) -> Iterator[None]:
    """Context manager that leaves a part out of the report if a user's mistake stops it.

    Args:
        content: The content of the report.
        noun: The name of the part.
    """
    try:
        yield
    except (UserError, OSError) as error:
        content.left_out.append(f"{noun}: {error}")
