"""A network with a canonical camera: its settings, its range, and metres by the focal length."""

import pytest
import torch
from support import canonical_student as known
from support.recipes import STUDENT

from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import CheckpointError, DataError, RecipeError
from tiekd.inference.student import Student
from tiekd.models import canonical
from tiekd.models.build import build_network
from tiekd.models.canonical import Canonical
from tiekd.models.flip import predict

HEAD = STUDENT["head"] | {"sigma": 4.0}
NODE = STUDENT | {"head": HEAD, "canonical_focal": 100.0, "canonical_factors": [0.5, 2.0]}


def test_canonical_depth_and_back():
    """Depth * F / f is what is learned, and its inverse what comes out; 0 stays 0."""
    camera = Canonical(100.0, 0.5, 2.0)
    depth = torch.tensor([10.0, 0.0]).view(2, 1, 1, 1)
    focal = torch.tensor([200.0, 50.0])
    learned = camera.from_metres(depth, focal)
    assert learned.flatten().tolist() == [5.0, 0.0]
    assert camera.to_metres(learned, focal).flatten().tolist() == [10.0, 0.0]


@pytest.mark.parametrize(
    "resize",
    [
        OWN_SIZE,
        Resize(scale=0.5),
        Resize(short_side=96),
        Resize(height=60, width=80, mode="contain"),
        Resize(height=24, width=80, mode="cover"),
        Resize(height=24, width=82, mode="stretch"),
    ],
    ids=str,
)
def test_same_scene_at_two_focal_lengths_gives_the_same_metres(resize):
    """A scene has the same depth, whatever camera took it and whatever size the network saw."""
    student = Student(known.network(), "cpu", resize=resize)
    for focal in (80.0, 160.0, 240.0):
        depth = student(known.image(focal, 8.0), focal=focal)
        # A stretched image has one focal length for two directions, which this board has not.
        rel = 0.02 if resize.mode == "stretch" else 2e-3
        assert depth.median().item() == pytest.approx(8.0, rel=rel)


def test_batch_of_different_cameras():
    """A batch takes one focal length an image."""
    student = Student(known.network(), "cpu", resize=Resize(scale=0.5))
    images = torch.stack([known.image(80.0, 8.0), known.image(240.0, 8.0)])
    depth = student(images, focal=[80.0, 240.0])
    assert depth[:, 0, 0].tolist() == pytest.approx([8.0, 8.0], rel=1e-3)
    # A wrong focal length gives proportionally wrong metres.
    assert student(images[0], focal=160.0)[0, 0].item() == pytest.approx(16.0, rel=1e-3)


def test_flip_average_uses_the_focal_length():
    """The mirrored image has the focal length of the image."""
    image = known.image(160.0, 8.0)[None].float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    image = (image - mean[:, None, None]) / std[:, None, None]
    depth = predict(known.network(), image, True, torch.tensor([160.0]))
    assert depth.mean().item() == pytest.approx(8.0, rel=1e-4)


def test_output_is_clamped_in_metres():
    """max_depth stays metres at the output, whatever the focal length."""
    student = Student(known.network(), "cpu")
    assert student(known.image(80.0, 8.0), focal=8000.0).max().item() == known.MAX_M
    assert student(known.image(80.0, 8.0), focal=0.8).min().item() == known.MIN_M


def test_head_has_the_canonical_range():
    """The head's range is that of the network times the smallest and largest F / f."""
    network = build_network(NODE)
    assert network.head.edges[0].item() == pytest.approx(0.0005)
    assert network.head.edges[-1].item() == pytest.approx(160.0)
    assert (network.min_depth, network.max_depth) == (0.001, 80.0)
    plain = build_network(STUDENT)
    assert plain.canonical is None
    assert plain.head.edges[-1].item() == 80.0


def test_network_in_training_gives_canonical_depth():
    """In training no focal length is needed; in eval mode its absence is one line."""
    network = build_network(NODE)
    image = torch.randn(2, 3, 32, 64)
    network.train()(image)
    with pytest.raises(RecipeError, match="needs the focal length of each image"):
        network.eval()(image)


@pytest.mark.parametrize(
    ("focal", "line"),
    [
        (None, "focal: this network was trained with network.canonical_focal and needs"),
        (0, "focal: got 0; it must be a number of pixels above 0"),
        (float("nan"), "focal: got nan"),
        ("70", "focal: got '70'"),
        (True, "focal: got True"),
        ([70.0, 80.0], r"focal: got \[70.0, 80.0\]"),
    ],
)
def test_student_wrong_focal_is_one_line(focal, line):
    """A missing or wrong focal length is refused in one line."""
    with pytest.raises(RecipeError, match=line) as error:
        Student(known.network(), "cpu")(known.image(80.0, 8.0), focal=focal)
    assert "\n" not in str(error.value)


def test_student_without_canonical_camera_refuses_a_focal():
    """A network that doesn't know the focal length refuses one."""
    student = Student(build_network(STUDENT), "cpu")
    with pytest.raises(RecipeError, match="focal: got 70.0, but this network was trained without"):
        student(torch.zeros(3, 32, 64, dtype=torch.uint8), focal=70.0)


def test_student_refuses_a_stretched_aspect():
    """An image that stretch would distort by more than 5 % is refused."""
    student = Student(known.network(), "cpu", resize=Resize(height=48, width=80, mode="stretch"))
    with pytest.raises(DataError, match="changes the aspect ratio of an image of 48x160"):
        student(known.image(80.0, 8.0), focal=80.0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"canonical_focal": 0}, "network.canonical_focal: got 0; it must be a focal length"),
        ({"canonical_focal": "500"}, "network.canonical_focal: got '500'"),
        ({"canonical_factors": [2.0, 0.5]}, "network.canonical_factors: got .*smallest, largest"),
        ({"canonical_factors": 2.0}, "network.canonical_factors: got 2.0"),
        ({"canonical_factors": None}, "network.canonical_factors: not known; training computes"),
        ({"canonical_focal": None}, "network.canonical_factors: got .* without canonical_focal"),
    ],
)
def test_wrong_setting_is_one_line(change, line):
    """A wrong focal length or range is refused in one line."""
    with pytest.raises(RecipeError, match=line) as error:
        build_network(NODE | change)
    assert "\n" not in str(error.value)


def test_factors_come_from_the_weights():
    """A recipe without factors takes those of its weights; another focal length is refused."""
    recipe = STUDENT | {"head": HEAD, "canonical_focal": 100.0}
    assert canonical.with_stored_factors(recipe, {"network": NODE}, "w.pth") == NODE
    assert canonical.with_stored_factors(STUDENT, {"network": STUDENT}, "w.pth") == STUDENT
    assert canonical.with_stored_factors(recipe, {"state_dict": {}}, "w.pth") == recipe
    for node, state in ((STUDENT, NODE), (recipe | {"canonical_focal": 90.0}, NODE)):
        with pytest.raises(CheckpointError, match="w.pth: trained with canonical_focal 100.0"):
            canonical.with_stored_factors(node, {"network": state}, "w.pth")
    with pytest.raises(CheckpointError, match="w.pth: trained with canonical_focal none"):
        canonical.with_stored_factors(recipe, {"network": STUDENT}, "w.pth")
