"""Each image of a mixed batch is taught by the teacher of its data set."""

import pytest
import torch

from tiekd.data.batch import Batch
from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.per_set import PerSet, SetTeacher

SETS = (1, 0, 1, 2)


def batch(maps: int = 2) -> Batch:
    """Four images of three sets; image i has the value i, and maps of 10 * i + plane metres."""
    image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    depth = image[:, :1] + 100
    planes = 10 * image[:, :1] + torch.arange(1.0, 1 + maps).view(1, maps, 1, 1)
    return Batch(
        image, depth, depth > 0, planes, torch.eye(3).expand(4, 3, 3), list("abcd"),
        data_sets=SETS, teacher_sigma=planes / 10,
    )  # fmt: skip


class Plain:
    """Returns 1 + the image's value, and notes the names of each call's images."""

    def __init__(self):
        self.calls = []

    def __call__(self, part):
        self.calls.append(part.names)
        return 1 + part.image[:, :1]


def values(maps: torch.Tensor) -> list:
    return maps[:, :, 0, 0].tolist()


def test_each_teacher_is_called_once_for_its_images():
    """A set's teacher sees the images of its set; an image of a set without one has depth 0."""
    one, other = Plain(), Plain()
    teacher = PerSet([SetTeacher("a", None), SetTeacher("b", one), SetTeacher("c", other)])
    found = teacher(batch())
    assert values(found) == [[1], [0], [3], [4]]
    assert (one.calls, other.calls) == ([["a", "c"]], [["d"]])


def test_sets_that_share_a_teacher_share_its_call():
    """One network is called once for the images of all sets that learn from it."""
    one = Plain()
    teacher = PerSet([SetTeacher("a", one), SetTeacher("b", one), SetTeacher("c", one)])
    assert values(teacher(batch())) == [[1], [2], [3], [4]]
    assert one.calls == [["a", "b", "c", "d"]]


def test_cached_maps_are_those_of_the_set():
    """Sets with one map and with two take the first planes; a set without maps gets none."""
    seen = []

    def without(part):
        seen.append((part.teacher_depth, part.teacher_sigma))
        return part.depth

    teacher = PerSet(
        [
            SetTeacher("a", without),
            SetTeacher("b", CachedMaps(1), num_maps=2),
            SetTeacher("c", CachedMaps(0), num_maps=1),
        ]
    )
    assert values(teacher(batch())) == [[2], [101], [22], [31]]
    assert seen == [(None, None)]


def test_sigmas_and_components_are_put_together():
    """Where one set has a sigma or two depths and another none, the missing are 0."""
    two = Target(torch.full((1, 2, 2, 2), 5.0), weight=torch.tensor([3.0, 1.0]))
    teacher = PerSet(
        [
            SetTeacher("a", lambda _: two),
            SetTeacher("b", CachedMaps(0), num_maps=1, has_sigma_maps=True),
            SetTeacher("c", None),
        ]
    )
    found = teacher(batch())
    assert values(found.depth) == [[1, 0], [5, 5], [21, 0], [0, 0]]
    wanted = torch.tensor([[0.1, 0], [0, 0], [2.1, 0], [0, 0]])
    assert torch.allclose(found.sigma[:, :, 0, 0], wanted)
    assert values(found.weight) == [[1, 0], [3, 1], [1, 0], [0, 0]]
    assert values(found.mean_depth()) == [[1], [5], [21], [0]]


def test_equal_constants_stay_constants():
    """Sets with the same constant sigma keep it as a number, which is much faster than maps."""
    teacher = PerSet(
        [
            SetTeacher("a", None),
            SetTeacher("b", CachedMaps(0, 2.5), num_maps=1),
            SetTeacher("c", CachedMaps(0, 2.5), num_maps=1),
        ]
    )
    found = teacher(batch())
    assert (found.sigma, found.constants) == (None, (2.5,))
    assert values(found.depth) == [[1], [0], [21], [31]]
    other = PerSet([*teacher.sets[:2], SetTeacher("c", CachedMaps(0, 1.5), num_maps=1)])(batch())
    assert values(other.sigma) == [[2.5], [0], [2.5], [1.5]]


def test_batch_without_a_taught_image_has_no_depth():
    """If no image of a batch has a teacher, its depth is 0 everywhere."""
    assert values(PerSet([SetTeacher(name, None) for name in "abc"])(batch())) == [[0]] * 4


def test_error_of_a_teacher_names_its_set():
    """What a set's teacher refuses is told with the set's name."""

    def refuses(_):
        raise TeacherError("teacher.model: no depth")

    sets = [SetTeacher("a", None), SetTeacher("b", refuses), SetTeacher("c", None)]
    with pytest.raises(TeacherError, match="^data.b: teacher.model: no depth"):
        PerSet(sets)(batch())
