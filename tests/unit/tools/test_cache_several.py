"""Caching the maps of several teachers, and maps of sigma beside those of depth."""

import io
import json
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.cached_teacher import CPU, CROP, NUM_TRAIN, TEACHER, files_of, make_ground, recipe_of

from tiekd.config.recipe import load_recipe
from tiekd.data import teacher_maps
from tiekd.data.build import build_dataset
from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.tools import cache_teacher
from tiekd.training.settings import Recipe


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("several"))


@pytest.fixture(autouse=True)
def unsure(monkeypatch):
    """A module of the user's, whose teacher says 8 m, with a sigma of a tenth where it is asked."""

    def build(metres: float, share: float | None = None, count: int = 1):
        def teacher(batch):
            depth = torch.full_like(batch.depth, metres).expand(-1, count, -1, -1).clone()
            depth[..., :4] = 0
            return depth if share is None else Target(depth, depth * share)

        return teacher

    module = types.ModuleType("users.unsure")
    module.build = build
    monkeypatch.setitem(sys.modules, "users.unsure", module)


def several(ground, *more, mean: bool = False) -> Recipe:
    """A recipe with the network of `ground` and further teachers."""
    node = recipe_of(ground)
    entries = [node.pop("teacher") | {"audit": "off", "weight": 2.0}, *more]
    if mean:
        node["teacher"] = {"name": "average", "weights": "precision", "teachers": entries}
    else:
        node["teachers"] = entries
    return Recipe(node)


def cache(recipe: Recipe, folders: list, index: int) -> str:
    out, sources = io.StringIO(), cache_teacher.settings_of_teachers(recipe, "s.yaml", None)
    frames = cache_teacher.frames_of(recipe, "train")
    cache_teacher.cache_maps(recipe, sources[index], frames, folders[index], CPU, out)
    return out.getvalue()


UNSURE = {"name": "users.unsure", "metres": 8.0, "share": 0.1, "audit": "off"}


def test_each_teacher_has_a_folder(ground, tmp_path):
    """Teachers without maps are cached, in folders by their names that differ."""
    recipe = several(ground, {"maps": "old"}, UNSURE, UNSURE | {"metres": 9.0})
    sources = cache_teacher.settings_of_teachers(recipe, "recipes/student.yaml", None)
    wheres = [source.teacher.where for source in sources]
    assert wheres == ["teachers[0]", "teachers[2]", "teachers[3]"]
    root = ground / "kitti"
    found = cache_teacher.folders_of(recipe, sources, "recipes/student.yaml", "val")
    names = ["gt_kd_student_val", "gt_kd_unsure_val_1", "gt_kd_unsure_val_2"]
    assert found == [root / name for name in names]
    found = cache_teacher.folders_of(recipe, sources, "s.yaml", "train", tmp_path)
    assert found[0] == tmp_path / "gt_kd_s"
    assert sources[0].node["checkpoint"] == ground / "teacher.pth" or sources[0].node[
        "checkpoint"
    ] == str(ground / "teacher.pth")
    assert "weight" not in sources[0].node


@pytest.mark.parametrize("mean", [False, True])
def test_told_override_learns_from_all_maps(ground, tmp_path, mean):
    """The override that is printed gives the same teachers, now of cached maps."""
    recipe = several(ground, {"maps": "old", "sigma": 3.0}, UNSURE, mean=mean)
    made = {node.where: tmp_path / f"a: {i}" for i, node in enumerate(recipe.teachers.nodes)}
    del made[recipe.teachers.nodes[1].where]
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump(recipe.node))
    given = ["teacher=null", cache_teacher.override_for_maps(recipe, made)]
    teachers = Recipe(load_recipe(path, given)).teachers
    assert list(teachers.maps.values()) == [str(tmp_path / "a: 0"), "old", str(tmp_path / "a: 2")]
    assert [node.weight for node in teachers.nodes] == [2.0, 1.0, 1.0]
    assert [node.sigma for node in teachers.nodes] == [None, 3.0, None]
    assert (teachers.several, teachers.weights) == (
        recipe.teachers.several,
        recipe.teachers.weights,
    )


@pytest.mark.parametrize("sigma", [0.7, {"from": "between", "max": 4.0}, None])
def test_told_override_keeps_the_sigma_of_a_mean(ground, tmp_path, sigma):
    """No maps hold the sigma of a mean of teachers, so it stays in the override."""
    recipe = several(ground, UNSURE, mean=True)
    if sigma is not None:
        recipe.node["teacher"]["sigma"] = sigma
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump(recipe.node))
    made = {node.where: tmp_path / "maps" for node in recipe.teachers.nodes}
    given = ["teacher=null", cache_teacher.override_for_maps(recipe, made)]
    assert Recipe(load_recipe(path, given)).teachers.sigma == sigma


def test_a_mean_without_an_audit_is_cached_without_one(ground, tmp_path):
    """`teacher.audit: off` of a mean leaves the audit of each of its teachers out."""
    recipe = several(ground, {**UNSURE, "audit": "on"}, mean=True)
    assert "Teacher audit of teacher.teachers[1]: left out" in cache(recipe, [None, tmp_path], 1)
    recipe.node["teacher"]["audit"] = "off"
    told = cache(recipe, [None, tmp_path / "again"], 1)
    assert "Teacher audit: off (teacher.audit)\n" in told
    assert "Teacher audit of" not in told


def test_sigma_maps_are_cached_and_read(ground, tmp_path):
    """A teacher's sigma is stored beside its depth, and training reads both."""
    recipe, folders = several(ground, UNSURE), [tmp_path / "a", tmp_path / "b"]
    assert f"0 there already, {NUM_TRAIN} to make in {tmp_path / 'b'}" in cache(recipe, folders, 1)
    cache(recipe, folders, 0)
    assert not (tmp_path / "a" / teacher_maps.SIGMA).exists()
    assert teacher_maps.sigma_full_scale_m(tmp_path / "a") is None
    assert (
        json.loads((tmp_path / "b" / "manifest.json").read_text())[teacher_maps.SIGMA_SCALE] == 80
    )
    depths = sorted(path.name for path in (tmp_path / "b").glob("*.png"))
    assert sorted(path.name for path in (tmp_path / "b" / "sigma").iterdir()) == depths
    levels = np.array(Image.open(tmp_path / "b" / "sigma" / depths[0]))
    assert levels.shape == tuple(CROP)
    assert set(np.unique(levels)) == {0, round(0.8 * 65535 / 80)}
    teachers = [{"maps": str(folder)} for folder in folders]
    learner = Recipe({k: v for k, v in recipe.node.items()} | {"teachers": teachers})
    sample = build_dataset(learner.dataset, "train")[0]
    assert sample.sigma_planes == 2
    assert sample.teacher_depth[1, 0, 4:].unique().item() == pytest.approx(8.0, abs=1e-3)
    assert sample.teacher_depth[3, 0, 4:].unique().item() == pytest.approx(0.8, abs=1e-3)


def test_interrupted_sigma_maps_are_completed(ground, tmp_path):
    """A frame lacks its map until both files are whole; nothing else is made again."""
    recipe, folders = several(ground, UNSURE), [tmp_path / "a", tmp_path / "b"]
    cache(recipe, folders, 1)
    names = sorted(path.name for path in (tmp_path / "b").glob("*.png"))
    before = files_of(tmp_path / "b" / "sigma")
    (tmp_path / "b" / "sigma" / names[0]).unlink()
    (tmp_path / "b" / "sigma" / names[1]).write_bytes(before[names[1]][2][:-20])
    (tmp_path / "b" / names[2]).unlink()
    (tmp_path / "b" / "sigma" / f".{names[3]}.4711").write_bytes(b"left by a killed job")
    assert f"{NUM_TRAIN - 3} there already, 3 to make" in cache(recipe, folders, 1)
    after = files_of(tmp_path / "b" / "sigma")
    assert {name: row[2] for name, row in after.items()} == {
        name: row[2] for name, row in before.items()
    }
    assert all(after[name] == before[name] for name in names[3:])
    assert f"{NUM_TRAIN} there already, 0 to make" in cache(recipe, folders, 1)


def test_another_kind_of_maps_is_refused(ground, tmp_path):
    """A folder with maps of sigma isn't continued without, nor by other weights."""
    folders = [tmp_path / "a", tmp_path / "b"]
    cache(several(ground, UNSURE), folders, 1)
    without = {"name": "users.unsure", "metres": 8.0, "audit": "off"}
    with pytest.raises(TeacherError, match=r"maps of another kind \(they differ in .*sigma_full_"):
        cache(several(ground, without), folders, 1)
    cache(several(ground), folders, 0)
    network = TEACHER | {"decoder": TEACHER["decoder"] | {"widths": [8, 16]}}
    changed = several(ground)
    changed.node["teachers"][0]["network"] = network
    with pytest.raises(TeacherError, match=r"^teachers\[0\].checkpoint: "):
        cache(changed, folders, 0)


def test_several_depths_of_a_teacher_have_no_map(ground, tmp_path):
    """A teacher that is a mixture itself is refused by its place."""
    recipe = several(ground, UNSURE | {"count": 2})
    with pytest.raises(
        TeacherError, match=r"^teachers\[1\]: gives 2 depths for a pixel, and a map"
    ):
        cache(recipe, [tmp_path / "a", tmp_path / "b"], 1)


def test_what_can_not_be_cached_is_one_line(ground):
    """A checkpoint for several teachers, and teachers that are all cached, are refused."""
    with pytest.raises(TeacherError, match="^--checkpoint: s.yaml has 2 teachers; give each"):
        cache_teacher.settings_of_teachers(several(ground, UNSURE), "s.yaml", "x.pth")
    cached = Recipe(recipe_of(ground) | {"teacher": None, "teachers": [{"maps": "a"}] * 2})
    line = r"^teachers\[0\].maps, teachers\[1\].maps: s.yaml learns from cached maps"
    with pytest.raises(TeacherError, match=line):
        cache_teacher.settings_of_teachers(cached, "s.yaml", None)
