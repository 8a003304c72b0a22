"""Makes a recipe's teacher the reference of an evaluation (`evaluation.against: teacher`).

With several teachers the reference is the weighted mean of their valid depths, with which losses
other than the DPM head's divergence compare, too.
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
    """Returns a reference whose depth is the teacher's depth for whole images.

    It is the depth that bin/cache_teacher.py writes: a network of this project sees images at the
    size at which it was trained, any other teacher at their own size.

    Args:
        teacher: The teacher or the combination of teachers, as `tiekd.teaching.build_teachers`
            builds it.
        teachers: The recipe's teachers.
        frames: The evaluation frames.

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
        _of_parts(teacher, parts),
        None,
        f"the mean of {len(parts)} teachers: {names}",
        label_of(frames),
        tuple(parts),
    )


def _of_parts(teacher: Mixture | Average, parts: list[Reference]) -> Mixture | Average:
    """Returns a copy of a combination of teachers that is called with `Views` of whole images.

    Args:
        teacher: The combination of teachers.
        parts: The reference of each teacher.
    """
    whole = copy.copy(teacher)
    if isinstance(teacher, Average):
        whole.mixture = _of_parts(teacher.mixture, parts)
        return whole
    whole.members = tuple(
        member._replace(teacher=part.at_own_size)
        for member, part in zip(teacher.members, parts, strict=True)
    )
    return whole


def _reference_of_one(teacher: Teacher, node: TeacherNode, frames: Dataset) -> Reference:
    """Returns the reference of one teacher.

    Args:
        teacher: The teacher.
        node: The teacher's section in the recipe.
        frames: The evaluation frames.

    Raises:
        UserError: The teacher can't give the depth of these frames.
    """
    label = label_of(frames)
    if isinstance(teacher, CachedMaps):
        folders = [folder.path for folder in getattr(frames, "map_folders", ())]
        folder = folders[teacher.place] if folders else getattr(frames, "maps", node.maps)
        return Reference(teacher, None, f"cached maps in {folder}", label)
    if isinstance(teacher, FrozenTeacher):
        least = least_size.least_side(teacher.network)
        least_size.check_frames(frames, teacher.resize, least, "the teacher's data.resize")
        if teacher.needs_focal:
            require_focals(frames, teacher.resize, "validation")
        # Use a copy of the teacher that takes focal lengths for its own size of images. In training
        # it sees the student's images, whose focal lengths depend on their resize.
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
