"""The short audit that stands before training and caching."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tiekd.config.teacher_node import TeacherList, TeacherNode
from tiekd.data.build import build_dataset, settings_of
from tiekd.data.datasets.scenes import render, write_kitti_layout
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import Target
from tiekd.errors import RecipeError, TeacherError
from tiekd.evaluation.teacher_audit import verdict
from tiekd.teachers.mixture import Member, Mixture
from tiekd.training import teacher_audit

CPU = torch.device("cpu")
SIZE = (64, 160)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("audit") / "kitti"
    write_kitti_layout(root, 0, *SIZE, 12, 1)
    return build_dataset(settings_of({"name": "kitti", "root": str(root)}, 80.0), "train")


class _Exact:
    """A teacher that knows the scenes, times a factor."""

    def __init__(self, factor: float = 1.0):
        self.factor, self.calls = factor, 0

    def __call__(self, batch):
        self.calls += 1
        depth = render(0, int(Path(batch.names[0]).stem), *SIZE).depth
        depth = np.where(depth > 0, depth, 79).astype(np.float32)
        return torch.from_numpy(self.factor * depth)[None, None]


def _audit(frames, teacher, resize=OWN_SIZE, **node) -> list[str]:
    return teacher_audit.audit(
        TeacherNode(node), teacher, frames, max_depth_m=80.0, device=CPU, resize=resize
    )


def test_audit_passes_a_good_teacher(frames):
    """A good teacher passes with a line for the log; stored maps are asked for once a frame."""
    for node, calls in (({"name": "my.teacher"}, 36), ({"maps": "folder"}, 12)):
        teacher = _Exact()
        told = _audit(frames, teacher, **node)
        assert told == ["Teacher audit: 12 frames, nothing is above its limit"]
        assert teacher.calls == calls


def test_audit_takes_maps_at_the_images_own_size(frames):
    """Cached maps are judged at the image's own size, whatever the working resolution."""
    half = Resize(height=32, width=96, mode="stretch")
    told = _audit(frames, _Exact(), half, maps="folder")
    assert told == ["Teacher audit: 12 frames, nothing is above its limit"]
    with pytest.raises(TeacherError, match="teacher: centimetres taken for metres"):
        _audit(frames, _Exact(100), half, maps="folder")


def test_audit_stops_on_centimetres(frames):
    """Centimetres stop the run with one line: likely cause, the long audit, and how to go on."""
    with pytest.raises(TeacherError) as error:
        _audit(frames, _Exact(100), maps="folder")
    told = str(error.value)
    assert told.startswith("teacher: centimetres taken for metres: the scale is 100")
    assert told.endswith("see bin/audit_teacher.py RECIPE, or set teacher.audit=off")
    assert "\n" not in told


def test_audit_warns_of_what_edges_alone_say(frames, monkeypatch):
    """Stored maps that look like other frames' go on with a warning, without ground truth."""
    judged = verdict.Verdict(12, {"response": float("nan")}, [verdict.Suspicion("foreign", "odd")])
    monkeypatch.setattr(verdict, "judge", lambda *_: judged)
    assert _audit(frames, _Exact(), maps="folder") == [
        "Teacher audit: Warning: it may be odd; see bin/audit_teacher.py RECIPE"
    ]
    judged.figures["response"] = 0.0
    with pytest.raises(TeacherError, match="teacher: odd; see"):
        _audit(frames, _Exact(), maps="folder")


def test_audit_off(frames):
    """`teacher.audit: off` asks the teacher nothing, and says so."""
    teacher = _Exact(100)
    assert _audit(frames, teacher, maps="folder", audit="off") == [
        "Teacher audit: off (teacher.audit)"
    ]
    assert teacher.calls == 0


def test_audit_without_teacher(frames):
    """The ground truth is no teacher to be audited."""
    assert _audit(frames, _Exact(100)) == []


def test_audit_few_frames(frames):
    """Eleven frames are too few to judge by, and the log says so."""
    few = torch.utils.data.Subset(frames, range(11))
    told = _audit(few, _Exact(100), maps="folder")
    assert told == ["Teacher audit: left out, it needs 12 frames"]


def test_teacher_audit_key():
    """The key takes on and off; it is no argument of a teacher's."""
    for value in ("on", "off"):
        TeacherNode({"maps": "folder", "audit": value}).check()
    with pytest.raises(RecipeError, match="teacher.audit: got False; allowed: on, off"):
        TeacherNode({"name": "my.teacher", "audit": False}).check()
    node = TeacherNode({"name": "my.teacher", "audit": "off", "size": 3})
    assert node.own_section == {"name": "my.teacher", "size": 3}


def test_audit_of_several_names_each(frames):
    """Each of several teachers is audited, or left out, by its own key; a bad one is named."""
    nodes = TeacherList.of({"teachers": [{"maps": "a"}, {"maps": "b", "audit": "off"}]})

    def audit(*teachers, nodes=nodes):
        members = [
            Member(each, node.where) for each, node in zip(teachers, nodes.nodes, strict=True)
        ]
        return teacher_audit.audit_all(
            nodes, Mixture(members, CPU), frames, max_depth_m=80.0, device=CPU, resize=OWN_SIZE
        )

    bad = _Exact(100)
    assert audit(_Exact(), bad) == [
        "Teacher audit of teachers[0]: 12 frames, nothing is above its limit",
        "Teacher audit of teachers[1]: off (teachers[1].audit)",
    ]
    assert bad.calls == 0
    with pytest.raises(TeacherError) as error:
        audit(bad, _Exact())
    assert str(error.value).startswith("teachers[0]: centimetres taken for metres")
    assert str(error.value).endswith("or set teachers[0].audit=off")
    off = {"teacher": {"name": "average", "audit": "off", "teachers": [{"maps": "a"}]}}
    assert audit(bad, nodes=TeacherList.of(off)) == ["Teacher audit: off (teacher.audit)"]
    assert audit(nodes=TeacherList()) == []


def test_audit_of_a_target_judges_its_mean_depth(frames):
    """A teacher with a sigma is audited by its depth."""

    def teacher(batch):
        depth = _Exact()(batch)
        return Target(depth, depth / 10)

    told = _audit(frames, teacher, maps="folder")
    assert told == ["Teacher audit: 12 frames, nothing is above its limit"]
