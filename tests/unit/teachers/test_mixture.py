"""A mixture of several teachers: its components, weights and sigmas, and who is named in errors."""

import pytest
import torch

from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.kernels import reference
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.teachers.mixture import Member, Mixture, members_of

CPU = torch.device("cpu")
SIZE = (5, 6)


def near() -> torch.Tensor:
    """A teacher that sees the left columns, up to 9 m."""
    depth = torch.linspace(1, 9, 30).view(1, 1, *SIZE).clone()
    depth[..., 4:] = 0
    return depth


def far() -> torch.Tensor:
    """A teacher that doesn't see the top row."""
    depth = torch.linspace(12, 3, 30).view(1, 1, *SIZE).clone()
    depth[:, :, 0] = 0
    return depth


def mixture(*members: tuple) -> Mixture:
    made = [
        Member(lambda batch, d=d: d, f"teachers[{i}]", w, s) for i, (d, w, s) in enumerate(members)
    ]
    return Mixture(made, CPU)


def test_mixture_learns_each_teacher_by_its_weight_and_sigma():
    """Two teachers' mixture has the reference kernel's divergence and gradient."""
    target = mixture((near(), 1.0, 0.8), (far(), 3.0, 2.0))(None)
    torch.manual_seed(0)
    head = Dpm(4, 0.5, 20.0, 1, DpmOptions(num_bins=25, sigma=0.5))
    torch.nn.init.normal_(head.weight)
    features = torch.randn(1, 4, *SIZE)
    found = head(features, SIZE, target).divergence
    found.sum().backward()
    gradient, head.weight.grad = head.weight.grad, None
    depth = torch.cat((near(), far()), 1)
    sigma = torch.tensor([0.8, 2.0]).view(1, 2, 1, 1).expand_as(depth)
    weight = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand_as(depth)
    _, wanted = reference.dpm(
        features, head.weight, head.bias, head.edges, depth, sigma, target_weight=weight
    )
    wanted.sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, head.weight.grad, rtol=1e-3, atol=1e-3)
    # Nobody sees the top right, and each other pixel is learned from who sees it.
    assert (found[0, 0, 0, 4:] == 0).all()
    assert (found[0, 0, 0, :4] > 0).all()
    assert (found[0, 0, 1:, 4:] > 0).all()
    assert target.mean_depth()[0, 0, 2, 0].item() == pytest.approx(
        (near()[0, 0, 2, 0].item() + 3 * far()[0, 0, 2, 0].item()) / 4
    )


def test_equal_weights_without_sigma_are_left_out():
    """Nothing is multiplied for equal weights, and the head's own sigma is left."""
    target = mixture((near(), 2.0, None), (far(), 2.0, None))(None)
    assert target.weight is None
    assert target.sigma is None
    assert mixture((near(), 1.0, None), (far(), 2.0, None))(None).weight.tolist() == [1.0, 2.0]


def test_sigma_of_a_teacher_is_kept_and_a_constant_replaces_it():
    """A teacher's own sigma is used, unknown is 0, and the recipe's constant wins."""
    own = Target(near(), near() / 10)
    target = mixture((own, 1.0, None), (far(), 1.0, None), (own, 1.0, 0.7))(None)
    assert target.constants is None
    assert torch.equal(target.sigma[:, :1], near() / 10)
    assert (target.sigma[:, 1] == 0).all()
    assert (target.sigma[:, 2] == 0.7).all()


def test_constants_alone_need_no_maps():
    """Where no teacher has maps of sigma, the constants stay numbers; 0 is the head's own."""
    own = Target(near(), near() / 10)
    both = Target(torch.cat((near(), far()), 1))
    target = mixture((own, 1.0, 0.7), (both, 1.0, 2.0), (far(), 1.0, None))(None)
    assert target.sigma is None
    assert target.constants == (0.7, 2.0, 2.0, 0.0)
    maps = target.scaled(torch.full((1, 1, 1, 1), 2.0))
    assert maps.constants is None
    assert maps.sigma[0, :, 0, 0].tolist() == pytest.approx([1.4, 4.0, 4.0, 0.0])


def test_a_teacher_of_several_depths_shares_its_weight():
    """The components of a teacher that is a mixture itself share the weight of that teacher."""
    both = Target(torch.cat((near(), far()), 1), None, torch.tensor([1.0, 3.0]))
    target = mixture((both, 2.0, None), (far(), 1.0, None))(None)
    assert target.depth.shape[1] == 3
    at = (0, slice(None), 2, 0)
    torch.testing.assert_close(target.weight[at], torch.tensor([0.5, 1.5, 1.0]))
    torch.testing.assert_close(target.weight[0, :, 0, 0], torch.tensor([2.0, 0.0, 0.0]))


def test_without_a_map_for_the_batch_there_is_no_target():
    """Cached maps have none for validation frames."""
    assert mixture((near(), 1.0, None), (None, 1.0, None))(None) is None


def test_error_of_a_teacher_names_its_place():
    """The message of a teacher's own error begins with its place among the teachers."""

    def broken(_batch):
        raise TeacherError("teacher: gives nan")

    made = Mixture([Member(lambda batch: near()), Member(broken, "teachers[1]")], CPU)
    with pytest.raises(TeacherError, match=r"^teachers\[1\]: gives nan$"):
        made(None)


def test_members_and_focal_of_several():
    """A single teacher is its own member; several need focal lengths if one of them does."""
    teacher = object()
    assert members_of(teacher) == (Member(teacher),)
    made = mixture((near(), 1.0, None), (far(), 1.0, None))
    assert members_of(made) == made.members
    assert not made.needs_focal
    made.members[1].teacher.needs_focal = True
    assert made.needs_focal
