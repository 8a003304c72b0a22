"""Teachers with a sigma per pixel: what they return, its cost in forwards, and what is refused."""

import pytest
import torch
from support.teacher_batches import batch_of, images_of

from tiekd.data import sigma_calibration
from tiekd.data.batch import Batch
from tiekd.data.sigma_calibration import Calibration
from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.models.build import build_network
from tiekd.models.network import Prediction
from tiekd.models.spread import Spread
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.anchoring import Anchor
from tiekd.teachers.outputs.sigma import disagreement, options_of
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, RunOptions
from tiekd.teaching import build_teacher

CPU = torch.device("cpu")
NODE = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8]},
    "head": {"name": "dpm", "num_bins": 80, "sigma": 0.5},
    "min_depth": 0.5,
    "max_depth": 40.5,
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build_network(NODE)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    return network.eval()


def batch() -> Batch:
    torch.manual_seed(1)
    inside = torch.ones(2, 1, 64, 96, dtype=torch.bool)
    inside[0, :, :5], inside[1, :, :, 90:] = False, False
    matrix = torch.tensor([[50.0, 0, 47.5], [0, 50, 31.5], [0, 0, 1]]).expand(2, 3, 3)
    image = torch.randn(2, 3, 64, 96)
    return Batch(image, torch.zeros(2, 1, 64, 96), inside, None, matrix, ["a", "b"])


def teacher_of(network, sigma, **keys) -> FrozenTeacher:
    return FrozenTeacher(network, CPU, sigma=sigma, **keys)


def depth_of(network, image):
    with torch.no_grad():
        return network(image).depth


def test_constant_sigma(network):
    """A constant sigma is returned as a number, and the depth is unchanged, also with flip."""
    data = batch()
    for flip in (False, True):
        found = teacher_of(network, 0.7, flip=flip)(data)
        assert isinstance(found, Target)
        assert torch.equal(found.depth, FrozenTeacher(network, CPU, flip=flip)(data))
        assert found[1:] == (None, None, (0.7,))


def test_constant_sigma_of_cached_maps():
    """Cached maps may have a constant sigma, but none from a source that needs the teacher."""
    data = batch()
    depth = data.depth + 3
    teacher = build_teacher({"maps": "folder", "sigma": 0.7}, CPU)
    found = teacher(data._replace(teacher_depth=depth))
    assert torch.equal(found.depth, depth)
    assert found.constants == (0.7,)
    with pytest.raises(TeacherError, match="teacher.sigma: cached maps stay as they were made"):
        build_teacher({"maps": "folder", "sigma": {"from": "flip"}}, CPU)
    with pytest.raises(TeacherError, match="teacher.sigma: got 0; metres above 0"):
        build_teacher({"maps": "folder", "sigma": 0}, CPU)


def test_flip_sigma_shares_the_forwards(network):
    """The disagreement comes from the two forwards of flip averaging, without a third one."""
    data, calls = batch(), []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    found = teacher_of(network, {"from": "flip", "factor": 2.0}, flip=True)(data)
    handle.remove()
    assert len(calls) == 2
    assert torch.equal(found.depth, FrozenTeacher(network, CPU, flip=True)(data))
    plain = depth_of(network, data.image)
    mirrored = depth_of(network, data.image.flip(-1)).flip(-1)
    pair = torch.where(data.inside, torch.cat((plain, mirrored), 1), 0)
    assert torch.allclose(found.sigma, torch.where(data.inside, 2 * disagreement(pair), 0))
    assert found.sigma.max() > 0.1


def test_flip_sigma_of_symmetric_network_is_zero():
    """A network that sees no left and right has no disagreement: 0, i.e. the head's own sigma."""

    class Symmetric(torch.nn.Module):
        canonical = head = None

        def forward(self, image):
            return Prediction(1 + image.mean(1, keepdim=True).square())

    symmetric = Symmetric()
    found = teacher_of(symmetric, {"from": "flip"}, flip=True)(batch())
    assert (found.depth > 0).any()
    assert found.sigma.abs().max() == 0


def test_own_sigma_is_the_heads(network):
    """The sigma is that of the head's distribution; the depth stays that of the network."""
    data = batch()
    found = teacher_of(network, {"from": "own"})(data)
    assert torch.equal(found.depth, FrozenTeacher(network, CPU)(data))
    with torch.no_grad():
        expected = Spread(network.head)(network.features(data.image), (64, 96)).sigma
    assert torch.allclose(found.sigma, torch.where(data.inside, expected, 0))
    assert found.sigma.max() > 1


def test_own_sigma_with_flip_averages_variances(network):
    """With flip, depth is that of flip averaging, and sigma^2 is the mean of both images'."""
    data = batch()
    data = data._replace(inside=torch.ones_like(data.inside))
    one = teacher_of(network, {"from": "own"})
    plain = one(data).sigma
    mirrored = one(data._replace(image=data.image.flip(-1))).sigma.flip(-1)
    found = teacher_of(network, {"from": "own"}, flip=True)(data)
    assert torch.allclose(found.depth, FrozenTeacher(network, CPU, flip=True)(data), rtol=1e-5)
    assert torch.allclose(found.sigma, ((plain**2 + mirrored**2) / 2).sqrt(), atol=1e-4)


def test_own_modes_are_components(network):
    """With modes, depth, sigma and weight have a component per mode, 0 where there is none."""
    found = teacher_of(network, {"from": "own", "modes": 3})(batch())
    assert found.depth.shape == found.sigma.shape == found.weight.shape == (2, 3, 64, 96)
    has = found.depth > 0
    assert (found.weight[has] > 0).all()
    assert has[:, 0].sum() > has[:, 1].sum() > 0
    assert (found.weight[:, 0] >= found.weight[:, 1]).all()
    assert (found.depth[has] >= 0.5).all()


def test_own_sigma_of_canonical_camera():
    """Sigma becomes metres as depth does, by the focal length."""
    torch.manual_seed(0)
    canonical = build_network(
        NODE
        | {"canonical_focal": 100.0, "canonical_factors": [0.5, 2.0]}
        | {"head": {"name": "dpm", "num_bins": 160, "sigma": 0.5}}
    ).eval()
    torch.nn.init.normal_(canonical.head.weight, std=0.5)
    data = batch()
    near = teacher_of(canonical, {"from": "own"})(data).sigma
    intrinsics = data.intrinsics.clone()
    intrinsics[:, :2] *= 2
    far = teacher_of(canonical, {"from": "own"})(data._replace(intrinsics=intrinsics)).sigma
    assert torch.allclose(far, 2 * near, rtol=1e-4)


def test_frozen_teacher_refuses_sources(network):
    """Sources that the teacher doesn't have are refused with those that it has."""
    plain = build_network(NODE | {"head": {"name": "sigmoid"}})
    for one, node, keys, told in [
        (plain, {"from": "own"}, {}, "it gives no distribution over depth bins; allowed for this"),
        (plain, {"from": "between"}, {}, "got between, which several teachers have"),
        (network, {"from": "flip"}, {}, "flip needs teacher.flip=true"),
        (network, {"from": "own", "modes": 2}, {"flip": True}, "set teacher.flip=false"),
        (network, {"from": "own", "modes": 81}, {}, "got 81, but the teacher's head has 80 depth"),
    ]:
        with pytest.raises(TeacherError, match=told):
            teacher_of(one, node, **keys)


def test_calibration_of_other_weights_is_refused(network, tmp_path):
    """A calibration belongs to weights: others are refused by digest."""
    interval = (0.4, 0.3, 0.5)
    own = digest.of_network(network)
    path = tmp_path / "sigma.json"
    for teacher in (own, "0" * 64):
        good = Calibration(
            "own", teacher, False, 9, True, interval, interval, interval, ((5.0, 2.0),)
        )
        path.write_bytes(sigma_calibration.to_json({"own": good}))
        node = {"from": "own", "calibration": str(path)}
        if teacher == own:
            data = batch()
            raw = teacher_of(network, {"from": "own"})(data).sigma
            assert torch.allclose(teacher_of(network, node)(data).sigma, 2 * raw)
        else:
            with pytest.raises(TeacherError, match="it is of another teacher"):
                teacher_of(network, node)


class Predictor:
    """Gives the red grey levels, with an asymmetric error if asked, in its kind's unit."""

    max_depth_m, needs_focal, without_focal = None, False, None

    def __init__(self, output_kind: str = "metres", slope: float = 0.0):
        self.output_kind, self.slope = output_kind, slope
        self.description = {"name": "moge", "model": "m", "licence": None, "digest": "f" * 64}

    def __call__(self, images, intrinsics):
        focal = (intrinsics[:, 0, 0] + intrinsics[:, 1, 1]) / 2
        ramp = self.slope * torch.linspace(-1, 1, images.shape[-1])
        sky = torch.zeros(images[:, :1].shape, dtype=torch.bool)
        sky[..., :4, :] = True
        return Output(50 + images[:, :1].float() + ramp, beyond=sky, focal=focal)


def foundation(sigma, output_kind="metres", slope=0.0, **keys) -> FoundationTeacher:
    how = RunOptions(CPU, 80.0, sigma=options_of(sigma), **keys)
    return FoundationTeacher(Predictor(output_kind, slope), how)


def test_foundation_flip_sigma():
    """An error that rises from left to right disagrees with its mirror image by twice as much."""
    found = foundation({"from": "flip"}, slope=6.0, flip=True)(batch_of(images_of(3), [300.0] * 3))
    assert found.sigma.shape == (3, 1, 64, 96)
    # In the first column the values differ by 12 m; the window of 3 pixels averages a little.
    assert found.sigma[0, 0, 40, 0].item() == pytest.approx(12 / 2**0.5, rel=0.03)
    assert found.sigma[0, 0, 40, 48].item() < 0.3
    assert (found.sigma[:, :, :4] == 0).all(), "the sky"


def test_foundation_sigma_of_canonical_output():
    """Canonical depth and its sigma become metres by the same factor."""
    batches = [batch_of(images_of(1), [focal]) for focal in (300.0, 150.0)]
    teacher = foundation({"from": "flip"}, "canonical", 6.0, flip=True)
    whole, half = (teacher(each).sigma for each in batches)
    assert torch.allclose(half, whole / 2)


def test_foundation_constant_sigma():
    """A constant sigma is returned as a number."""
    found = foundation(0.5)(batch_of(images_of(1), [None]))
    assert (found.sigma, found.constants) == (None, (0.5,))


def test_foundation_refuses_sources():
    """Own distributions and modes are refused, and any source of a relative output."""
    with pytest.raises(TeacherError, match="allowed for this teacher: flip, or a number"):
        foundation({"from": "own"})
    anchor = Anchor(GroundTruth(), "ground_truth", 80.0)
    how = RunOptions(CPU, 80.0, flip=True, sigma=options_of({"from": "flip"}))
    with pytest.raises(TeacherError, match="allowed for this teacher: none, or a number"):
        FoundationTeacher(Predictor("inverse"), how, anchor)
