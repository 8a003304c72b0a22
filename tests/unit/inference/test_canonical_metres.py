"""A canonical network gives the same metres by every way, and needs the focal length in each."""

import io
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image
from support import canonical_student
from support.exported_student import DPM, TEACHERS, random_image

import tiekd
from tiekd.data.resize import Resize
from tiekd.data.sample import Sample
from tiekd.errors import DataError, ExportError, RecipeError
from tiekd.evaluation import evaluate
from tiekd.inference.export import export, onnx_format, program_format
from tiekd.inference.student import Student
from tiekd.models.build import build_network
from tiekd.models.flip import Predictor
from tiekd.tools import predict
from tiekd.workdir.weights_file import write_weights

HEAD = DPM["head"] | {"sigma": 4.0}
NODE = DPM | {"head": HEAD, "canonical_focal": 100.0, "canonical_factors": [0.8, 1.6]}
RESIZE = Resize(scale=0.75)
FOCAL, SIZE = 90.0, (64, 96)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A canonical network's weights, its recipe without factors, an image, and its metres."""
    folder = tmp_path_factory.mktemp("canonical")
    torch.manual_seed(0)
    network = build_network(NODE).eval()
    torch.nn.init.normal_(network.head.weight, std=3.0)
    facts = {"resize": RESIZE.node(), "teachers": TEACHERS}
    write_weights(folder / "w.pth", network.state_dict(), NODE, 0, **facts)
    recipe = {key: value for key, value in NODE.items() if key != "canonical_factors"}
    (folder / "r.yaml").write_text(yaml.safe_dump({"network": recipe, "data": {"name": "folder"}}))
    pixels = random_image(*SIZE)
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(folder / "picture.png")
    depth = tiekd.load_student(folder / "w.pth")(pixels, focal=FOCAL)
    assert depth.std() > 0.5, "depth varies"
    assert tiekd.load_student(folder / "w.pth")(pixels, focal=2 * FOCAL).mean() > 1.5 * depth.mean()
    return SimpleNamespace(folder=folder, network=network, pixels=pixels, depth=depth[0])


def assert_same_metres(found, case):
    assert found.shape == case.depth.shape
    assert torch.quantile((found - case.depth).abs(), 0.999) <= 1e-3


def test_load_student_takes_the_factors_from_the_weights(case):
    """With a recipe that has no factors, load_student takes those of the weights."""
    student = tiekd.load_student(case.folder / "w.pth", case.folder / "r.yaml")
    assert_same_metres(student(case.folder / "picture.png", focal=FOCAL), case)
    assert_same_metres(student.predict(case.pixels, True, focal=FOCAL).depth[0, 0], case)


def arguments(case, **options):
    values = {
        **{"recipe": str(case.folder / "r.yaml"), "overrides": [], "size": None, "points": False},
        **{"words": [str(case.folder / "w.pth"), str(case.folder / "picture.png")]},
        **{"intrinsics": None, "focal": None, "device": "cpu", "readout": "mean", "raw": True},
        **{"confidence": False, "depth_unit": "256", "overwrite": True, "batch_size": None},
        "out": case.folder / "predicted",
    }
    return SimpleNamespace(**values | options)


@pytest.mark.parametrize("option", ["focal", "numbers", "list", "recipe", "exif"])
def test_predict_gives_the_same_metres(case, option, capsys):
    """Every source of the camera gives the metres of load_student."""
    options = {"focal": "90"}
    if option == "numbers":
        options = {"intrinsics": "89,91,47.5,31.5"}
    if option == "list":
        # Given for twice the size, the focal length is halved.
        (case.folder / "i.txt").write_text("picture.png 178 182 95.5 63.5 192 128\n")
        options = {"intrinsics": str(case.folder / "i.txt")}
    if option == "recipe":
        options = {"overrides": ["data.intrinsics=[90, 90, 47.5, 31.5]"]}
    if option == "exif":
        exif = Image.Exif()
        exif[0x0112] = 1
        exif.get_ifd(0x8769)[0xA405] = 34
        photo = case.folder / "photo.png"
        Image.open(case.folder / "picture.png").save(photo, exif=exif)
        options = {"words": [str(case.folder / "w.pth"), str(photo)]}
    predict.run(arguments(case, **options))
    told = capsys.readouterr().out
    assert "Learned from: huggingface m, licence apple-amlr, digest ffffffffffff\n" in told
    name = "photo" if option == "exif" else "picture"
    found = torch.from_numpy(np.load(case.folder / f"predicted/raw/{name}.npy"))
    if option == "exif":
        assert "Focal length from EXIF, approximate: 1 image(s)" in told
        focal = 34 / np.hypot(36, 24) * np.hypot(*SIZE)
        expected = tiekd.load_student(case.folder / "w.pth")(case.pixels[0], focal=float(focal))
        assert torch.quantile((found - expected).abs(), 0.999) <= 1e-3
    else:
        assert_same_metres(found, case)


@pytest.mark.parametrize(
    ("options", "kind", "line"),
    [
        ({"focal": "0"}, RecipeError, "--focal: got '0'; it must be a focal length"),
        ({"focal": "wide"}, RecipeError, "--focal: got 'wide'"),
        ({"focal": "9", "intrinsics": "9,9,1,1"}, RecipeError, "together with --intrinsics"),
        ({"intrinsics": "none.txt"}, RecipeError, "--intrinsics: got 'none.txt'"),
        ({}, DataError, "1 of 1 could not be predicted"),
    ],
)
def test_predict_wrong_focal_is_one_line(case, options, kind, line, capsys):
    """A wrong or missing focal length is refused in one line, with what to give."""
    with pytest.raises(kind, match=line) as error:
        predict.run(arguments(case, **options))
    assert "\n" not in str(error.value)
    if not options:
        told = capsys.readouterr().err
        assert "picture.png: the camera of an image of 64x96 there isn't known" in told
        assert "--focal F" in told


@pytest.mark.parametrize("flip", [False, True])
def test_evaluation_scores_the_same_metres(case, flip):
    """An evaluation resizes the image alone, and scales the focal length with it."""
    intrinsics = torch.tensor([[89.0, 0, 47.5], [0, 91.0, 31.5], [0, 0, 1]])
    inside = torch.ones(1, *SIZE, dtype=torch.bool)
    sample = Sample(case.pixels[0], torch.ones(1, *SIZE), inside, None, intrinsics, "a")
    settings = evaluate.EvaluationSettings(crop="none", flip=flip)
    protocol = evaluate.EvaluationProtocol(settings, 1e-3, 80.0)
    scored = []
    watcher = lambda indices, batch, depth, rows: scored.append(depth[0, 0])  # noqa: E731
    predictor, cpu = Predictor(case.network, flip), torch.device("cpu")
    evaluate.evaluate(predictor, [sample], protocol, cpu, resize=RESIZE, watchers=[watcher])
    if not flip:
        assert_same_metres(scored[0], case)
    unknown = sample._replace(intrinsics=torch.full((3, 3), torch.nan))
    with pytest.raises(DataError, match="^a: its focal length isn't known"):
        evaluate.evaluate(predictor, [unknown], protocol, cpu, resize=RESIZE)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("is_input", [False, True])
def test_exported_file_gives_the_same_metres(case, tmp_path, suffix, is_input):
    """The focal length is a constant of the file or an input, and is that of the whole image."""
    path = tmp_path / f"student{suffix}"
    settings = export.Settings(
        SIZE,
        export.format_of(path),
        confidence=True,
        resize=RESIZE,
        focal=None if is_input else FOCAL,
        focal_input=is_input,
    )
    export.write(path, case.network, NODE, settings, [case.pixels.flip(-1)], {}, io.StringIO())
    run = (onnx_format if suffix == ".onnx" else program_format).load(path)
    given = (torch.tensor([FOCAL]),) if is_input else ()
    assert_same_metres(run(case.pixels, *given)[0][0, 0], case)


def test_exported_weights_hold_the_factors(case, tmp_path):
    """Exported weights load without a recipe, and give the same metres."""
    path = tmp_path / "student.pth"
    settings = export.Settings(SIZE, "weights", resize=RESIZE)
    export.write(path, case.network, NODE, settings, [case.pixels], {}, io.StringIO())
    assert_same_metres(tiekd.load_student(path)(case.pixels[0], focal=FOCAL), case)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "--focal: this network was trained with network.canonical_focal; give --focal F"),
        ({"focal": 9.0, "focal_input": True}, "--focal: this network was trained"),
        ({"focal": -1.0}, "--focal -1: it must be a focal length in pixels above 0"),
        ({"focal": 9.0, "resize": Resize(64, 80, "stretch")}, "--size: data.resize: 64x80"),
        (
            {"focal_input": True, "dynamic": True, "resize": Resize(64, 96, "stretch")},
            "--dynamic: a file can't refuse images",
        ),
    ],
)
def test_export_wrong_focal_is_one_line(case, tmp_path, options, line):
    """An export without a focal length, or with a wrong one, is refused in one line."""
    settings = export.Settings(SIZE, **{"resize": RESIZE} | options)
    with pytest.raises(ExportError, match=line) as error:
        export.check(case.network, settings, tmp_path / "student.onnx")
    assert "\n" not in str(error.value)


def test_export_of_other_networks_refuses_a_focal(tmp_path):
    """A network without a canonical camera refuses a focal length."""
    network = build_network(DPM)
    with pytest.raises(ExportError, match="was trained without network.canonical_focal"):
        export.check(network, export.Settings(SIZE, focal=9.0), tmp_path / "student.onnx")


@pytest.mark.filterwarnings("error:# The axis name")
@pytest.mark.parametrize(("suffix", "is_input"), [(".onnx", True), (".pt2", True), (".pt2", False)])
def test_dynamic_file_gives_the_known_metres(tmp_path, suffix, is_input):
    """A file for any size takes a focal length of the image at its own size, one or one an image.

    The distance of a board is known at each size, and load_student's Student gives it, too.
    """
    network, path = canonical_student.network(), tmp_path / f"student{suffix}"
    settings = export.Settings(
        (48, 160),
        export.format_of(path),
        dynamic=True,
        focal=None if is_input else 80.0,
        focal_input=is_input,
    )
    tried = canonical_student.image(80.0, 4.0)[None]
    export.check(network, settings, path)
    export.write(path, network, {}, settings, [tried], {}, io.StringIO())
    run = (onnx_format if suffix == ".onnx" else program_format).load(path)
    if suffix == ".onnx":
        inputs = onnx.load(path).graph.input
        shapes = [[dim.dim_param for dim in each.type.tensor_type.shape.dim] for each in inputs]
        assert shapes == [["batch", "", "height", "width"], ["batch"]]
    student = Student(network, "cpu")
    for size in ((48, 160), (33, 261), (70, 90)):
        for cases in ([(80.0, 2.0)], [(80.0, 8.0), (80.0, 4.0)], [(60.0, 3.0), (120.0, 5.0)]):
            focals = [focal for focal, _ in cases]
            if not is_input and focals[0] != 80:
                continue
            pixels = torch.stack([canonical_student.image(*case, *size) for case in cases])
            given = (torch.tensor(focals),) if is_input else ()
            (depth,) = run(pixels, *given)
            assert depth.shape == (len(cases), 1, *size)
            for found, (_, metres) in zip(depth, cases, strict=True):
                torch.testing.assert_close(found, torch.full_like(found, metres), rtol=1e-4, atol=0)
            torch.testing.assert_close(student(pixels, focal=focals), depth[:, 0])
