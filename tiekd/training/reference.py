"""Makes a recipe's teacher the reference of an evaluation (`evaluation.against: teacher`)."""

import copy
from collections.abc import Callable

from torch import Tensor
from torch.utils.data import Dataset

from tiekd.config.teacher_node import TeacherNode
from tiekd.data import least_size
from tiekd.data.batch import Batch
from tiekd.data.frames import listed_frames
from tiekd.data.resize import OWN_SIZE
from tiekd.evaluation.agreement import Reference, label_of
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs.teacher import FoundationTeacher, describe
from tiekd.training.canonical import require_focals


def reference_of(
    teacher: Callable[[Batch], Tensor], node: TeacherNode, frames: Dataset
) -> Reference:
    """Returns the reference whose depth is the teacher's for whole images.

    That is what bin/cache_teacher.py writes: a network of the project sees images as when it was
    trained, any other teacher at their own size.

    Args:
        teacher: The recipe's teacher.
        node: The recipe's section `teacher`.
        frames: The evaluation frames.

    Raises:
        UserError: The teacher can't give the depth of these frames.
    """
    label = label_of(frames)
    if isinstance(teacher, CachedMaps):
        folder = getattr(frames, "maps", node.maps)
        return Reference(teacher, None, f"cached maps in {folder}", label)
    if isinstance(teacher, FrozenTeacher):
        least = least_size.least_side(teacher.network)
        least_size.check_frames(frames, teacher.resize, least, "the teacher's data.resize")
        if teacher.needs_focal:
            require_focals(frames, teacher.resize, "validation")
        # In training it sees the student's images, whose focal lengths depend on their resize.
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
