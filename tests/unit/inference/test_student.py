"""load_student.

Every form of an image gives the same metres, every checkpoint its network, and every head its
readouts.
"""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tiekd
from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.image_io import write_image
from tiekd.data.resize import Resize, network_input
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError
from tiekd.inference.student import Student, pick_device
from tiekd.models.build import build_network
from tiekd.models.readout import on_image_grid
from tiekd.workdir.weights_file import write_weights

ENCODER = {
    "name": "mobilenet_v2",
    "width": 0.25,
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "dilations": [1] * 7,
    "taps": [1, 3],
}
DECODER = {"name": "densedepth", "widths": [8, 16], "extra_ups": 1, "extra_width": 8}
RANGE = {"min_depth": 0.5, "max_depth": 80.0}
DPM = {
    "encoder": ENCODER,
    "decoder": DECODER,
    "head": {"name": "dpm", "num_bins": 33, "target": "gaussian", "sigma": 2.0},
    **RANGE,
}
SIGMOID = {"encoder": ENCODER, "decoder": DECODER, "head": {"name": "sigmoid"}, **RANGE}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = build_network(DPM).eval()
    torch.nn.init.normal_(network.head.weight, std=5.0)  # so that distributions have hills
    return network


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "best_abs_rel.pth"
    write_weights(path, network.state_dict(), DPM, 7)
    return path


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


def test_a_checkpoint_alone_gives_what_its_network_gives(network, checkpoint, picture):
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = network(look_up(pixels.contiguous(), colour_table()[None])).depth[0, 0]
    depth = tiekd.load_student(checkpoint)(picture)
    assert depth.shape == (37, 50)
    assert depth.dtype == torch.float32
    assert not depth.requires_grad
    assert torch.equal(depth, expected)


def test_every_form_of_a_picture_gives_the_same_metres(checkpoint, picture, tmp_path):
    student = tiekd.load_student(checkpoint)
    write_image(tmp_path / "p.png", picture)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    expected = student(picture)
    for image in (tmp_path / "p.png", str(tmp_path / "p.png"), Image.fromarray(picture), tensor):
        assert torch.equal(student(image), expected)
    batch = student(torch.stack([tensor, tensor.flip(-1)]))
    assert batch.shape == (2, 37, 50)
    assert torch.allclose(batch[0], expected, rtol=1e-4)
    assert not torch.allclose(batch[0], batch[1], rtol=1e-2)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.uint8),
        torch.zeros(5, 4, 3, dtype=torch.uint8),
        3,
        None,
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(checkpoint, image):
    with pytest.raises(
        DataError, match="an image must be a file, a Pillow picture, an array"
    ) as error:
        tiekd.load_student(checkpoint)(image)
    assert "got" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def seen(monkeypatch):
    """The sizes that networks see, in order."""
    sizes, read = [], Student.read

    def spying(self, pixels, *arguments):
        sizes.append(tuple(pixels.shape[2:]))
        return read(self, pixels, *arguments)

    monkeypatch.setattr(Student, "read", spying)
    return sizes


def test_size_is_what_the_network_sees_and_depth_comes_back_at_the_pictures(
    checkpoint, picture, seen
):
    assert tiekd.load_student(checkpoint, size=(20, 100))(picture).shape == (37, 50)
    assert seen == [(20, 27)]
    for size in ((20,), (0, 5), (20.5, 7), "half", 20, (20, 100_000)):
        with pytest.raises(
            RecipeError, match=r"^size: got .*; it must be \(height, width\) in pixels up to 16384"
        ):
            tiekd.load_student(checkpoint, size=size)


def test_weights_know_the_size_that_they_were_trained_at(network, picture, seen, tmp_path):
    write_weights(
        tmp_path / "w.pth", network.state_dict(), DPM, 0, resize=Resize(32, 48, "contain").node()
    )
    write_weights(tmp_path / "own.pth", network.state_dict(), DPM, 0, resize={})
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump({"network": DPM, "data": {"name": "folder", "resize": {"short_side": 24}}})
    )
    for name, options, expected in (
        ("w.pth", {}, (32, 48)),
        ("w.pth", {"recipe": recipe}, (32, 48)),
        ("w.pth", {"size": "full"}, (37, 50)),
        ("w.pth", {"size": (37, 30)}, (22, 30)),
        ("own.pth", {"recipe": recipe}, (37, 50)),
    ):
        assert tiekd.load_student(tmp_path / name, **options)(picture).shape == (37, 50)
        assert seen.pop() == expected, (name, options)


def test_weights_that_do_not_say_their_size_take_the_recipes(network, picture, seen, tmp_path):
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    for data, expected in (
        ({"name": "folder", "resize": {"short_side": 24}}, (24, 32)),
        (
            {"name": "scenes", "height": 24, "width": 32},
            (24, 32),
        ),  # 37x50 is more than 1.5 times as large
        ({"name": "scenes", "height": 36, "width": 48}, (37, 50)),
        ({"name": "folder"}, (37, 50)),
    ):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"network": DPM, "data": data}))
        assert tiekd.load_student(tmp_path / "bare.pth", tmp_path / "mine.yaml")(picture).shape == (
            37,
            50,
        )
        assert seen.pop() == expected, data
    write_weights(tmp_path / "w.pth", network.state_dict(), DPM, 0, resize={"mode": "squeeze"})
    with pytest.raises(
        RecipeError,
        match="^data.resize: got .*it must have height and width.*stretch, cover, contain",
    ):
        tiekd.load_student(tmp_path / "w.pth")


def test_the_network_never_sees_more_than_the_working_size(network, seen):
    student = Student(network, "cpu", resize=Resize(32, 48, "stretch"))
    assert student(np.zeros((1500, 2000, 3), np.uint8)).shape == (1500, 2000)
    assert seen == [(32, 48)]


@pytest.mark.parametrize(
    "resize", [Resize(), Resize(60, 90, "stretch"), Resize(40, 40, "contain"), Resize(scale=0.6)]
)
def test_sharp_readouts_have_the_depths_of_the_head_and_no_others(network, resize):
    """Readouts at every size.

    `mode` gives bin centres, and `local` what the head's cells gave.
    """
    image = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (3, 61, 47), dtype=np.uint8)
    )[None]
    centres = (network.head.edges[1:] + network.head.edges[:-1]) / 2
    for readout in ("mode", "local"):
        student = Student(network, "cpu", readout, resize)
        depth = student.predict(image).depth
        assert depth.shape == (1, 1, 61, 47)
        cells = student.read(network_input(image, resize)).depth
        assert torch.isin(depth, cells).all()
        if readout == "mode":
            assert (depth[..., None] - centres).abs().amin(-1).max() < 1e-4


def test_margins_say_where_two_bins_are_equally_likely(network, picture):
    student = Student(network, "cpu", "mode")
    image = torch.from_numpy(picture[:32, :48]).permute(2, 0, 1)[None]
    pixels = look_up(image.contiguous(), colour_table()[None])
    with torch.no_grad():
        first, second = (
            network.head.probabilities(network.features(pixels)).topk(2, dim=1).values.split(1, 1)
        )
    expected = on_image_grid(first - second, (32, 48), False)
    assert torch.allclose(student.margins(image), expected, atol=1e-5)


def test_mode_gives_bin_centres_and_local_stays_near_them(checkpoint, network, picture):
    centres = (network.head.edges[1:] + network.head.edges[:-1]) / 2
    mean, mode, local = (
        tiekd.load_student(checkpoint, readout=name)(picture) for name in ("mean", "mode", "local")
    )
    away = (mode[..., None] - centres).abs().amin(-1)
    assert away.max() < 1e-4
    assert mode.unique().numel() > 2
    width = float(network.head.edges[1] - network.head.edges[0])
    assert (local - mode).abs().max() <= 2 * width + 1e-3 < (mean - mode).abs().max()


def test_confidence_comes_with_the_same_depth(checkpoint, picture):
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    for name in ("mean", "local"):
        student = tiekd.load_student(checkpoint, readout=name)
        plain, sure = student.read(pixels), student.read(pixels, with_confidence=True)
        assert plain.confidence is None
        assert torch.equal(plain.depth, sure.depth)
        assert sure.confidence.shape == (1, 1, 37, 50)
        assert sure.confidence.min() > 0
        assert sure.confidence.max() <= 1 + 1e-5


def test_other_heads_have_the_mean_only(tmp_path, picture):
    write_weights(tmp_path / "w.pth", build_network(SIGMOID).state_dict(), SIGMOID, 0)
    student = tiekd.load_student(tmp_path / "w.pth")
    assert student(picture).shape == (37, 50)
    with pytest.raises(
        RecipeError,
        match=r"readout: got 'local', but this network's head \(Sigmoid\).*allowed: mean",
    ):
        tiekd.load_student(tmp_path / "w.pth", readout="local")
    with pytest.raises(RecipeError, match="confidence: asked for, but this network's head"):
        student.read(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), with_confidence=True)
    with pytest.raises(RecipeError, match="got 'median'; allowed: mean, mode, local"):
        tiekd.load_student(tmp_path / "w.pth", readout="median")


def test_weights_that_do_not_say_their_network_need_a_recipe(network, tmp_path, picture):
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="doesn't say its network; give the recipe"):
        tiekd.load_student(tmp_path / "bare.pth")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"network": DPM}))
    assert tiekd.load_student(tmp_path / "bare.pth", tmp_path / "mine.yaml")(picture).shape == (
        37,
        50,
    )
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"network": SIGMOID}))
    with pytest.raises(CheckpointError, match="bare.pth: .* tensors don't fit"):
        tiekd.load_student(tmp_path / "bare.pth", tmp_path / "other.yaml")


def test_a_checkpoint_alone_chooses_no_module_to_import(network, tmp_path, picture, monkeypatch):
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger/encoder.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\n"
        "from tiekd.models.encoders.mobilenet_v2 import build  # noqa\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    node = {**DPM, "encoder": {**ENCODER, "name": "stranger.encoder"}}
    write_weights(tmp_path / "w.pth", network.state_dict(), node, 0)
    with pytest.raises(
        CheckpointError, match=r"w\.pth: .*'stranger\.encoder'.*give the recipe.*recipe="
    ):
        tiekd.load_student(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"network": node}))
    assert tiekd.load_student(tmp_path / "w.pth", tmp_path / "mine.yaml")(picture).shape == (37, 50)
    assert (tmp_path / "ran").exists()


def test_a_work_dir_is_taken_for_its_best_weights(checkpoint, tmp_path):
    loaded = tiekd.load_student(checkpoint.parent).network.state_dict()
    assert all(
        torch.equal(loaded[name], w)
        for name, w in tiekd.load_student(checkpoint).network.state_dict().items()
    )
    with pytest.raises(CheckpointError, match="there are no weights in"):
        tiekd.load_student(tmp_path)


def test_a_device_that_is_not_there_is_refused():
    assert pick_device("cpu").type == "cpu"
    for name in ("cpuu", "meta7"):
        with pytest.raises(
            LaunchError, match=f"--device {name}: there is no such device.*allowed: cpu, cuda"
        ):
            pick_device(name)
