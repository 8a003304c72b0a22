"""What all teachers over other networks share: grey levels, masks, checks, the manifest's words."""

import pytest
import torch
from support.teacher_batches import batch_of, images_of

from tiekd.errors import DataError, TeacherError
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.anchoring import Anchor
from tiekd.teachers.outputs.images import rgb_of
from tiekd.teachers.outputs.model_card import licence_in
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, RunOptions

CPU = torch.device("cpu")


class Predictor:
    """Gives the red grey levels as metres, and what a test plants in them."""

    output_kind, max_depth_m, needs_focal, without_focal = "metres", None, False, None

    def __init__(self, change=lambda output: output):
        self.change, self.images = change, []
        self.description = {
            "name": "moge",
            "model": "m",
            "architecture": "moge v2",
            "revision": "0123456789abcdef",
            "licence": None,
            "digest": "f" * 64,
        }

    def __call__(self, images, intrinsics):
        del intrinsics
        self.images.append(images)
        return self.change(Output(images[:, :1].float()))


def teacher_of(change=lambda output: output, **how) -> FoundationTeacher:
    return FoundationTeacher(Predictor(change), RunOptions(CPU, 80.0, **how))


def test_rgb_of_a_batch_is_that_of_the_files():
    """Every grey level of every channel comes back exactly."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(rgb_of(batch_of(images.contiguous(), [None]).image), images)


def test_rgb_of_augmented_colours_stays_within_grey_levels():
    """Brighter than white is white."""
    image = torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert rgb_of(image)[0, :, 0].tolist() == [[0, 255]] * 3


def test_depth_of_0_and_below_is_not_valid():
    """A network may go below 0; there is no depth."""
    images = images_of(1)
    depth = teacher_of(lambda output: Output(output.values - 100))(batch_of(images, [None]))
    levels = images[:, :1].float() - 100
    assert torch.equal(depth, levels.clamp(min=0))
    assert (levels < 0).any()


def test_masks_of_the_network():
    """What it doesn't know is 0 even where it isn't finite; beyond all depth is the range."""

    def masked(output):
        values, valid = output.values + 1, torch.ones_like(output.values, dtype=torch.bool)
        valid[..., :3] = False
        values[..., :3] = torch.inf
        beyond = torch.zeros_like(valid)
        beyond[..., -2:] = True
        return Output(values, valid, beyond)

    images = images_of(2)
    for flip in (False, True):
        depth = teacher_of(masked, flip=flip)(batch_of(images, [None] * 2))
        assert (depth[..., :3] == 0).all()
        assert (depth[..., -2:] == 80).all()
    plain = teacher_of(masked)(batch_of(images, [None] * 2))
    assert torch.equal(plain[..., 3:-2], images[:, :1, :, 3:-2].float() + 1)


def test_sky_of_an_image_with_a_poor_fit_has_no_depth():
    """An image that the anchor doesn't fit gets an empty map, also where the network sees sky."""

    def with_sky(output):
        beyond = torch.zeros_like(output.values, dtype=torch.bool)
        beyond[:, :, :9] = True
        return Output(output.values + 1, beyond=beyond)

    predictor = Predictor(with_sky)
    predictor.output_kind = "depth_scale"
    images = images_of(2)
    metric = 0.1 * (images[:, :1].float() + 1)
    metric[1] = 0
    anchor = Anchor(lambda _: metric, {}, 80.0)
    teacher = FoundationTeacher(predictor, RunOptions(CPU, 80.0), anchor)
    depth = teacher(batch_of(images, [None] * 2))
    assert [quality.fit.is_good for quality in teacher.qualities] == [True, False]
    assert (depth[0, :, :9] == 80).all()
    assert torch.allclose(depth[0, :, 9:], metric[0, :, 9:], rtol=1e-3)
    assert not depth[1].any()


def test_images_go_through_a_few_at_once():
    """The order stays, and no part is larger than asked for."""
    images = images_of(5)
    teacher = teacher_of(batch_size=2)
    depth = teacher(batch_of(images, [None] * 5))
    assert [len(part) for part in teacher.predictor.images] == [2, 2, 1]
    assert torch.equal(depth, images[:, :1].float())


@pytest.mark.parametrize("shape", [(1, 1, 64, 95), (1, 64, 96), (2, 1, 64, 96)])
def test_output_of_another_size_is_refused(shape):
    """A map that isn't on the image's grid would be silently shifted."""
    with pytest.raises(TeacherError, match=r"moge gave depth of .*; it must be \(1, 1, 64, 96\)"):
        teacher_of(lambda _: Output(torch.ones(shape)))(batch_of(images_of(1), [None]))


def test_nan_names_the_image_and_counts():
    """The first image with a pixel that isn't finite is named."""

    def spoilt(output):
        output.values[1, 0, 0, :2] = torch.nan
        return output

    with pytest.raises(TeacherError, match="its output for image_1.png is NaN or infinite at 2 of"):
        teacher_of(spoilt)(batch_of(images_of(3), [None] * 3))
    # Another precision is a remedy only for a kind that has one, and isn't at it already.
    for precision, is_told in ((None, False), ("fp32", False), ("bf16", True)):
        teacher = teacher_of(spoilt)
        if precision is not None:
            teacher.description["precision"] = precision
        with pytest.raises(TeacherError) as error:
            teacher(batch_of(images_of(3), [None] * 3))
        assert ("set teacher.precision to fp32" in str(error.value)) == is_told


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# Model\n", "mit"),
        ("---\nlicense: other\nlicense_name: apple-amlr\n---\n", "apple-amlr"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags: [depth]\n---\n", None),
        ("# Model\nlicense: mit\n", None),
        ("---\nlicense: mit\n", None),
        ("---\n: : [\n---\n", None),
        ("", None),
        (None, None),
    ],
)
def test_licence_in_a_model_card(tmp_path, card, licence):
    """The front matter's entry, and nothing that only looks like one."""
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_in(tmp_path / "README.md") == licence


def test_digest_changes_with_weights_names_and_settings(tmp_path):
    """Any of what decides the output changes the digest."""
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 3)
    seen = {digest.of_network(network), digest.of_network(network, {"max_depth": 10})}
    seen.add(digest.of_network(network, {"max_depth": 20}))
    with torch.no_grad():
        network.bias[0] += 1
    seen.add(digest.of_network(network))
    seen.add(digest.of_network(torch.nn.Sequential(network)))
    assert len(seen) == 5
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    of_files = {
        digest.of_files(*(tmp_path / name for name in names)) for names in ("a", "b", "ab", "ba")
    }
    assert len(of_files) == 4


def test_teacher_follows_the_focal_length_by_its_network_or_its_anchor():
    """Zooming keeps its depth right where the focal length counts, or truth gives the scale."""
    blind, seeing, relative = Predictor(), Predictor(), Predictor()
    seeing.without_focal = "it estimates one"
    relative.output_kind = "inverse_affine"
    how = RunOptions(CPU, 80.0)
    assert not FoundationTeacher(blind, how).follows_focal
    assert FoundationTeacher(seeing, how).follows_focal
    for teacher, follows in (
        (GroundTruth(), True),
        (FoundationTeacher(seeing, how), True),
        (FoundationTeacher(blind, how), False),
    ):
        anchor = Anchor(teacher, "an anchor", 80.0)
        assert FoundationTeacher(relative, how, anchor).follows_focal is follows


def test_focal_estimate_of_the_anchor():
    """A network without an estimate of the focal length takes that of its anchor, if there is one.

    The network's own estimate comes first.
    """
    teacher, batch = teacher_of(), batch_of(images_of(2), [None] * 2)
    assert teacher.estimate_focal(batch) is None
    metric = teacher_of()
    metric.predictor.estimate_focal = lambda images: torch.full((len(images),), 70.0)
    relative = Predictor()
    relative.output_kind = "inverse"
    anchored = FoundationTeacher(relative, RunOptions(CPU, 80.0), Anchor(metric, {}, 80.0))
    assert anchored.estimate_focal(batch).tolist() == [70.0, 70.0]
    relative.estimate_focal = lambda images: images[:, 0, 0, 0].float()
    assert torch.equal(anchored.estimate_focal(batch), images_of(2)[:, 0, 0, 0].float())
    truth = FoundationTeacher(relative, RunOptions(CPU, 80.0), Anchor(GroundTruth(), "x", 80.0))
    relative.estimate_focal = lambda _: None
    assert truth.estimate_focal(batch) is None


def test_failing_network_is_one_line():
    """A network that fails on an image is named with its error; a lack of memory stays what it is.

    Its config or image processor doesn't suit it then, which only shows on the first image.
    """

    def failing(error):
        def fail(_output):
            raise error

        return teacher_of(fail)

    batch = batch_of(images_of(1), [None])
    with pytest.raises(TeacherError) as caught:
        failing(ValueError("sizes\n64 and 63"))(batch)
    assert str(caught.value) == (
        "teacher: moge m fails on images of 64x96: ValueError: sizes 64 and 63; check its config "
        "and image processor"
    )
    for error in (torch.OutOfMemoryError("out of memory"), DataError("a file")):
        with pytest.raises(type(error), match=str(error)):
            failing(error)(batch)
