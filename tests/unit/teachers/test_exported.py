"""Exported networks as teachers: preprocessing, sizes, focal lengths, and what is refused."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from support.teacher_batches import batch_of, images_of
from torch import nn
from torch.nn.functional import interpolate

from tiekd.data import learned_from
from tiekd.errors import RecipeError, TeacherError
from tiekd.teaching import build_teacher

CPU = torch.device("cpu")
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
FOCAL = 100.0


class Weighted(nn.Module):
    """Depth that is a weighted sum of the channels, and 3: each of them can be told."""

    def __init__(self, squeeze: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.conv.weight.data[:] = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
        self.conv.bias.data[:] = 8.0
        self.squeeze = squeeze

    def forward(self, image):
        depth = self.conv(image)
        return depth[:, 0] if self.squeeze else depth


class Two(nn.Module):
    def forward(self, image):
        return image[:, :1] * 0 + 7, image[:, :1] * 0 + 5


def onnx(path: Path, network: nn.Module, size=(32, 48), dynamic=(), outputs=("depth",)) -> Path:
    """Writes an ONNX file; `dynamic` dimensions of its input may have any size."""
    import warnings

    names = {0: "batch", 2: "height", 3: "width"}
    axes = {"image": {axis: names[axis] for axis in dynamic}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 3, *size),),
            path,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_axes=axes if dynamic else None,
            dynamo=False,
        )
    return path


def program(path: Path, network: nn.Module, size=(32, 48), dynamic=False) -> Path:
    """Writes a program of torch.export."""
    shapes = None
    if dynamic:
        auto = torch.export.Dim.AUTO
        shapes = ({0: auto, 2: auto, 3: auto},)
    image = torch.zeros(2 if dynamic else 1, 3, *size)
    torch.export.save(torch.export.export(network.eval(), (image,), dynamic_shapes=shapes), path)
    return path


def node_of(path: Path, **keys) -> dict:
    node = {"name": "exported", "file": str(path), "output": "metres", "mean": MEAN, "std": STD}
    return node | {"range": 1} | keys


def built(path: Path, **keys):
    return build_teacher(node_of(path, **keys), CPU, max_depth_m=80.0)


def refusal(node: dict) -> str:
    with pytest.raises((TeacherError, RecipeError)) as error:
        build_teacher(node, CPU, max_depth_m=80.0)
    assert "\n" not in str(error.value)
    return str(error.value)


def expected_of(images: torch.Tensor, size, mean=MEAN, std=STD, span=255) -> torch.Tensor:
    """The depth of `Weighted` for images that it saw at `size`, on the images' own grid."""
    levels = images.float()
    if size != tuple(images.shape[-2:]):
        levels = interpolate(levels, size, mode="bilinear", align_corners=False, antialias=True)
    pixels = levels / span
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    depth = (pixels * torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1)).sum(1, keepdim=True) + 8
    return interpolate(depth, images.shape[-2:], mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with both kinds of files, of a fixed size and of any."""
    folder = tmp_path_factory.mktemp("exported")
    onnx(folder / "fixed.onnx", Weighted())
    onnx(folder / "any.onnx", Weighted(squeeze=True), dynamic=(0, 2, 3))
    program(folder / "fixed.pt2", Weighted(squeeze=True))
    program(folder / "any.pt2", Weighted(), dynamic=True)
    return folder


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exported_sees_the_file_s_fixed_size(files, suffix):
    """Images are resized to the file's size, normalised, and the map comes back on their grid."""
    images = images_of(3)
    depth = built(files / f"fixed.{suffix}")(batch_of(images, [None] * 3))
    torch.testing.assert_close(depth, expected_of(images, (32, 48)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exported_sees_the_image_s_own_or_the_given_size(files, suffix):
    """A file of any size takes the image as it is, or at `size`."""
    images = images_of(2)
    batch = batch_of(images, [None] * 2)
    depth = built(files / f"any.{suffix}")(batch)
    torch.testing.assert_close(depth, expected_of(images, (64, 96)), rtol=1e-4, atol=1e-4)
    teacher = built(files / f"any.{suffix}", size=[40, 56])
    torch.testing.assert_close(teacher(batch), expected_of(images, (40, 56)), rtol=1e-4, atol=1e-4)
    assert teacher.description["size"] == [40, 56]


def test_exported_range_of_255_leaves_grey_levels(files):
    """With range 255 mean and std are in grey levels."""
    images = images_of(1)
    mean, std = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    teacher = built(files / "any.onnx", mean=mean, std=std, range=255)
    depth = teacher(batch_of(images, [None]))
    expected = expected_of(images, (64, 96), mean, std, span=1)
    torch.testing.assert_close(depth, expected.clamp(min=0), rtol=1e-4, atol=1e-4)


class HalfTheFocal(nn.Module):
    """The answer of a canonical network for a wall: 300 * metres / f, of what it sees.

    The wall is 6 m away; the image's grey level is the focal length of the image that is seen.
    """

    def forward(self, image):
        focal = image[:, :1].mean((2, 3), keepdim=True)
        return (300 * 6 / focal).expand(-1, -1, image.shape[2], image.shape[3])


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("size", [None, [64, 96], [48, 48]])
def test_canonical_gives_the_same_metres_at_full_and_half_size(tmp_path, suffix, size):
    """The same frame at 1x and 0.5x, each with its focal length, gives the same metres."""
    if suffix == "onnx":
        path = onnx(tmp_path / "wall.onnx", HalfTheFocal(), dynamic=(0, 2, 3))
    else:
        path = program(tmp_path / "wall.pt2", HalfTheFocal(), dynamic=True)
    options = {"mean": [0.0] * 3, "std": [1.0] * 3, "range": 255, "output": "canonical"}
    teacher = built(path, size=size, **options)
    for scale in (1.0, 0.5):
        height, width = round(64 * scale), round(96 * scale)
        focal = 80 * scale
        seen = focal
        if size is not None:
            seen = focal * (size[0] / height + size[1] / width) / 2
        grey = torch.full((1, 3, height, width), round(seen), dtype=torch.uint8)
        depth = teacher(batch_of(grey, [focal]))
        torch.testing.assert_close(
            depth, torch.full_like(depth, 6 * seen / round(seen)), rtol=1e-4, atol=0
        )
        assert abs(float(depth.mean()) - 6) < 0.1


def test_canonical_without_a_focal_is_refused(files):
    """Nothing is guessed where no focal length is known."""
    teacher = built(files / "any.onnx", output="canonical")
    with pytest.raises(TeacherError, match="image_1.png has no focal length, and its output is"):
        teacher(batch_of(images_of(2), [FOCAL, None]))


def test_exported_output_is_chosen_by_name(tmp_path):
    """Of several outputs of an ONNX file the named one is depth."""
    path = onnx(tmp_path / "two.onnx", Two(), outputs=("depth", "confidence"))
    assert refusal(node_of(path)).startswith("teacher.output_name: needed, since ")
    assert "gives: depth, confidence" in refusal(node_of(path, output_name="sky"))
    for name, depth in (("depth", 7.0), ("confidence", 5.0)):
        teacher = built(path, output_name=name)
        assert (teacher(batch_of(images_of(1), [None])) == depth).all()
    two = program(tmp_path / "two.pt2", Two())
    with pytest.raises(TeacherError, match="gives a tuple; export a network"):
        built(two)(batch_of(images_of(1), [None]))


def test_exported_description_and_digest(files, tmp_path):
    """The file's name, its preprocessing and its bytes are stated; another file is another one."""
    description = built(files / "fixed.onnx").description
    assert description["model"] == "fixed.onnx"
    assert description["licence"] is None
    assert description["package"].startswith("onnxruntime ")
    assert description["size"] == [32, 48]
    other = Weighted()
    other.conv.bias.data += 1
    assert (
        built(onnx(tmp_path / "fixed.onnx", other)).description["digest"] != description["digest"]
    )
    # Weights that ONNX keeps in a file of their own count, too.
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((files / "fixed.onnx").read_bytes())
    alone = built(copy).description["digest"]
    (tmp_path / "copy.onnx.data").write_bytes(b"weights")
    assert built(copy).description["digest"] != alone == description["digest"]


class Wrong(nn.Module):
    def forward(self, image):
        return image


class Grid(nn.Module):
    """A network that takes multiples of 16 only, at other sizes it fails."""

    def forward(self, image):
        return image[:, :1].reshape(image.shape[0], 1, -1, 16).mean(-1).reshape(1, 1, 2, -1)


def test_exported_refuses_wrong_files(files, tmp_path):
    """Files that are none, or take or give something else, get one line."""
    assert "no file at " in refusal(node_of(tmp_path / "nothing.onnx"))
    assert "allowed are .onnx, .pt2 files" in refusal(node_of(tmp_path / "x.engine"))
    for suffix, words in (("onnx", "ONNX Runtime can't load it"), ("pt2", "torch.export can't")):
        path = tmp_path / f"torn.{suffix}"
        whole = (files / f"fixed.{suffix}").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert words in refusal(node_of(path))
    path = program(tmp_path / "wrong.pt2", Wrong())
    with pytest.raises(TeacherError, match=r"gave \(1, 3, 32, 48\) for images of \(1, 3, 32, 48\)"):
        built(path)(batch_of(images_of(1), [None]))
    path = onnx(tmp_path / "grey.onnx", nn.Conv2d(3, 1, 1), size=(32, 48), dynamic=(2,))
    assert "teacher.size: needed, since " in refusal(node_of(path))


def test_torn_program_logs_no_traceback(files, tmp_path, monkeypatch):
    """Torch logs a traceback before it raises, which the one line replaces; other logs stay."""
    logger, logged = logging.getLogger("torch.export"), []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    monkeypatch.setattr(logger, "handlers", [handler])
    path = tmp_path / "torn.pt2"
    path.write_bytes((files / "fixed.pt2").read_bytes()[:2000])
    assert "so it is damaged or was not written by torch.export.save" in refusal(node_of(path))
    assert logged == []
    logger.warning("of another call")
    assert len(logged) == 1


def test_exported_refuses_wrong_values(files):
    """Each value of the recipe is checked against the file and against what is possible."""
    fixed = files / "fixed.onnx"
    line = refusal(node_of(fixed, size=[64, 96]))
    assert line.startswith("teacher.size: got [64, 96], but ")
    assert line.endswith("takes (1, 3, 32, 48); leave it out")
    assert "teacher.range: got 2; it must be 1 or 255" in refusal(node_of(fixed, range=2))
    assert "teacher.std: got [1.0, 0.0, 1.0]" in refusal(node_of(fixed, std=[1.0, 0.0, 1.0]))
    assert "teacher.size: got [0, 5]" in refusal(node_of(fixed, size=[0, 5]))
    assert "teacher.output: got 'meters'; allowed: metres" in refusal(
        node_of(fixed, output="meters")
    )
    assert "isn't metric without an anchor" in refusal(node_of(fixed, output="inverse"))
    assert "only outputs of ONNX files have names" in refusal(
        node_of(files / "fixed.pt2", output_name="depth")
    )
    node = node_of(fixed)
    del node["mean"]
    assert "teacher (exported): needs mean" in refusal(node)
    assert "teacher.mean: got [1.0]" in refusal(node_of(fixed, mean=[1.0]))


def test_exported_that_fails_at_a_size_is_told(tmp_path):
    """A size that the network can't take is told with what to do."""
    path = program(tmp_path / "grid.pt2", Grid(), size=(32, 16))
    teacher = built(path)
    teacher.predictor.size = (32, 24)
    with pytest.raises(TeacherError, match="fails on images of .*; set teacher.size to one"):
        teacher(batch_of(images_of(1), [None]))


def test_exported_without_onnxruntime(files, monkeypatch):
    """The line names the extra."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "needs onnxruntime, which isn't installed; pip install 'tiekd[export]'" in refusal(
        node_of(files / "fixed.onnx")
    )


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exported_student_says_from_what_it_learned(tmp_path, suffix):
    """A student of this project that teaches names its own teachers, by the file's metadata."""
    teachers = [{"name": "moge", "model": "m", "licence": "mit", "digest": "f" * 64}]
    path, text = tmp_path / f"student.{suffix}", json.dumps(teachers)
    if suffix == "onnx":
        import onnx as package

        model = package.load(onnx(path, Weighted()))
        package.helper.set_model_props(model, {"teachers": text})
        package.save(model, path)
    else:
        exported = torch.export.export(Weighted(), (torch.zeros(1, 3, 32, 48),))
        extra = {"tiekd.json": json.dumps({"teachers": text})}
        torch.export.save(exported, path, extra_files=extra)
    own, theirs = learned_from.of_description(built(path).description)
    assert (own["model"], own["ours"], theirs) == (path.name, True, teachers[0])
    # Other metadata says nothing, whatever it is.
    if suffix == "pt2":
        torch.export.save(exported, path, extra_files={"tiekd.json": "[1]"})
        (own,) = learned_from.of_description(built(path).description)
        assert "ours" not in own
