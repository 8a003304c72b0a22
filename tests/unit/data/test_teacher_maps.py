"""Learning from cached maps.

Targets are those of the teacher itself, and maps of another kind are refused.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import fake_data
from support.fake_data import image_name, write_png
from support.frames import kitti_frames

from tiekd.data import teacher_maps
from tiekd.data.augment.augment import Augment
from tiekd.data.build import build_dataset
from tiekd.data.datasets.scenes import write_kitti_layout
from tiekd.data.image_io import encode_teacher_map
from tiekd.data.loading.loader import training_batches
from tiekd.data.loading.sampler import MicroBatches
from tiekd.errors import DataError, TeacherError
from tiekd.kernels.target import bin_edges, gaussian_target
from tiekd.models.build import build_network
from tiekd.teaching import build_teacher
from tiekd.tools import cache_teacher
from tiekd.training.settings import Recipe
from tiekd.workdir.weights_file import write_weights

CPU = torch.device("cpu")
NOTHING = Augment(rotate_p=0.0, flip_p=0.0, colour_p=0.0)
NETWORK = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25, "taps": [1, 3]},
    "decoder": {"name": "densedepth", "widths": [8, 8], "extra_ups": 2, "extra_width": 8},
    "head": {"name": "sigmoid"},
    "min_depth": 0.001,
    "max_depth": 80.0,
}
FAR = NETWORK | {"max_depth": 100.0}


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """Two frames, and a teacher to 100 m that often sees farther than the students' 80 m."""
    folder = tmp_path_factory.mktemp("ground")
    write_kitti_layout(folder / "kitti", 0, 64, 128, 2, 1)
    torch.manual_seed(1)
    network = build_network(FAR)
    network.head.conv.weight.data *= 100
    network.head.conv.bias.data += 2.5
    write_weights(folder / "teacher.pth", network.state_dict(), FAR, 0)
    recipe = recipe_of(folder)
    source = cache_teacher.teacher_settings(Recipe(recipe), "student.yaml", None)
    frames = cache_teacher.frames_of(Recipe(recipe), "train")
    cache_teacher.cache_maps(
        Recipe(recipe), source, frames, folder / "kitti" / "gt_kd", CPU, io.StringIO()
    )
    return folder


def recipe_of(
    ground: Path, kb_crop=(48, 96), max_depth: float = 80.0, maps: str | None = None
) -> dict:
    online = {"network": FAR, "checkpoint": str(ground / "teacher.pth"), "flip": True}
    data = {"name": "kitti", "root": str(ground / "kitti"), "workers": 0}
    return {
        "network": NETWORK | {"max_depth": max_depth},
        "teacher": online if maps is None else {"maps": maps},
        "data": data if kb_crop is None else data | {"kb_crop": list(kb_crop)},
    }


def targets(recipe: dict) -> torch.Tensor:
    """The teacher's depth of the first batch, as training gets it without augmentation."""
    teacher = build_teacher(recipe["teacher"], CPU)
    sampler = MicroBatches(2, 1, range(2), seed=0)
    frames = build_dataset(Recipe(recipe).dataset, "train")
    return torch.cat([teacher(batch) for batch in training_batches(frames, sampler, NOTHING, CPU)])


def refused(kind, recipe: dict) -> str:
    with pytest.raises(kind) as error:
        build_dataset(Recipe(recipe).dataset, "train")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_cached_targets_equal_online_teacher(ground):
    """Targets from cached maps equal the online teacher's, also beyond the student's range."""
    online, cached = targets(recipe_of(ground)), targets(recipe_of(ground, maps="gt_kd"))
    assert online.shape == cached.shape == (2, 1, 48, 96)
    step = 100.0 / 65535  # the farther of the two ranges is what 65535 stands for
    assert (cached - online).abs().max() <= 0.5 * step * 1.001
    beyond = online > 80 + step
    assert 0.05 < beyond.float().mean() < 0.95
    assert (cached[beyond] > 80).all()
    edges = bin_edges(100, 0.001, 80.0)
    difference = gaussian_target(cached, 1.0, None, edges) - gaussian_target(
        online, 1.0, None, edges
    )
    assert (
        difference.abs().max() < 2 * 0.5 * step
    )  # a bin's mass changes by less than 2 a metre, even at the end
    torch.testing.assert_close(
        gaussian_target(cached, 1.0, None, edges).movedim(1, -1)[beyond[:, 0]],
        gaussian_target(online, 1.0, None, edges).movedim(1, -1)[beyond[:, 0]],
    )


def test_encode_teacher_map_valid_pixels_above_zero(tmp_path):
    """Valid depths are encoded to 1 or more, invalid ones to 0."""
    depth = np.array(
        [[1e-6, 0.001, 0.5, 79.9999, 80.0, 81.0, 0.0, -1.0, np.nan, np.inf]], np.float32
    )
    (tmp_path / "map.png").write_bytes(encode_teacher_map(depth, 80.0))
    assert np.array(Image.open(tmp_path / "map.png")).tolist() == [
        [1, 1, 410, 65535, 65535, 65535, 0, 0, 0, 0]
    ]


def test_maps_of_other_range_or_crop_are_refused(ground):
    """Maps for another `max_depth` or `kb_crop` are refused with one line."""
    folder = ground / "kitti" / "gt_kd"
    assert refused(TeacherError, recipe_of(ground, maps="gt_kd", max_depth=10.0)) == (
        f"teacher.maps: {folder} was made for network.max_depth 80.0, this recipe has 10.0; set "
        "the same, or make maps for this recipe with bin/cache_teacher.py"
    )
    message = refused(TeacherError, recipe_of(ground, maps="gt_kd", kb_crop=None))
    assert "was made for data.kb_crop [48, 96], this recipe has null" in message
    assert "this recipe has [32, 96]" in refused(
        TeacherError, recipe_of(ground, maps="gt_kd", kb_crop=(32, 96))
    )
    # Maps are for training alone.
    build_dataset(Recipe(recipe_of(ground, maps="gt_kd", max_depth=10.0)).dataset, "val")


def test_maps_without_manifest_warn(ground, tmp_path):
    """Maps without a manifest are read at the recipe's range with a warning."""
    for path in (ground / "kitti" / "gt_kd").glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    frames = build_dataset(Recipe(recipe_of(ground, maps=str(tmp_path))).dataset, "train")
    levels = np.array(Image.open(tmp_path / frames.map_name(0)))
    np.testing.assert_allclose(frames[0].teacher_depth[0].numpy(), levels * (80 / 65535), rtol=1e-6)
    warning = teacher_maps.describe(tmp_path)
    assert warning.startswith(f"Warning: the teacher's maps in {tmp_path} have no manifest.json; ")
    assert "\n" not in warning
    assert "Warning" not in teacher_maps.describe(ground / "kitti" / "gt_kd")


def test_describe_names_teacher_digest(ground):
    """The log names the digest of the weights that made the maps."""
    folder = ground / "kitti" / "gt_kd"
    digest = json.loads((folder / "manifest.json").read_text())["teacher_digest"]
    assert teacher_maps.describe(folder) == (
        f"Teacher: cached maps in {folder}, of the weights with digest {digest[:12]}, "
        "flip averaging on"
    )


def test_describe_names_teacher_resolution(tmp_path):
    """The log names the resolution at which the teacher saw the images."""
    node = {"name": "mine.oracle"}
    manifest = teacher_maps.make_manifest(80.0, (48, 96), node, None, False, {"short_side": 192})
    teacher_maps.write_manifest(tmp_path, manifest)
    assert teacher_maps.describe(tmp_path).endswith(
        ", of mine.oracle; it saw images at {short_side: 192}"
    )


@pytest.mark.parametrize(
    ("digest", "of"), [("0123456789abcdef", ", the weights with digest 0123456789ab"), (None, "")]
)
def test_describe_names_external_teacher(tmp_path, digest, of):
    """The log names a teacher from outside the project and its digest."""
    node = {
        "name": "mine.oracle",
        "encoder": 3,
        "max_depth": "far",
    }  # all but the name is its own affair
    manifest = teacher_maps.make_manifest(80.0, (48, 96), node, digest, False)
    assert manifest["full_scale_m"] == 80.0
    assert manifest["teacher_network"] == node
    teacher_maps.write_manifest(tmp_path, manifest)
    assert (
        teacher_maps.describe(tmp_path) == f"Teacher: cached maps in {tmp_path}, of mine.oracle{of}"
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"full_scale_m": "x"}', "\udcff"])
def test_unreadable_manifest_is_one_line(ground, tmp_path, text):
    """A manifest that can't be read raises a `DataError` of one line."""
    (tmp_path / "manifest.json").write_text(text, errors="surrogateescape")
    message = refused(DataError, recipe_of(ground, maps=str(tmp_path)))
    assert message == (
        f"{tmp_path / 'manifest.json'}: not a manifest of teacher maps; make the maps again in "
        "another folder"
    )


def test_flip_applies_to_online_teacher_only(ground):
    """`teacher.flip` changes the online teacher's depth and is refused for cached maps."""
    node = recipe_of(ground)["teacher"]
    flipped = targets(recipe_of(ground))
    plain = recipe_of(ground)
    del plain["teacher"]["flip"]
    assert build_teacher(node, CPU).flip
    assert not build_teacher(plain["teacher"], CPU).flip
    assert (targets(plain) - flipped).abs().max() > 0.1
    with pytest.raises(TeacherError, match="teacher.flip: cached maps stay as they were made"):
        build_teacher({"maps": "gt_kd", "flip": True}, CPU)


def test_old_maps_refused_for_exif_rotated_images(tmp_path):
    """Maps without an orientation entry are used except for images that EXIF rotates."""
    root, maps = fake_data.make(tmp_path), tmp_path / "maps"
    for index in range(5):
        write_png(maps / image_name(index).replace("/", "_"), np.full((20, 30), 65535, np.uint16))
    manifest = teacher_maps.make_manifest(NETWORK["max_depth"], None, NETWORK, None, False)
    turned = root / "input" / image_name(1)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(turned).save(turned, exif=exif)
    for old in (False, True):
        teacher_maps.write_manifest(
            maps, {key: manifest[key] for key in manifest if not old or key != "orientation"}
        )
        frames = kitti_frames(str(root), "train", 80.0, maps="maps")
        assert (frames[0].teacher_depth == 80).all()
        if not old:
            assert (frames[1].teacher_depth == 80).all()
            continue
        with pytest.raises(
            DataError,
            match="made before images were turned upright, as the EXIF orientation of 2011",
        ):
            frames[1]


def test_cache_maps_resumes_old_folder(ground, tmp_path):
    """A folder without an orientation entry is continued unless an image is rotated."""
    recipe = recipe_of(ground)
    made = (
        Recipe(recipe),
        cache_teacher.teacher_settings(Recipe(recipe), "student.yaml", None),
        cache_teacher.frames_of(Recipe(recipe), "train"),
    )
    cache_teacher.cache_maps(*made, tmp_path, CPU, io.StringIO())
    manifest = teacher_maps.read_manifest(tmp_path)
    assert manifest.pop("orientation") == "upright"
    teacher_maps.write_manifest(tmp_path, manifest)
    cache_teacher.cache_maps(*made, tmp_path, CPU, io.StringIO())
    assert teacher_maps.read_manifest(tmp_path) == manifest
    frames = cache_teacher.frames_of(Recipe(recipe), "train")
    frames.is_turned = lambda index: index == 1
    with pytest.raises(
        TeacherError, match="holds maps of another kind .they differ in orientation."
    ):
        cache_teacher.cache_maps(Recipe(recipe), made[1], frames, tmp_path, CPU, io.StringIO())


def test_manifest_round_trip(tmp_path):
    """A manifest equals what is read back from its file."""
    manifest = teacher_maps.make_manifest(
        80.0, (48, 96), NETWORK, None, False, {"at_most": (352, 1216)}
    )
    teacher_maps.write_manifest(tmp_path, manifest)
    assert teacher_maps.read_manifest(tmp_path) == manifest
    assert manifest["resize"] == {"at_most": [352, 1216]}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("full_scale_m", "0", "full_scale_m is 0, not a number of metres above 0"),
        ("full_scale_m", "-80", "full_scale_m is -80, not a number of metres above 0"),
        ("full_scale_m", "NaN", "full_scale_m is nan, not a number of metres above 0"),
        ("max_depth_m", "1e999", "max_depth_m is inf, not a number of metres above 0"),
        ("max_depth_m", '"80"', "max_depth_m is 80, not a number of metres above 0"),
        ("kb_crop", "[352, 0]", "kb_crop is [352, 0], not [height, width] or null"),
        ("flip", "2", "flip is 2, not true or false"),
        ("teacher_digest", "3", "teacher_digest is 3, not text or null"),
        ("teacher_network", "[]", "teacher_network is [], not an object"),
        ("resize", "7", "resize is 7, not an object"),
    ],
)
def test_read_manifest_refuses_values_that_are_none(key, value, told, tmp_path):
    """A manifest's value of another kind or range is refused and named, before it is computed."""
    entries = {"full_scale_m": "80.0", "max_depth_m": "80", "kb_crop": "[352, 1216]"}
    entries |= {"flip": "true", "teacher_digest": '"ab"', "teacher_network": "{}", "resize": "{}"}
    path = tmp_path / "manifest.json"

    def write(values):
        path.write_text(f"{{{', '.join(f'{json.dumps(k)}: {v}' for k, v in values.items())}}}")

    write(entries)
    assert teacher_maps.read_manifest(tmp_path)["full_scale_m"] == 80
    write(entries | {key: value})
    with pytest.raises(DataError) as error:
        teacher_maps.read_manifest(tmp_path)
    assert str(error.value) == (
        f"{path}: not a manifest of teacher maps ({told}); make the maps again in another folder"
    )
