"""Models of transformers as teachers: their maps, their kinds of output, and what is refused."""

import io
import json
import math
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from support import tiny_depth_models
from support.cached_teacher import cache, make_ground, recipe_of, refused
from support.teacher_batches import batch_of, images_of

from tiekd.config.recipe import load_recipe
from tiekd.data import teacher_maps
from tiekd.data.frame_table import FrameTable
from tiekd.data.target import Target
from tiekd.errors import RecipeError, TeacherError
from tiekd.kernels.target import bin_centres
from tiekd.models.spread import half_width
from tiekd.teachers.outputs.tips_bins import TipsBins, without_pedestal
from tiekd.teaching import build_teacher
from tiekd.tools import cache_teacher
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")
MAX_DEPTH = 80.0
FOCAL = 100.0
METRIC = ("depth_anything", "depth_pro", "glpn", "tipsv2_dpt", "zoedepth")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a tiny model of each architecture."""
    folder = tmp_path_factory.mktemp("models")
    for architecture in tiny_depth_models.ARCHITECTURES:
        tiny_depth_models.save(architecture, folder / architecture)
    return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Lets a test fail that looks for anything outside this machine."""

    def refuse(*_):
        pytest.fail("a model in a folder was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def node_of(folder: Path, **keys) -> dict:
    output = {"output": "metres"} if folder.name == "dpt" else {}
    return {"name": "huggingface", "model": str(folder), **output, **keys}


def built(folder: Path, **keys):
    return build_teacher(node_of(folder, **keys), CPU, max_depth_m=MAX_DEPTH)


def refusal(node: dict) -> str:
    with pytest.raises((TeacherError, RecipeError)) as error:
        build_teacher(node, CPU, max_depth_m=MAX_DEPTH)
    assert "\n" not in str(error.value)
    return str(error.value)


def transformers_depth(folder: Path, image: np.ndarray, focal: float | None) -> np.ndarray:
    """(H, W) by transformers alone: whole image, its own processor and post-processing."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval()
    height, width = image.shape[:2]
    with torch.no_grad():
        outputs = model(**processor(images=Image.fromarray(image), return_tensors="pt"))
    sizes = [(height, width)]
    which = "source_sizes" if "Zoe" in type(model).__name__ else "target_sizes"
    if focal is not None and "DepthPro" in type(model).__name__:
        # The published formula, without the processor: 1 / (canonical inverse depth * width / f).
        canonical = torch.nn.functional.interpolate(
            outputs.predicted_depth[:, None], size=sizes[0], mode="bilinear"
        )[0, 0]
        return (1 / (canonical * width / focal).clamp(1e-4, 1e4)).numpy()
    found = processor.post_process_depth_estimation(outputs, **{which: sizes})
    return found[0]["predicted_depth"].numpy()


@pytest.mark.parametrize("architecture", tiny_depth_models.ARCHITECTURES)
def test_cached_map_equals_transformers_own(models, ground, tmp_path, architecture):
    """A map holds what transformers gives for the whole image, within half a level."""
    recipe = recipe_of(ground) | {"teacher": node_of(models / architecture)}
    told = cache(recipe, tmp_path / "maps")
    assert f"Teacher: huggingface {architecture} ({architecture}), output metres, licence" in told
    frames = cache_teacher.frames_of(Recipe(recipe), "train")
    manifest = teacher_maps.read_manifest(tmp_path / "maps")
    spread = []
    for sample, frame in zip(frames, frames.frames, strict=True):
        levels = np.array(Image.open(tmp_path / "maps" / frame.name.replace("/", "_")))
        image = sample.image.permute(1, 2, 0).numpy()
        expected = transformers_depth(models / architecture, image, frame.camera.focal_x)
        expected = np.where(expected > 0, expected, 0).clip(max=manifest["full_scale_m"])
        step = manifest["full_scale_m"] / 65535
        # The smallest level of a valid depth is 1.
        expected = np.where(expected > 0, np.maximum(expected, step), 0)
        # Depth Pro's focal length goes through float32's tan and atan.
        slack = 2e-6 * expected.max()
        assert np.abs(levels * step - expected).max() <= 0.5 * step + slack
        spread.append(expected.std() / expected.mean())
    assert min(spread) > 0.003, "a constant map would show nothing"


@pytest.mark.parametrize(
    ("architecture", "config", "output", "max_depth"),
    [
        ("depth_anything", {"max_depth": 80}, "metres", 80),
        ("depth_pro", {}, "metres", None),
        ("glpn", {"max_depth": 7}, "metres", 7),
        ("tipsv2_dpt", {"max_depth": 9.0}, "metres", 9),
        ("zoedepth", {}, "metres", 10),
    ],
)
def test_meaning_and_range_are_the_config_s(tmp_path, architecture, config, output, max_depth):
    """Metres and the largest depth are read from the model's config."""
    teacher = built(tiny_depth_models.save(architecture, tmp_path / "m", **config))
    assert teacher.description["output"] == output
    assert teacher.description["architecture"] == architecture
    assert teacher.max_depth_m == max_depth


def test_range_of_zoedepth_is_that_of_its_widest_head(tmp_path):
    """Of several domains the farthest counts."""
    bins = [
        {"name": "nyu", "n_bins": 8, "min_depth": 0.1, "max_depth": 10.0},
        {"name": "kitti", "n_bins": 8, "min_depth": 0.1, "max_depth": 80.0},
    ]
    folder = tiny_depth_models.save("zoedepth", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    from tiekd.teachers.huggingface import _STATED

    config = type("Config", (), config | {"bin_configurations": bins})
    assert _STATED["zoedepth"](config) == ("metres", 80.0)


def test_full_scale_is_the_larger_range(models, ground, tmp_path):
    """Maps hold the teacher's range where it is the larger one, else the student's."""
    for name, max_depth, wanted in (("depth_anything", 5.0, 20.0), ("glpn", 80.0, 80.0)):
        recipe = recipe_of(ground, max_depth=max_depth) | {"teacher": node_of(models / name)}
        cache(recipe, tmp_path / name, "val")
        assert teacher_maps.read_manifest(tmp_path / name)["full_scale_m"] == wanted


def test_relative_output_needs_an_anchor(tmp_path, models):
    """Depth Anything's relative model and a relative DPT give no metres."""
    folder = tiny_depth_models.save(
        "depth_anything", tmp_path / "m", depth_estimation_type="relative", max_depth=1
    )
    for node in (node_of(folder), node_of(models / "dpt", output="inverse_affine")):
        line = refusal(node)
        assert line.startswith("teacher.output: inverse_affine (1 / depth = s * output + t) isn't")
        assert "set teacher.anchor to ground_truth" in line
        assert line.endswith("whose output is metres or canonical")


def test_depth_pro_scales_with_a_known_focal(models):
    """Twice the focal length is twice the depth; an unknown one is the model's own estimate."""
    teacher = built(models / "depth_pro")
    images = images_of(1)
    near, far = (teacher(batch_of(images, [focal])) for focal in (FOCAL, 2 * FOCAL))
    torch.testing.assert_close(far, 2 * near, rtol=1e-5, atol=0)
    own = teacher(batch_of(images, [None]))
    expected = transformers_depth(models / "depth_pro", images[0].permute(1, 2, 0).numpy(), None)
    torch.testing.assert_close(own[0, 0], torch.tensor(expected), rtol=1e-5, atol=0)
    # The estimate stands for one focal length, which isn't the known one.
    ratio = own / near
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)
    assert not math.isclose(ratio.mean(), 1, rel_tol=0.05)
    # The audit gets it: given as the known one, it is the same depth.
    (focal,) = teacher.estimate_focal(batch_of(images, [FOCAL])).tolist()
    again = teacher(batch_of(images, [focal]))
    torch.testing.assert_close(again, own, rtol=1e-4, atol=0)


def test_depth_pro_takes_known_and_unknown_focals_in_a_batch(models):
    """Each image of a batch gets its own field of view."""
    teacher, images = built(models / "depth_pro"), images_of(2)
    both = teacher(batch_of(images, [FOCAL, None]))
    one = teacher(batch_of(images[:1], [FOCAL]))
    other = teacher(batch_of(images[1:], [None]))
    torch.testing.assert_close(both, torch.cat([one, other]), rtol=1e-4, atol=1e-4)


def test_depth_pro_without_head_needs_a_focal(tmp_path):
    """A Depth Pro that estimates no field of view is refused for an image without focal."""
    teacher = built(tiny_depth_models.save("depth_pro", tmp_path / "m", use_fov_model=False))
    images = images_of(2)
    assert teacher(batch_of(images, [FOCAL, FOCAL])).shape == (2, 1, 64, 96)
    assert teacher.estimate_focal(batch_of(images, [FOCAL, FOCAL])) is None
    with pytest.raises(TeacherError, match="image_1.png has no focal length, and its output is"):
        teacher(batch_of(images, [FOCAL, None]))


def test_canonical_output_uses_the_focal_of_the_image_that_the_network_saw(models):
    """A DPT that the user calls canonical gives output * f / 300, f after the model's resize."""
    images = images_of(1, 64, 96)
    metres = built(models / "dpt")(batch_of(images, [FOCAL]))
    canonical = built(models / "dpt", output="canonical")(batch_of(images, [FOCAL]))
    # The processor makes 64x64 of 64x96.
    seen = FOCAL * (64 / 64 + 64 / 96) / 2
    torch.testing.assert_close(canonical, metres * seen / 300)
    with pytest.raises(TeacherError, match="image_0.png has no focal length, and its output is"):
        built(models / "dpt", output="canonical")(batch_of(images, [None]))


@pytest.mark.parametrize("architecture", METRIC)
def test_flip_averages_with_the_mirrored_image(models, architecture):
    """The map of a mirrored image is the mirrored map."""
    teacher = built(models / architecture, flip=True)
    images = images_of(1)
    depth = teacher(batch_of(images, [FOCAL]))
    mirrored = teacher(batch_of(images.flip(-1), [FOCAL]))
    torch.testing.assert_close(mirrored.flip(-1), depth, rtol=1e-4, atol=1e-4)
    plain = built(models / architecture)(batch_of(images, [FOCAL]))
    assert not torch.allclose(plain, depth, rtol=1e-3)


def test_batch_size_changes_nothing_but_what_goes_through_at_once(models):
    """Three images in parts of two are those of one part."""
    images = images_of(3)
    teacher = built(models / "glpn", batch_size=2)
    seen = []
    model = teacher.predictor.model
    teacher.predictor.model = lambda pixel_values: (
        seen.append(len(pixel_values)) or model(pixel_values=pixel_values)
    )
    depth = teacher(batch_of(images, [None] * 3))
    assert seen == [2, 1]
    whole = built(models / "glpn", batch_size=8)(batch_of(images, [None] * 3))
    torch.testing.assert_close(depth, whole, rtol=1e-4, atol=1e-4)


def test_bf16_is_near_fp32_in_float32(models):
    """Depth is float32 in any precision, and eight bits are seen."""
    batch = batch_of(images_of(1), [FOCAL])
    full, half = (built(models / "glpn", precision=p)(batch) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


def test_teacher_is_frozen_and_masked(models):
    """Nothing of it is trained, and depth is 0 outside the image."""
    teacher, batch = built(models / "glpn"), batch_of(images_of(1), [None])
    inside = batch.inside.clone()
    inside[..., :10] = False
    depth = teacher(batch._replace(inside=inside))
    assert (depth[..., :10] == 0).all()
    assert (depth[..., 10:] > 0).all()
    assert not depth.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.predictor.model.parameters())
    assert not teacher.predictor.model.training


def test_description_has_no_path(models):
    """The model's base name, architecture, licence, package and digest are stated."""
    description = built(models / "glpn").description
    assert {key: description[key] for key in ("name", "model", "architecture", "output")} == {
        "name": "huggingface",
        "model": "glpn",
        "architecture": "glpn",
        "output": "metres",
    }
    assert description["licence"] == tiny_depth_models.LICENCE
    assert description["package"].startswith("transformers 5.")
    assert len(description["digest"]) == 64
    assert str(models) not in json.dumps(description)


def test_licence_that_no_card_states(models, tmp_path):
    """Without a model card the licence is not stated."""
    folder = shutil.copytree(models / "glpn", tmp_path / "m")
    (folder / "README.md").unlink()
    assert built(folder).description["licence"] is None


def test_interrupted_cache_resumes_and_a_changed_folder_is_refused(models, ground, tmp_path):
    """A moved folder resumes; other weights, another config or processor are refused by digest."""
    folder = shutil.copytree(models / "glpn", tmp_path / "a" / "glpn")
    recipe = recipe_of(ground) | {"teacher": node_of(folder)}
    cache(recipe, tmp_path / "maps")
    maps = sorted((tmp_path / "maps").glob("*.png"))
    before = maps[0].read_bytes()
    maps[0].unlink()
    moved = shutil.move(folder, tmp_path / "glpn")
    recipe["teacher"] = node_of(Path(moved))
    assert "4 there already, 1 to make" in cache(recipe, tmp_path / "maps")
    assert maps[0].read_bytes() == before
    for file, key, value in (
        ("preprocessor_config.json", "size_divisor", 16),
        ("config.json", "max_depth", 11),
    ):
        path = Path(moved) / file
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | {key: value}))
        assert "(they differ in " in (line := refused(TeacherError, recipe, tmp_path / "maps"))
        assert "teacher_digest" in line
        path.write_text(kept)
    weights = safetensors.torch.load_file(Path(moved) / "model.safetensors")
    weights["head.head.2.bias"] += 0.01
    safetensors.torch.save_file(weights, Path(moved) / "model.safetensors", {"format": "pt"})
    assert "teacher_digest" in refused(TeacherError, recipe, tmp_path / "maps")


def test_describe_of_cached_maps_names_the_model(models, ground, tmp_path):
    """The log of a run that learns from the maps says model, output, licence and digest."""
    recipe = recipe_of(ground) | {"teacher": node_of(models / "glpn")}
    cache(recipe, tmp_path / "maps", "val")
    said = teacher_maps.describe(tmp_path / "maps")
    assert "of huggingface glpn, output metres, licence apache-2.0, the weights with digest" in said


def test_default_folder_is_named_after_the_model(models, ground):
    """Maps of two models don't meet in one folder."""
    recipe = recipe_of(ground) | {"teacher": node_of(models / "glpn")}
    folder = cache_teacher.default_folder(Recipe(recipe), "student.yaml", "train")
    assert folder == ground / "kitti" / "gt_kd_huggingface_glpn"
    recipe["teacher"]["model"] = "owner/name-1.5"
    folder = cache_teacher.default_folder(Recipe(recipe), "student.yaml", "train")
    assert folder.name == "gt_kd_huggingface_name-1.5"


def test_checkpoint_option_is_refused(models, ground, tmp_path):
    """--checkpoint is for networks of the project."""
    recipe = recipe_of(ground) | {"teacher": node_of(models / "glpn")}
    line = refused(TeacherError, recipe, tmp_path, checkpoint="x.pth")
    assert line.startswith("--checkpoint: huggingface loads its own weights")


def test_set_takes_the_keys_of_a_kind(tmp_path):
    """`--set teacher.model=...` is text, whatever it looks like, and other keys are their kinds."""
    path = tmp_path / "student.yaml"
    path.write_text("teacher: {name: huggingface, model: x}\n")
    recipe = load_recipe(path, ["teacher.model=123", "teacher.flip=true", "teacher.revision=1.0"])
    assert recipe["teacher"] == {
        "name": "huggingface",
        "model": "123",
        "flip": True,
        "revision": "1.0",
    }
    with pytest.raises(RecipeError, match=r"^teacher.name: got 'huggingfaces'; allowed: hugg"):
        load_recipe(path, ["teacher.name=huggingfaces"])


def test_unknown_focals_are_told_before_the_first_frame(models, ground, tmp_path):
    """Frames without a focal length are counted in the log."""
    split = ground / "kitti" / "kitti_eigen_test.txt"
    recipe = recipe_of(ground) | {"teacher": node_of(models / "depth_pro")}
    frames = cache_teacher.frames_of(Recipe(recipe), "val")
    first, *others = frames.frames
    frames.frames = FrameTable.of([first._replace(camera=None), *others])
    source = cache_teacher.teacher_settings(Recipe(recipe), "student.yaml", None)
    out = io.StringIO()
    cache_teacher.cache_maps(Recipe(recipe), source, frames, tmp_path / "maps", CPU, out)
    assert (
        "Teacher: 1 of 2 frames have no focal length; Depth Pro takes its own estimate of the "
        "field of view for them\n" in out.getvalue()
    )
    recipe["teacher"] = node_of(models / "dpt", output="canonical")
    source = cache_teacher.teacher_settings(Recipe(recipe), "student.yaml", None)
    with pytest.raises(TeacherError, match="1 of 2 frames have no focal length, and its output is"):
        cache_teacher.cache_maps(Recipe(recipe), source, frames, tmp_path / "other", CPU, out)
    assert split.is_file()
    assert not (tmp_path / "other").exists()


def without(folder: Path, tmp_path: Path, *names: str) -> Path:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in names:
        (copy / name).unlink()
    return copy


def edited(folder: Path, tmp_path: Path, file: str, **entries) -> Path:
    copy = shutil.copytree(folder, tmp_path / "copy")
    node = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(node | entries))
    return copy


def test_wrong_folders_are_refused(models, tmp_path):
    """Each missing or unfit file gets one line that says what to do."""
    glpn = models / "glpn"
    line = refusal(node_of(tmp_path / "nothing"))
    assert line == (
        f"teacher.model: no folder {tmp_path / 'nothing'}; give a model's folder, or a hub ID as "
        "owner/name"
    )
    assert "is a file; give the folder that holds it" in refusal(node_of(glpn / "config.json"))
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(node_of(tmp_path / "empty"))
    assert "has no preprocessor_config.json; copy it" in refusal(
        node_of(without(glpn, tmp_path / "1", "preprocessor_config.json"))
    )
    assert "has no weights; a model's folder has model.safetensors" in refusal(
        node_of(without(glpn, tmp_path / "2", "model.safetensors"))
    )
    pickled = without(glpn, tmp_path / "3", "model.safetensors")
    (pickled / "pytorch_model.bin").touch()
    assert "has its weights as pytorch_model.bin only, and a pickle can run code" in refusal(
        node_of(pickled)
    )
    torn = shutil.copytree(glpn, tmp_path / "4")
    (torn / "config.json").write_text("{")
    assert "config.json can't be read" in refusal(node_of(torn))
    (torn / "config.json").write_text("[1]")
    assert "config.json holds a list, not a model's config" in refusal(node_of(torn))
    torn = shutil.copytree(glpn, tmp_path / "5")
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "the model can't be loaded" in refusal(node_of(torn))
    swapped = shutil.copytree(glpn, tmp_path / "6")
    shutil.copy(models / "dpt" / "model.safetensors", swapped)
    assert "its weights lack or misfit " in refusal(node_of(swapped))
    swapped = shutil.copytree(glpn, tmp_path / "7")
    safetensors.torch.save_file(
        {"nothing": torch.zeros(1)}, swapped / "model.safetensors", {"format": "pt"}
    )
    assert "its weights lack or misfit " in refusal(node_of(swapped))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("prompt_depth_anything", "needs a prompt of sparse depth"),
        ("chmv2", "gives the height of the canopy above ground, not depth"),
        ("bert", "is bert; allowed: depth_anything, depth_pro, dpt, glpn, tipsv2_dpt, zoedepth"),
        (None, "is of no stated architecture; allowed: "),
    ],
)
def test_wrong_architectures_are_refused(models, tmp_path, found, words):
    """A model that gives no depth, or not of an image alone, is refused with the reason."""
    folder = edited(models / "glpn", tmp_path, "config.json", model_type=found)
    assert words in refusal(node_of(folder))


def test_processor_of_another_model_is_refused(models, tmp_path):
    """An image processor without depth post-processing belongs to another model."""
    folder = edited(
        models / "glpn",
        tmp_path,
        "preprocessor_config.json",
        image_processor_type="ViTImageProcessor",
    )
    assert "ViTImageProcessor has no depth post-processing" in refusal(node_of(folder))


def test_wrong_values_are_refused(models):
    """Unknown kinds, precisions, devices and sizes are named with what there is."""
    glpn, dpt = models / "glpn", models / "dpt"
    assert refusal(node_of(dpt, output="disparity")) == (
        "teacher.output: got 'disparity'; allowed: metres, canonical, depth_scale, depth_affine, "
        "inverse, inverse_affine"
    )
    line = refusal({"name": "huggingface", "model": str(dpt)})
    assert line.startswith("teacher.output: needed, because ")
    assert "(dpt) doesn't say what its output means" in line
    line = refusal(node_of(glpn, output="inverse"))
    assert line.startswith("teacher.output: got inverse, but ")
    assert line.endswith("(glpn) gives metres by its own config; leave it out")
    assert "allowed: fp32, bf16, fp16" in refusal(node_of(glpn, precision="int8"))
    assert "fp16 is not for CPUs" in refusal(node_of(glpn, precision="fp16"))
    assert "teacher.batch_size: got 0" in refusal(node_of(glpn, batch_size=0))
    for device in ("gpu", "meta"):  # the latter holds no values
        line = refusal(node_of(glpn, device=device))
        assert f"teacher.device: got '{device}'; it must be a device" in line
    assert "teacher.revision: " in refusal(node_of(glpn, revision="main"))
    assert "unknown key 'max_depth_m'" in refusal(node_of(glpn, max_depth_m=3.0))
    assert "needs model" in refusal({"name": "huggingface"})
    assert "teacher.model: got 3; it must be text" in refusal({"name": "huggingface", "model": 3})


def test_range_that_is_none_is_refused(models, tmp_path):
    """A largest depth of 0 or less would give maps without any depth."""
    folder = edited(models / "glpn", tmp_path, "config.json", max_depth=-3)
    assert "its config's largest depth is -3 m; it must be above 0" in refusal(node_of(folder))


def test_unfit_processor_is_one_line(models, tmp_path):
    """A processor whose size the model can't take shows on the first image."""
    size = {"height": 8, "width": 8}
    folder = edited(models / "depth_pro", tmp_path, "preprocessor_config.json", size=size)
    with pytest.raises(TeacherError, match="fails on images of 64x96: ValueError: ") as error:
        built(folder)(batch_of(images_of(1), [FOCAL]))
    assert "\n" not in str(error.value)


def test_missing_or_old_package_is_refused(models, monkeypatch):
    """The line names the extra."""
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    assert "needs transformers 5 or newer, and 4.57.1 is installed" in refusal(
        node_of(models / "glpn")
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refusal(node_of(models / "glpn")) == (
        "teacher.name: huggingface needs transformers, which isn't installed; pip install "
        "'tiekd[hf]'"
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_output_names_the_image(models, bad):
    """NaN or infinity in an output stops with the image's name."""
    teacher = built(models / "glpn")
    model = teacher.predictor.model

    def spoilt(pixel_values):
        outputs = model(pixel_values=pixel_values)
        outputs.predicted_depth[1, 3, 4] = bad
        return outputs

    teacher.predictor.model = spoilt
    with pytest.raises(TeacherError, match="its output for image_1.png is NaN or infinite at "):
        teacher(batch_of(images_of(2), [None, None]))


def test_hub_id_is_looked_up_with_its_revision(monkeypatch, tmp_path):
    """An ID that is no folder goes to the hub; the line of a failure says so."""
    import transformers

    asked = []

    def lookup(name, **options):
        asked.append((name, options["local_files_only"], options["revision"]))
        raise OSError("name resolution\nfailed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", lookup)
    node = {"name": "huggingface", "model": "owner/depth-model-1.5", "revision": "v2"}
    line = refusal(node)
    assert asked == [("owner/depth-model-1.5", False, "v2")]
    assert "no folder has that name, so it was looked for on the hub" in line
    assert line.endswith("name resolution failed")


class _Regressor(torch.nn.Module):
    """The last part of a TIPSv2 model: depth from logits over ten bins of 1 to 10 m."""

    def __init__(self):
        super().__init__()
        self.bin_regressor = torch.nn.Identity()
        self.bin_regressor.bin_centers = torch.linspace(1, 10, 10)


def test_tips_without_pedestal():
    """Bins without a logit above 0 get no share; without any such logit all are equal."""
    logits = torch.tensor([[-1.0, 3.0, 1.0], [-1.0, -2.0, 0.0]]).T.view(1, 3, 1, 2)
    found = without_pedestal(logits)
    assert found[0, :, 0, 0].tolist() == pytest.approx([0, 0.75, 0.25])
    assert found[0, :, 0, 1].tolist() == pytest.approx([1 / 3] * 3)


def test_tips_sigma_of_one_bin():
    """A pixel whose logits name one bin is certain, although the pedestal is in every bin."""
    model = _Regressor()
    bins = TipsBins(model)
    assert torch.allclose(bin_centres(bins.edges), model.bin_regressor.bin_centers)
    logits = torch.full((1, 10, 2, 3), -1.0)
    logits[:, 4] = 0.05
    model.bin_regressor(logits)
    sigma = bins.sigma((4, 6))
    assert sigma.shape == (1, 1, 4, 6)
    assert sigma.max().item() == pytest.approx(0.5 * 0.6827, rel=1e-3)


def test_tips_sigma_of_model(models):
    """The teacher's sigma is the half-width of what its own depth is the mean of."""
    teacher = built(models / "tipsv2_dpt", sigma={"from": "own"})
    plain = built(models / "tipsv2_dpt")
    batch = batch_of(images_of(2), [None, None])
    found = teacher(batch)
    assert isinstance(found, Target)
    assert torch.equal(found.depth, plain(batch))
    model = teacher.predictor.model
    kept = []
    model.bin_regressor.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        teacher(batch)
    width = half_width(without_pedestal(kept[0]), teacher.predictor.bins.edges)
    expected = torch.nn.functional.interpolate(width, size=(64, 96), mode="bilinear")
    assert torch.allclose(found.sigma, expected, atol=1e-5)
    assert found.sigma.std() > 0


def test_tips_sigma_of_mirrored_model(models):
    """With flip, the variances of both images' distributions are averaged."""
    images = images_of(1)
    both = built(models / "tipsv2_dpt", sigma={"from": "own"}, flip=True)
    one = built(models / "tipsv2_dpt", sigma={"from": "own"})
    plain = one(batch_of(images, [None])).sigma
    mirrored = one(batch_of(images.flip(-1), [None])).sigma.flip(-1)
    found = both(batch_of(images, [None])).sigma
    assert torch.allclose(found, ((plain**2 + mirrored**2) / 2).sqrt(), atol=1e-5)


def test_own_sigma_needs_bins(models):
    """A model without bins is refused as a source of its own, with the sources that it has."""
    assert refusal(node_of(models / "glpn", sigma={"from": "own"})) == (
        "teacher.sigma.from: got own, and it gives no distribution over depth bins; allowed for "
        "this teacher: flip, or a number of metres as teacher.sigma"
    )
