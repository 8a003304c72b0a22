"""Makes a recipe's teacher the reference of an evaluation (`evaluation.against: teacher`).

The reference is the depth with which the student's depth is compared in place of ground truth. If
the recipe has several teachers, it is the weighted mean of their valid depths. (Losses compare with
the same mean, except for the divergence of a DPM head.)
"""

import copy

from torch.utils.data import Dataset

from tiekd.config.teacher_node import TeacherList, TeacherNode, errors_of
from tiekd.data import least_size
from tiekd.data.frames import listed_frames
from tiekd.data.learned_from import describe
from tiekd.data.resize import OWN_SIZE
from tiekd.evaluation.agreement import Reference, label_of
from tiekd.teachers.average import Average
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.mixture import Mixture, Teacher, members_of
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs.teacher import FoundationTeacher
from tiekd.training.canonical import require_focals


def reference_of(teacher: Teacher, teachers: TeacherList, frames: Dataset) -> Reference:
    """Returns the teacher as a `Reference`, with which an evaluation compares the student.

    The reference's depth is the same as in the maps that bin/cache_teacher.py writes. It is
    computed from whole images: a network of this project sees them at the size at which it was
    trained, any other teacher at their own size.

    Args:
        teacher: The teacher or the combination of teachers, as `tiekd.teaching.build_teachers`
            builds it.
        teachers: The sections of the recipe that describe `teacher`.
        frames: The frames of the evaluation.

    Raises:
        UserError: A teacher can't give the depth of these frames.
    """
    if teachers.several is None:
        return _reference_of_one(teacher, teachers.nodes[0], frames)
    parts = []
    for member, node in zip(members_of(teacher), teachers.nodes, strict=True):
        with errors_of(node.where):
            parts.append(_reference_of_one(member.teacher, node, frames))
    names = "; ".join(part.name for part in parts)
    return Reference(
        _combined_for_whole_images(teacher, parts),
        None,
        f"the mean of {len(parts)} teachers: {names}",
        label_of(frames),
        tuple(parts),
    )


def _combined_for_whole_images(
    teacher: Mixture | Average, parts: list[Reference]
) -> Mixture | Average:
    """Returns a copy of a combination of teachers that is called for whole images.

    In place of each teacher the copy calls the teacher's reference. So it is called with a
    `BatchByResize`, a dict that has the batch of images at each size that a reference needs.

    Args:
        teacher: The combination of teachers.
        parts: The reference of each teacher, in the same order.
    """
    whole = copy.copy(teacher)
    if isinstance(teacher, Average):
        whole.mixture = _combined_for_whole_images(teacher.mixture, parts)
        return whole
    whole.members = tuple(
        member._replace(teacher=part.at_own_size)
        for member, part in zip(teacher.members, parts, strict=True)
    )
    return whole


def _reference_of_one(teacher: Teacher, node: TeacherNode, frames: Dataset) -> Reference:
    """Returns a single teacher as a `Reference`, with which an evaluation compares the student.

    Args:
        teacher: The teacher.
        node: The teacher's section in the recipe.
        frames: The frames of the evaluation.

    Raises:
        UserError: The teacher can't give the depth of these frames.
    """
    label = label_of(frames)
    if isinstance(teacher, CachedMaps):
        folders = [folder.path for folder in getattr(frames, "map_folders", ())]
        folder = folders[teacher.map_index] if folders else getattr(frames, "maps", node.maps)
        return Reference(teacher, None, f"cached maps in {folder}", label)
    if isinstance(teacher, FrozenTeacher):
        least = least_size.least_side(teacher.network)
        least_size.check_frames(frames, teacher.resize, least, "the teacher's data.resize")
        if teacher.needs_focal:
            require_focals(frames, teacher.resize, "validation")
        # Copy the teacher, so that the copy computes focal lengths for the size at which the
        # evaluation resizes images for the teacher. The original computes them for the student's
        # images, which it gets in training.
        whole = copy.copy(teacher)
        whole.seen_at = teacher.resize
        return Reference(
            whole, teacher.resize, f"the network of {node.checkpoint or node.recipe}", label
        )
    name = str(node.name)
    if isinstance(teacher, FoundationTeacher):
        teacher.check_frames(listed_frames(frames))
        name = describe(teacher.description)
    return Reference(teacher, getattr(teacher, "resize", OWN_SIZE), name, label)
