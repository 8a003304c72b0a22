"""The short audit of a teacher before training or caching begins.

Some frames, one call of the teacher for each; where it sees images, a second one with red and blue
exchanged, and a third one with a part covered. It stops a run whose teacher is above a limit of
tiekd/evaluation/teacher_audit/verdict.py; `teacher.audit: off` leaves it out. The long one is
bin/audit_teacher.py. Left out: a resumed run, whose teacher was audited when it began.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.config.teacher_node import TeacherNode
from tiekd.data.batch import Batch
from tiekd.data.resize import Resize
from tiekd.distributed import comm
from tiekd.errors import TeacherError
from tiekd.evaluation.teacher_audit import verdict
from tiekd.evaluation.teacher_audit.observe import Observer, Questions

NUM_FRAMES = 24
_FEWEST = 12  # frames; with fewer a good teacher may fail by chance
_SMALLEST_CELLS = 48  # of the grid's shorter side; smaller frames show too little


def audit(
    node: TeacherNode,
    teacher: Callable[[Batch], Tensor],
    frames: Dataset,
    *,
    max_depth_m: float,
    device: torch.device,
    resize: Resize,
) -> list[str]:
    """Audits a teacher on some frames; returns lines for the log. Collective.

    Each rank asks its teacher, since one of the user's own may need all of them; rank 0 judges.

    Args:
        node: The teacher's section.
        teacher: Gives a batch its depth.
        frames: The frames that the student learns from.
        max_depth_m: The student's range in metres.
        device: Of this rank.
        resize: The size at which the teacher sees images.

    Raises:
        TeacherError: A figure is above its limit.
    """
    if not node.is_given:
        return []
    if not node.is_audited:
        return ["Teacher audit: off (teacher.audit)"]
    if len(frames) < _FEWEST:
        return [f"Teacher audit: left out, it needs {_FEWEST} frames"]
    sees = node.maps is None
    questions = Questions(swapped=sees, covered=sees)
    observer = Observer(teacher, frames, max_depth_m, device, resize, questions)
    observed = observer.observe(NUM_FRAMES)
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
                found = f"Warning: it may be {causes[0]}; see bin/audit_teacher.py RECIPE", False
    told, stops = comm.broadcast_object(found)
    if stops:
        raise TeacherError(
            f"teacher: {told}; see bin/audit_teacher.py RECIPE, or set teacher.audit=off"
        )
    return [f"Teacher audit: {told}"]
