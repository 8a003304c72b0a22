"""The short audit of a teacher, before training or before its maps are cached.

The teacher is called on each of a few frames. If it computes its depth from images, it is called a
second time with red and blue exchanged, and a third time with a part of the image covered. The
audit stops a run if the measurements prove that the teacher's depth is wrong
(tiekd/evaluation/teacher_audit/verdict.py). `teacher.audit: off` turns it off. bin/audit_teacher.py
makes a longer audit. Not covered: resumed runs, whose teacher was audited when they were started.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd import console
from tiekd.config.data_sets import errors_of_set
from tiekd.config.teacher_node import TeacherList, TeacherNode, errors_of
from tiekd.data.batch import Batch
from tiekd.data.resize import Resize
from tiekd.distributed import comm
from tiekd.errors import TeacherError
from tiekd.evaluation.teacher_audit import verdict
from tiekd.evaluation.teacher_audit.observe import ChangedImages, Observer
from tiekd.teachers.mixture import Teacher, members_of
from tiekd.training.mixed_data import prefix_lines
from tiekd.training.settings import SetRecipe

NUM_FRAMES = 24
_FEWEST = 12  # smallest number of audited frames; with fewer, a good teacher may fail by chance
# The audit compares depths on a coarse grid over each image. It is left out if the shorter side of
# that grid has fewer elements than this, since such a grid shows too little.
_SMALLEST_CELLS = 48
OFF = "Teacher audit: off (teacher.audit)"


def audit_sets(
    sets: Sequence[SetRecipe],
    teacher_of: Mapping[str, Teacher | None],
    frames_of: Mapping[str, Dataset],
    *,
    max_depth_m: float,
    device: torch.device,
    resize: Resize,
) -> list[str]:
    """Audits the teachers of each data set on the set's own frames. Collective.

    Args:
        sets: The data sets of the recipe, at least one.
        teacher_of: The teacher of each set by its name; None for a set without one.
        frames_of: The training frames of each set by its name.
        max_depth_m: The largest depth that the student predicts, in metres.
        device: This rank's device.
        resize: How images are resized for the teachers.

    Returns:
        Messages for the log, which name the set if there are several.

    Raises:
        TeacherError: A teacher's depth is certainly wrong; raised on all ranks. The message names
            the data set.
    """
    told = []
    for name, _, recipe in sets:
        if teacher_of[name] is None:
            continue
        with errors_of_set(name):
            lines = audit_all(
                recipe.teachers,
                teacher_of[name],
                frames_of[name],
                max_depth_m=max_depth_m,
                device=device,
                resize=resize,
            )
        told += prefix_lines(name, lines)
    return told


def audit_all(
    nodes: TeacherList,
    teacher: Teacher,
    frames: Dataset,
    *,
    max_depth_m: float,
    device: torch.device,
    resize: Resize,
) -> list[str]:
    """Audits each teacher of a recipe. Collective.

    Args:
        nodes: The recipe's teachers.
        teacher: The teacher or combination of teachers that was built from `nodes`.
        frames: The frames from which the student learns, or whose maps are to be cached.
        max_depth_m: The largest depth that the student predicts, in metres.
        device: This rank's device.
        resize: How images are resized for the teacher.

    Returns:
        Messages for the log, which name the teacher if there are several.

    Raises:
        TeacherError: A teacher's depth is certainly wrong; raised on all ranks.
    """
    if not nodes.is_audited:
        return [OFF]
    if not nodes.is_given:
        return []
    told = []
    for node, member in zip(nodes.nodes, members_of(teacher), strict=True):
        told += audit(
            node, member.teacher, frames, max_depth_m=max_depth_m, device=device, resize=resize
        )
    return told


def audit(
    node: TeacherNode,
    teacher: Callable[[Batch], Tensor],
    frames: Dataset,
    *,
    max_depth_m: float,
    device: torch.device,
    resize: Resize,
) -> list[str]:
    """Audits a teacher on NUM_FRAMES frames. Collective.

    Every rank calls its teacher on all these frames, since a teacher from a user's own module may
    use collectives. Rank 0 judges the results.

    Args:
        node: The teacher's section in the recipe.
        teacher: Function from a batch to the teacher's depth, (B, 1, H, W) in metres, or to a
            `Target`, whose mean depth is audited.
        frames: The frames from which the student learns, or whose maps are to be cached.
        max_depth_m: The largest depth that the student predicts, in metres.
        device: This rank's device.
        resize: How images are resized for the teacher.

    Returns:
        Messages for the log: the result of the audit, or the reason why there was none.

    Raises:
        TeacherError: The teacher's depth is certainly wrong; raised on all ranks.
    """
    if not node.is_given:
        return []
    where = node.where
    title = f"Teacher audit of {where}" if node.is_of_several else "Teacher audit"
    if not node.is_audited:
        return [f"{title}: off ({where}.audit)"]
    if len(frames) < _FEWEST:
        return [f"{title}: left out, it needs {_FEWEST} frames"]
    # Call the teacher for changed images only if it computes its depth from images, and not if its
    # maps are stored or it reads files itself.
    sees = node.maps is None and not getattr(teacher, "reads_files", False)
    changed_images = ChangedImages(swapped=sees, covered=sees)
    observer = Observer(teacher, frames, max_depth_m, device, resize, changed_images)
    with errors_of(where):
        observed = observer.observe(NUM_FRAMES)
    more_of_it = f"{console.command('audit_teacher')} RECIPE"
    found = None
    if comm.is_main():
        small = not observed or min(observed[0].depth.shape) < _SMALLEST_CELLS
        if len(observed) < _FEWEST or small:
            found = "left out, too few frames can be read, or they are too small", False
        else:
            judged = verdict.judge(observed, max_depth_m)
            causes = [cause.message for cause in judged.certain or judged.suspicions]
            more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
            passed = f"{judged.frames} frames, nothing is above its limit"
            found = (causes[0] + more if causes else passed), bool(judged.certain)
            if causes and not judged.certain:
                found = f"Warning: it may be {causes[0]}; see {more_of_it}", False
    told, stops = comm.broadcast_object(found)
    if stops:
        raise TeacherError(f"{where}: {told}; see {more_of_it}, or set {where}.audit=off")
    return [f"{title}: {told}"]
