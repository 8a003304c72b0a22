"""The focal lengths with which maps were cached, and a student or a job that has others."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.cached_teacher import NUM_TRAIN, TEACHER, cache, make_ground, recipe_of, refused

from tiekd.data import map_focals, teacher_maps
from tiekd.data.build import build_dataset
from tiekd.errors import DataError, TeacherError
from tiekd.models.build import build_network
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs.anchoring import Anchor
from tiekd.teachers.outputs.teacher import FoundationTeacher, RunOptions
from tiekd.training.settings import Recipe
from tiekd.workdir.weights_file import write_weights

CPU = torch.device("cpu")
CANONICAL = TEACHER | {"canonical_focal": 100.0}
OTHER = [500.0, 500.0, 63.5, 31.5]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    """A canonical teacher's recipe, and its maps of five frames of one camera."""
    folder = make_ground(tmp_path_factory.mktemp("ground"))
    torch.manual_seed(0)
    node = CANONICAL | {"canonical_factors": [0.1, 10.0]}
    write_weights(folder / "canonical.pth", build_network(node).state_dict(), node, 3)
    recipe = recipe_of(folder)
    recipe["teacher"] = {"network": CANONICAL, "checkpoint": str(folder / "canonical.pth")}
    split = (folder / "kitti" / "kitti_eigen_train.txt").read_text()
    cache(recipe, folder / "maps")
    return SimpleNamespace(recipe=recipe, maps=folder / "maps", focal=float(split.split()[2]))


def with_intrinsics(recipe: dict, intrinsics: list[float] | None) -> dict:
    return recipe | {"data": recipe["data"] | {"intrinsics": intrinsics}}


def student(case: SimpleNamespace, maps: Path, intrinsics: list[float] | None = None):
    recipe = with_intrinsics(case.recipe | {"teacher": {"maps": str(maps)}}, intrinsics)
    return build_dataset(Recipe(recipe).dataset, "train")


def test_maps_of_a_canonical_teacher_record_their_cameras(case):
    """Each map's focal length is beside it, and the manifest names its source."""
    focals = map_focals.read(case.maps)
    assert sorted(focals) == sorted(path.name for path in case.maps.glob("*.png"))
    assert set(focals.values()) == {round(case.focal, 4)}
    assert len(focals) == NUM_TRAIN
    assert teacher_maps.read_manifest(case.maps)["intrinsics"] == "the data set's own"
    before = (case.maps / "focals.json").read_bytes()
    assert "0 to make" in cache(case.recipe, case.maps)
    assert (case.maps / "focals.json").read_bytes() == before


def test_maps_of_other_teachers_record_none(case, tmp_path):
    """The metres of a network that knows no focal length don't depend on it."""
    cache(recipe_of(case.maps.parent), tmp_path / "maps", "val")
    assert not (tmp_path / "maps" / "focals.json").exists()
    assert "intrinsics" not in teacher_maps.read_manifest(tmp_path / "maps")
    assert map_focals.check(student(case, tmp_path / "maps", OTHER), is_canonical=True) == []


def test_caching_with_other_cameras_is_refused(case):
    """Maps of two focal lengths don't meet in one folder, however they are given."""
    other = with_intrinsics(case.recipe, OTHER)
    (name, *_) = map_focals.read(case.maps)
    assert refused(TeacherError, other, case.maps) == (
        f"{case.maps}: maps were made with another focal length, such as {name} with "
        f"{case.focal:.1f} pixels, where this recipe has 500.0; give another --out"
    )
    same = with_intrinsics(case.recipe, [case.focal, case.focal, 1.0, 2.0])
    assert "0 to make" in cache(same, case.maps)


def test_caching_with_a_camera_that_was_unknown_is_refused(tmp_path):
    """Maps by a teacher's own estimate and by a known focal length don't meet in one folder."""
    manifest = {"intrinsics": "the data set's own"}
    estimated, known = {"a.png": 100.0, "b.png": None}, {"a.png": 100.0, "b.png": 120.0}
    for first, second, words in (
        (estimated, known, "b.png with none, where this recipe has 120.0; give another --out"),
        (known, estimated, "b.png with 120.0 pixels, where this recipe has none; give another"),
    ):
        folder = tmp_path / str(len(words))
        folder.mkdir()
        assert map_focals.add(folder, first, manifest) is None
        assert map_focals.add(folder, first, manifest) is None
        assert words in map_focals.add(folder, second, manifest)
        assert map_focals.read(folder) == first


def test_student_with_another_camera_is_refused_or_warned(case):
    """A canonical student is refused, another one warned; the same focal length is accepted."""
    for is_canonical in (True, False):
        assert map_focals.check(student(case, case.maps), is_canonical=is_canonical) == []
    frames = student(case, case.maps, OTHER)
    with pytest.raises(TeacherError) as error:
        map_focals.check(frames, is_canonical=True)
    assert str(error.value).startswith("teacher.maps: 5 of 5: maps were made with another focal")
    assert "that they were made with (the data set's own), or make" in str(error.value)
    assert "\n" not in str(error.value)
    (line,) = map_focals.check(frames, is_canonical=False)
    assert line.startswith("Warning: 5 of 5: maps were made with another focal length, such as ")
    frames.read_maps_of(None)
    assert map_focals.check(frames, is_canonical=True) == []


def test_maps_of_the_second_of_several_teachers_are_compared(case, tmp_path):
    """The folder with another camera is named by its place in the recipe."""
    teacher_maps.write_manifest(tmp_path, teacher_maps.read_manifest(case.maps))
    several = [{"maps": str(tmp_path)}, {"maps": str(case.maps)}]
    recipe = with_intrinsics(case.recipe | {"teacher": None, "teachers": several}, OTHER)
    (tmp_path / "focals.json").write_text("{}")
    frames = build_dataset(Recipe(recipe).dataset, "train")
    assert map_focals.folders_of(frames) == [tmp_path, case.maps]
    with pytest.raises(TeacherError, match=r"^teachers\[1\].maps: 5 of 5: maps were made with"):
        map_focals.check(frames, is_canonical=True)
    (line,) = map_focals.check(frames, is_canonical=False)
    assert line.startswith("Warning: teachers[1].maps: 5 of 5: maps were made with")


def test_maps_of_an_older_version_warn(case, tmp_path):
    """Nothing says with which cameras they were made, and a resumed job doesn't pretend to know."""
    maps = tmp_path / "maps"
    cache(case.recipe, maps)
    (maps / "focals.json").unlink()
    assert "0 to make" in cache(case.recipe, maps)  # killed before the record was written
    assert map_focals.read(maps) == map_focals.read(case.maps)
    (maps / "focals.json").unlink()
    manifest = teacher_maps.read_manifest(maps)
    del manifest["intrinsics"]
    teacher_maps.write_manifest(maps, manifest)
    assert "0 to make" in cache(with_intrinsics(case.recipe, OTHER), maps)
    assert not (maps / "focals.json").exists()
    (line,) = map_focals.check(student(case, maps), is_canonical=True)
    assert line.startswith("Warning: nothing says with which focal lengths the maps in ")


def test_frames_without_camera_are_not_compared(case, tmp_path):
    """A focal length that isn't known on one side contradicts nothing."""
    teacher_maps.write_manifest(tmp_path, teacher_maps.read_manifest(case.maps))
    focals = map_focals.read(case.maps)
    first, second, *_ = focals
    made = focals | {first: None, second: 2 * case.focal}
    (tmp_path / "focals.json").write_text(json.dumps(made))
    with pytest.raises(TeacherError, match="teacher.maps: 1 of 4: "):
        map_focals.check(student(case, tmp_path), is_canonical=True)


@pytest.mark.parametrize("text", ["", "[]", '{"a": "x"}', '{"a": -1}', '{"a": true}'])
def test_damaged_record_is_one_line(tmp_path, text):
    """A record that can't be read is refused in one line."""
    (tmp_path / "focals.json").write_text(text)
    with pytest.raises(DataError, match=r"focals.json: not a record of focal lengths; make the"):
        map_focals.read(tmp_path)


def test_uses_focal_of_teachers():
    """A network that takes a focal length uses it, itself or by its anchor."""

    def teacher(without_focal, anchor=None):
        predictor = SimpleNamespace(
            output_kind="metres" if anchor is None else "inverse",
            max_depth_m=None,
            without_focal=without_focal,
            description={"model": "m"},
        )
        return FoundationTeacher(predictor, RunOptions(CPU, 80.0), anchor)

    assert teacher("it estimates one").uses_focal
    assert not teacher(None).uses_focal
    for inner in ("it estimates one", None):
        anchored = teacher(None, Anchor(teacher(inner), {}, 80.0))
        assert anchored.uses_focal == (inner is not None)
    assert not FrozenTeacher(build_network(TEACHER), CPU).uses_focal
