"""The mean of several teachers: by their weights, and by how precise each is in a pixel."""

import pytest
import torch

from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.teachers.average import Average
from tiekd.teachers.mixture import Member, Mixture, members_of

NEAR = torch.tensor([2.0, 4.0, 0.0, 0.0]).view(1, 1, 1, 4)
FAR = torch.tensor([6.0, 0.0, 8.0, 0.0]).view(1, 1, 1, 4)


def average(weights: str, *members: tuple) -> Average:
    made = [
        Member(lambda batch, d=d: d, f"teacher.teachers[{i}]", weight, sigma)
        for i, (d, weight, sigma) in enumerate(members)
    ]
    return Average(Mixture(made, torch.device("cpu")), weights)


def values(found: torch.Tensor) -> list[float]:
    assert found.shape == (1, 1, 1, 4)
    return found.flatten().tolist()


def test_mean_is_over_the_valid_teachers():
    """By given weights each valid teacher counts by its weight, whatever its sigma."""
    assert values(average("given", (NEAR, 1.0, 9.0), (FAR, 3.0, 0.1))(None)) == [5.0, 4.0, 8.0, 0.0]
    assert values(average("given", (NEAR, 1.0, None), (FAR, 1.0, None))(None))[0] == 4.0


def test_precision_weights_by_one_over_sigma_squared():
    """A teacher of half the sigma counts four times, and the given weights count, too."""
    found = average("precision", (NEAR, 1.0, 1.0), (FAR, 1.0, 2.0))(None)
    assert values(found) == pytest.approx([2.8, 4.0, 8.0, 0.0])
    found = average("precision", (NEAR, 1.0, 1.0), (FAR, 4.0, 2.0))(None)
    assert values(found)[0] == pytest.approx(4.0)


def test_precision_of_a_pixel_without_sigma():
    """A teacher whose sigma is unknown in a pixel counts there only if no other's is known."""
    unknown = Target(NEAR, torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4))
    assert values(average("precision", (unknown, 1.0, None), (FAR, 1.0, 2.0))(None)) == [6, 4, 8, 0]


def test_precision_needs_a_sigma_of_each_teacher():
    """A teacher without any sigma is named in one line."""
    made = average("precision", (NEAR, 1.0, 1.0), (FAR, 1.0, None))
    with pytest.raises(TeacherError, match=r"^teacher.teachers\[1\]: gives no sigma, by which"):
        made(None)


def test_average_tells_its_teachers_and_their_depths():
    """The single teachers stay known, and their depths, of which the spread is a sigma."""
    made = average("given", (NEAR, 1.0, None), (FAR, 2.0, None))
    assert [member.where for member in members_of(made)] == [
        "teacher.teachers[0]",
        "teacher.teachers[1]",
    ]
    assert torch.equal(made.components(None).depth, torch.cat((NEAR, FAR), 1))
    assert not made.needs_focal
    assert average("given", (NEAR, 1.0, None), (None, 1.0, None))(None) is None


def test_sigma_between_teachers():
    """Sigma is the standard deviation between the valid teachers, and 0 where no depth is."""
    members = [Member(lambda batch, d=d: d) for d in (NEAR, FAR)]
    mixture = Mixture(members, torch.device("cpu"))
    found = Average(mixture, sigma={"from": "between", "factor": 2})(None)
    assert values(found.depth) == [4.0, 4.0, 8.0, 0.0]
    # Both are valid in the first pixel alone, which is in the windows of the first two.
    assert values(found.sigma) == pytest.approx([2 * 4 / 2**0.5] * 2 + [0.0, 0.0])
    assert Average(mixture, sigma=0.3)(None).constants == (0.3,)


def test_mean_refuses_other_sources():
    """The mean has no mirror image and no distribution of its own."""
    with pytest.raises(TeacherError, match="teacher.sigma.from: got flip, .*: between, or a"):
        Average(Mixture([Member(lambda _: NEAR)], torch.device("cpu")), sigma={"from": "flip"})
