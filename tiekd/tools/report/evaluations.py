"""Evaluates the run's student on validation and training frames for a report, and its teacher.

The validation frames are those of the run's start if the run has recorded their names. If a part of
the report can't be made, such as the teacher's depth when its weights are missing, the part's name
and the reason are recorded, and the other parts are made.
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
from tiekd.evaluation import floors
from tiekd.evaluation.agreement import Reference
from tiekd.evaluation.compare import EvaluatedPredictor
from tiekd.evaluation.floors import ConstantMap
from tiekd.tools.evaluate import teacher_reference
from tiekd.tools.report import measure, shown_frames
from tiekd.tools.report.content import Content, Evaluation
from tiekd.tools.report.measure import WatchedPredictor
from tiekd.training import inputs
from tiekd.training.canonical import require_focals
from tiekd.training.settings import Recipe

_SAMPLE = 32  # largest number of training frames, and of frames compared with the teacher
_MAP_SAMPLE = 256  # largest number of training frames of the median map


def evaluate(content: Content, student: EvaluatedPredictor, device: torch.device) -> float | None:
    """Evaluates the student on validation and some training frames, and draws some frames.

    The worst, median and best validation frames are drawn. The results are stored in `content`.

    Args:
        content: The content of the report, which is filled in.
        student: The student.
        device: The device of student and teacher.

    Returns:
        The median focal length of the validation frames in pixels of the student's input; None if
        the focal length of a frame isn't known.
    """
    name, _, recipe = content.data_set
    left_out = content.left_out
    if not recipe.validates:
        key = f"data.{name}.validate" if name else "train.validate"
        left_out.append(
            f"Everything about validation frames: the run didn't validate ({key} is false)"
        )
        return None
    # Evaluate every validation frame against ground truth or the teacher, as the recipe says.
    held_out = inputs.held_out_of(content.records.inputs, content.recipe, name)
    try:
        scores_teacher = recipe.scores_teacher
        data = (recipe if scores_teacher else recipe.without_teacher()).dataset
        frames = build_dataset(data, "val", as_evaluated=True, held_out=held_out)
        least_size.check_frames(frames, student.resize, student.least_side, "data.resize")
        if student.needs_focal:
            require_focals(frames, student.resize, "val")
        reference = teacher_reference(recipe, frames, device) if scores_teacher else None
    except (UserError, OSError) as error:
        left_out.append(f"Everything about validation frames: {error}")
        return None
    # Exclude validation frames from training frames by `held_out`.
    names = held_out or [frame.name for frame in getattr(frames, "frames", ())] or None
    training = seen = floor = None
    with attempt(content, "The comparison with training frames"):
        frames_of_training = build_dataset(data, "train", as_evaluated=True, held_out=names)
        if reference is not None:
            seen = teacher_reference(recipe, frames_of_training, device)
        training = frames_of_training
    if training is not None:
        with attempt(content, "The median map"):
            floor = _median_map(training, seen, recipe, device)
    try:
        content.validation = _measured(
            student, (frames, len(frames)), recipe, "val", reference, device, floor
        )
    except (UserError, OSError) as error:
        left_out.append(f"Everything about validation frames: {error}")
        return None
    content.warnings += _warnings(content, frames)
    # Evaluate some training frames in the same way.
    if training is not None:
        with attempt(content, "The comparison with training frames"):
            sample = measure.spaced(training, _SAMPLE), len(training)
            content.training = _measured(student, sample, recipe, "train", seen, device)
    # Also compare with the teacher if the metrics above are against ground truth. Use only some
    # frames, because running a teacher is slow.
    teacher_data = None if reference is None else (frames, reference)
    if not scores_teacher and recipe.teachers.is_given:
        with attempt(content, "The teacher's depth"):
            teacher_data = _build_teacher_data(recipe, data, names, device)
            sample = measure.spaced(teacher_data[0], _SAMPLE), len(frames)
            content.agreement = _measured(student, sample, recipe, "val", teacher_data[1], device)
    # Draw the pictures last: frames are chosen by their metrics, and must be read again.
    with attempt(content, "Pictures of frames"):
        content.frame_pictures = shown_frames.draw(
            shown_frames.choose(content.validation.measured.result.frames),
            frames,
            teacher_data,
            scores_teacher,
            WatchedPredictor(student.predict.network, student.predict.flip),
            student.resize,
            device,
        )
    return _median_focal(frames, student)


def _measured(
    student: EvaluatedPredictor,
    chosen: tuple[Dataset, int],
    recipe: Recipe,
    split: str,
    reference: Reference | None,
    device: torch.device,
    floor: ConstantMap | None = None,
) -> Evaluation:
    """Evaluates the student on some frames by the recipe's protocol.

    Args:
        student: The student.
        chosen: The frames, and the number of frames of the split from which they were taken.
        recipe: The recipe.
        split: The name of the frames' split, "train" or "val".
        reference: The teacher to compare with; None for ground truth.
        device: The student's device.
        floor: A depth map that ignores the image, evaluated on the same frames; None for none.

    Returns:
        The results with the protocol.
    """
    frames, num_split_frames = chosen
    protocol = replace(recipe.protocol(split), reference=reference)
    if not hasattr(frames, "image_sizes"):
        protocol = measure.one_by_one(protocol)
    measured = measure.evaluate(
        student, frames, protocol, device, recipe.loading, sys.stderr, floor
    )
    return Evaluation(measured, protocol, num_split_frames)


def _median_map(
    training: Dataset, reference: Reference | None, recipe: Recipe, device: torch.device
) -> ConstantMap:
    """Returns the median map of some training frames, a depth map that ignores the image.

    They are at most _MAP_SAMPLE frames, or _SAMPLE if a teacher's network has to be run for them.

    Args:
        training: The training frames.
        reference: The teacher whose depth takes the place of ground truth; None for ground truth.
        recipe: The recipe.
        device: The device of student and teacher.

    Raises:
        DataError: No training frame has depth in the recipe's range, or a frame can't be read.
    """
    is_run = reference is not None and reference.is_run
    protocol = recipe.protocol("train")
    depths = floors.target_depths(
        measure.spaced(training, _SAMPLE if is_run else _MAP_SAMPLE),
        reference,
        device,
        "training frames",
        sys.stderr,
        recipe.loading.on_error == "skip",
    )
    _, cells = floors.measure(depths, protocol.min_depth, protocol.cap)
    return ConstantMap(cells.to(device))


def _build_teacher_data(
    recipe: Recipe, data: DataSettings, names: list[str] | None, device: torch.device
) -> tuple[Dataset, Reference]:
    """Builds the dataset of validation frames with the teacher's inputs, and the teacher.

    Args:
        recipe: The recipe, whose evaluation compares with ground truth.
        data: The settings of the recipe's data set without the teacher.
        names: The names of the validation frames; None to use the recipe's split file.
        device: The teacher's device.

    Returns:
        The dataset, in which each frame has what the teacher needs, such as a cached map or a right
        image; and the teacher as a Reference.
    """
    settings = replace(recipe.dataset, scores_teacher=True, loading=data.loading)
    frames = build_dataset(settings, "val", as_evaluated=True, held_out=names)
    return frames, teacher_reference(recipe, frames, device)


def _warnings(content: Content, frames: Dataset) -> list[str]:
    """Returns warnings about the validation frames and the run, one line each.

    They say if the student was trained on a validation frame, if the frames have changed since the
    run started, and if the run isn't complete.

    Args:
        content: The content of the report.
        frames: The dataset of validation frames.
    """
    found = []
    seen = trained_on.overlap_of(content.records.trained_on, frames)
    if seen is not None and seen.seen:
        found.append(f"Of the validation frames {seen}; figures say less of new images.")
    found += _changes(content, frames)
    found += [str(note) for note in getattr(frames, "notes", ())]
    outcome = content.records.outcome
    if outcome is not None and not outcome.is_complete:
        # Don't state the iteration of a running or killed run, since its outcome file was written
        # at the start.
        done = f", {outcome.iteration} of {outcome.total_iterations} iterations"
        told = outcome.outcome + ("" if outcome.outcome == "running" else done)
        found.append(f"The run isn't complete: {told}.")
    return found


def _changes(content: Content, frames: Dataset) -> list[str]:
    """Compares the validation frames with those that the run has recorded at its start.

    Args:
        content: The content of the report, with the run's record of its frames.
        frames: The dataset of validation frames.

    Returns:
        Lines of text with the numbers of missing and of new frames; empty if there are none.
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


def _median_focal(frames: Dataset, student: EvaluatedPredictor) -> float | None:
    try:
        found = require_focals(frames, student.resize, "val")
    except UserError:
        return None
    return sorted(found)[len(found) // 2] if found else None


@contextlib.contextmanager
def attempt(content: Content, noun: str) -> Iterator[None]:
    """Context manager that records an error of a part of the report, so that other parts are made.

    A UserError or OSError in its body is added to `content.left_out` and not raised.

    Args:
        content: The content of the report.
        noun: The name of the part, with which the recorded line begins.
    """
    try:
        yield
    except (UserError, OSError) as error:
        content.left_out.append(f"{noun}: {error}")
