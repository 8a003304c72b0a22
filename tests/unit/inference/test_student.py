"""load_student.

Every form of an image gives the same metres, every checkpoint its network, and every head its
readouts.
"""

import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.recipes import ENCODER

import tiekd
from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.image_io import write_image
from tiekd.data.resize import Resize, network_input
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError
from tiekd.inference.student import Student, pick_device
from tiekd.kernels.target import bin_centres
from tiekd.models.build import build_network
from tiekd.models.confidence import Calibration
from tiekd.models.readout import read_out, resize_to_image
from tiekd.workdir.weights_file import write_weights

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
def photo():
    return np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


def test_load_student_checkpoint_equals_network(network, checkpoint, photo):
    """A student loaded from a weights file alone returns exactly its network's depth."""
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = network(look_up(pixels.contiguous(), colour_table()[None])).depth[0, 0]
    depth = tiekd.load_student(checkpoint)(photo)
    assert depth.shape == (37, 50)
    assert depth.dtype == torch.float32
    assert not depth.requires_grad
    assert torch.equal(depth, expected)


def test_student_image_forms_give_equal_depth(checkpoint, photo, tmp_path):
    """Path, string, Pillow image, array, tensor and batch inputs give the same depth."""
    student = tiekd.load_student(checkpoint)
    write_image(tmp_path / "p.png", photo)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    expected = student(photo)
    for image in (tmp_path / "p.png", str(tmp_path / "p.png"), Image.fromarray(photo), tensor):
        assert torch.equal(student(image), expected)
    batch = student(torch.stack([tensor, tensor.flip(-1)]))
    assert batch.shape == (2, 37, 50)
    assert torch.allclose(batch[0], expected, rtol=1e-4)
    assert not torch.allclose(batch[0], batch[1], rtol=1e-2)


def test_student_takes_read_only_array_without_warning(checkpoint, photo):
    """An array that can't be written to, as numpy makes of a Pillow image, gives no warning."""
    student = tiekd.load_student(checkpoint)
    locked = np.asarray(Image.fromarray(photo))
    assert not locked.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(student(locked), student(photo))


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
def test_student_rejects_invalid_image(checkpoint, image):
    """An input that is not an image raises a one-line DataError stating what was got."""
    with pytest.raises(
        DataError, match="an image must be a file, a Pillow image, an array"
    ) as error:
        tiekd.load_student(checkpoint)(image)
    assert "got" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def seen(monkeypatch):
    """The sizes that networks see, in order."""
    sizes, original = [], Student.predict_resized

    def spying(self, pixels, *arguments, **options):
        sizes.append(tuple(pixels.shape[2:]))
        return original(self, pixels, *arguments, **options)

    monkeypatch.setattr(Student, "predict_resized", spying)
    return sizes


def test_load_student_size_sets_network_input(checkpoint, photo, seen):
    """The size sets the network's input, depth keeps the image's, and bad sizes are rejected."""
    assert tiekd.load_student(checkpoint, size=(20, 100))(photo).shape == (37, 50)
    assert seen == [(20, 27)]
    for size in ((20,), (0, 5), (20.5, 7), "half", 20, (20, 100_000)):
        with pytest.raises(
            RecipeError, match=r"^size: got .*; it must be \(height, width\) in pixels up to 16384"
        ):
            tiekd.load_student(checkpoint, size=size)


def test_load_student_uses_resize_of_weights(network, photo, seen, tmp_path):
    """The resize stored in the weights wins over the recipe's; an explicit size overrides it."""
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
        assert tiekd.load_student(tmp_path / name, **options)(photo).shape == (37, 50)
        assert seen.pop() == expected, (name, options)


def test_load_student_bare_weights_use_recipe_size(network, photo, seen, tmp_path):
    """Weights without a resize use the recipe's; an invalid stored resize is rejected."""
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
        assert tiekd.load_student(tmp_path / "bare.pth", tmp_path / "mine.yaml")(photo).shape == (
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


def test_student_large_image_uses_working_size(network, seen):
    """A large image reaches the network at the working size, and depth has the image's size."""
    student = Student(network, "cpu", resize=Resize(32, 48, "stretch"))
    assert student(np.zeros((1500, 2000, 3), np.uint8)).shape == (1500, 2000)
    assert seen == [(32, 48)]


@pytest.mark.parametrize(
    "resize", [Resize(), Resize(60, 90, "stretch"), Resize(40, 40, "contain"), Resize(scale=0.6)]
)
def test_student_sharp_readouts_add_no_depths(network, resize):
    """Resizing adds no depths: mode gives bin centres, local gives values of the head's cells.

    Readouts at every size. `mode` gives bin centres, and `local` what the head's cells gave.
    """
    image = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (3, 61, 47), dtype=np.uint8)
    )[None]
    centres = (network.head.edges[1:] + network.head.edges[:-1]) / 2
    for readout in ("mode", "local"):
        student = Student(network, "cpu", readout, resize)
        depth = student.predict(image).depth
        assert depth.shape == (1, 1, 61, 47)
        cells = student.predict_resized(network_input(image, resize)).depth
        assert torch.isin(depth, cells).all()
        if readout == "mode":
            assert (depth[..., None] - centres).abs().amin(-1).max() < 1e-4


def test_student_margins_are_top_two_difference(network, photo):
    """Margins are the difference of the two highest bin probabilities on the image grid."""
    student = Student(network, "cpu", "mode")
    image = torch.from_numpy(photo[:32, :48]).permute(2, 0, 1)[None]
    pixels = look_up(image.contiguous(), colour_table()[None])
    with torch.no_grad():
        first, second = (
            network.head.probabilities(network.features(pixels)).topk(2, dim=1).values.split(1, 1)
        )
    expected = resize_to_image(first - second, (32, 48), False)
    assert torch.allclose(student.margins(image), expected, atol=1e-5)


def test_student_mode_and_local_readouts(checkpoint, network, photo):
    """Mode depths are bin centres, and local depths stay within two bin widths of them."""
    centres = (network.head.edges[1:] + network.head.edges[:-1]) / 2
    mean, mode, local = (
        tiekd.load_student(checkpoint, readout=name)(photo) for name in ("mean", "mode", "local")
    )
    away = (mode[..., None] - centres).abs().amin(-1)
    assert away.max() < 1e-4
    assert mode.unique().numel() > 2
    width = float(network.head.edges[1] - network.head.edges[0])
    assert (local - mode).abs().max() <= 2 * width + 1e-3 < (mean - mode).abs().max()


def test_student_confidence_keeps_depth(checkpoint, photo):
    """Asking for confidence adds two maps and leaves the depth bit-identical."""
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    for name in ("mean", "local"):
        student = tiekd.load_student(checkpoint, readout=name)
        plain, sure = (
            student.predict_resized(pixels),
            student.predict_resized(pixels, with_confidence=True),
        )
        assert plain.confidence is None
        assert torch.equal(plain.depth, sure.depth)
        assert sure.confidence.shape == (1, 1, 37, 50)
        assert sure.confidence.min() > 0
        assert sure.confidence.max() <= 1 + 1e-5


def test_load_student_confidence_is_of_the_weights_temperature(checkpoint, photo, tmp_path):
    """The temperature in the file changes confidence and sigma, and no bit of the depth."""
    content = torch.load(checkpoint, weights_only=True)
    path = tmp_path / "w.pth"
    torch.save({**content, "confidence": {"temperature": 4.0, "against": "truth"}}, path)
    plain, calibrated = tiekd.load_student(checkpoint), tiekd.load_student(path)
    assert (plain.temperature, plain.calibration) == (1.0, None)
    assert calibrated.calibration == Calibration(4.0, "truth")
    for name in ("mean", "mode", "local"):
        plain.readout = calibrated.readout = name
        depth, sure, sigma = plain(photo, confidence=True)
        found = calibrated(photo, confidence=True)
        assert depth.shape == sure.shape == sigma.shape == (37, 50)
        assert torch.equal(plain(photo), depth)
        assert torch.equal(calibrated(photo), depth)
        assert torch.equal(found.depth, depth)
        assert (found.sigma > sigma).float().mean() > 0.9
        assert not torch.equal(found.confidence, sure)
    batch = torch.from_numpy(photo).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    assert calibrated(batch, confidence=True).sigma.shape == (2, 37, 50)


def test_load_student_sigmoid_head_allows_mean_only(tmp_path, photo):
    """A sigmoid head rejects the local readout and confidence; unknown readouts are rejected."""
    write_weights(tmp_path / "w.pth", build_network(SIGMOID).state_dict(), SIGMOID, 0)
    student = tiekd.load_student(tmp_path / "w.pth")
    assert student(photo).shape == (37, 50)
    with pytest.raises(
        RecipeError,
        match=r"readout: got 'local', but this network's head \(Sigmoid\).*allowed: mean",
    ):
        tiekd.load_student(tmp_path / "w.pth", readout="local")
    with pytest.raises(RecipeError, match="confidence: asked for, but this network's head"):
        student.predict_resized(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), with_confidence=True)
    with pytest.raises(RecipeError, match="confidence: asked for, but this network's head"):
        student(photo, confidence=True)
    with pytest.raises(RecipeError, match="got 'median'; allowed: mean, mode, local"):
        tiekd.load_student(tmp_path / "w.pth", readout="median")


def test_load_student_bare_weights_need_recipe(network, tmp_path, photo):
    """Bare weights load only with a recipe whose network fits their tensors."""
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="doesn't say its network; give the recipe"):
        tiekd.load_student(tmp_path / "bare.pth")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"network": DPM}))
    assert tiekd.load_student(tmp_path / "bare.pth", tmp_path / "mine.yaml")(photo).shape == (
        37,
        50,
    )
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"network": SIGMOID}))
    with pytest.raises(CheckpointError, match="bare.pth: .* tensors don't fit"):
        tiekd.load_student(tmp_path / "bare.pth", tmp_path / "other.yaml")


def test_load_student_imports_no_module_of_weights(network, tmp_path, photo, monkeypatch):
    """Weights naming an external module run none of its code unless a recipe names it."""
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
    assert tiekd.load_student(tmp_path / "w.pth", tmp_path / "mine.yaml")(photo).shape == (37, 50)
    assert (tmp_path / "ran").exists()


def test_load_student_work_dir_uses_best_weights(checkpoint, tmp_path):
    """A work dir loads its best weights; a folder without weights is rejected."""
    loaded = tiekd.load_student(checkpoint.parent).network.state_dict()
    assert all(
        torch.equal(loaded[name], w)
        for name, w in tiekd.load_student(checkpoint).network.state_dict().items()
    )
    with pytest.raises(CheckpointError, match="there are no weights in"):
        tiekd.load_student(tmp_path)


def test_student_names_file_whose_working_size_is_refused(network, tmp_path):
    """A working size that is too large or too small for the network is refused with the file."""
    write_image(tmp_path / "narrow.png", np.zeros((1, 400, 3), np.uint8))
    path = str(tmp_path / "narrow.png")
    with pytest.raises(DataError, match=f"^{path}: 1x400 would be 64x25600 at the working res"):
        Student(network, "cpu", resize=Resize(short_side=64))(path)
    told = "1x400 would be 1x4 at the working .* needs at least 16 pixels a side; give another size"
    with pytest.raises(DataError, match=f"^{path}: {told}"):
        Student(network, "cpu", resize=Resize(scale=0.01))(path)


def test_pick_device_rejects_missing_device():
    """An unknown device name raises a LaunchError that lists the allowed devices."""
    assert pick_device("cpu").type == "cpu"
    # A device without values, such as meta, can't predict.
    for name in ("cpuu", "meta7", "meta"):
        with pytest.raises(
            LaunchError, match=f"--device {name}: there is no such device.*allowed: cpu, cuda"
        ):
            pick_device(name)


@pytest.fixture(scope="module")
def convex():
    """A network at stride 2 whose depth gets to the image by learned upsampling."""
    torch.manual_seed(0)
    node = {
        "encoder": {**ENCODER, "taps": [0, 1, 3]},
        "decoder": {"name": "separable", "widths": [8, 8, 16]},
        "head": {**DPM["head"], "upsampling": "convex"},
        **RANGE,
    }
    network = build_network(node).eval()
    torch.nn.init.normal_(network.head.weight, std=5.0)
    torch.nn.init.normal_(network.head.upsampling.logits.weight, std=2.0)
    return network


@pytest.mark.parametrize("readout", ["mode", "local"])
def test_student_learned_upsampling_blends_no_readout(convex, photo, readout):
    """`mode` and `local` take each depth from one cell; `mean` blends them."""
    student = Student(convex, "cpu", readout)
    image = look_up(
        torch.from_numpy(photo).permute(2, 0, 1)[None].contiguous(), colour_table()[None]
    )
    with torch.no_grad():
        features = convex.features(image)
        centres = bin_centres(convex.head.edges)
        cells = read_out(convex.head.probabilities(features), centres, readout)
    depths = student(photo)
    assert depths.shape == (37, 50)
    assert set(depths.flatten().tolist()) <= set(cells.clamp(0.5, 80).flatten().tolist())
    blended = Student(convex, "cpu")(photo)
    assert not set(blended.flatten().tolist()) <= set(cells.flatten().tolist())


def test_student_margins_include_choice_of_cell(convex, photo):
    """A pixel that can take its depth from either of two cells is as uncertain as two bins."""
    student = Student(convex, "cpu", "mode")
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].contiguous()
    margins = student.margins(pixels)
    with torch.no_grad():
        features = convex.features(look_up(pixels, colour_table()[None]))
        of_cells = convex.head.upsampling.margins(features)[..., :37, :50]
    assert margins.shape == (1, 1, 37, 50)
    assert (margins <= of_cells).all()
    assert (margins == of_cells).any()
    assert (margins < of_cells).any()


def test_student_confidence_beside_learned_upsampling(convex, photo):
    """With confidence the depth is the same, and confidence is blended, 0 to 1."""
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].contiguous()
    for readout in ("mean", "local"):
        student = Student(convex, "cpu", readout)
        alone, both = student.predict(pixels), student.predict(pixels, with_confidence=True)
        torch.testing.assert_close(alone.depth, both.depth)
        assert both.confidence.shape == (1, 1, 37, 50)
        assert 0 <= both.confidence.min() < both.confidence.max() <= 1 + 1e-6
