"""A recipe's list of data sets: what is refused, overrides of one set, and each set by itself."""

import json
import re
from pathlib import Path

import pytest

from tiekd.config import data_sets, kinds
from tiekd.config.build import find, parameters_of
from tiekd.config.provenance import annotated
from tiekd.config.recipe import load_recipe
from tiekd.data.loading.loader import Loading
from tiekd.errors import DataError, RecipeError, TeacherError
from tiekd.training.settings import Recipe

MODEL_CONFIGS = Path(__file__).parents[3] / "model_configs"

STREET = {"set": "street", "name": "folder", "root": "~/x", "images": "rgb"}
STREET |= {"augment": {"crop": [32, 64]}}
KITTI = {"name": "kitti", "root": "/kitti", "workers": 1}


def loaded(folder: Path, data: object, overrides=(), **sections) -> dict:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"network": {"max_depth": 10.0}, "data": data, **sections}))
    return load_recipe(path, overrides)


def sets(folder: Path, data: object, overrides=(), **sections) -> dict[str, dict]:
    """Returns the recipe of each set by itself."""
    recipe = loaded(folder, data, overrides, **sections)
    return {
        each.name: data_sets.single_set_recipe(recipe, each) for each in data_sets.sets_of(recipe)
    }


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([], "^data: got an empty list; give one data set or more"),
        (3, "^data: got 3; it must be a mapping or a list, each a mapping"),
        ([{"root": "x"}], r"^data\[0\]: got .*; it must be a mapping with the name of a data set"),
        ([STREET, STREET], "^data: got two sets of the name 'street'; tell them apart"),
        ([KITTI, KITTI], "^data: got two sets of the name 'kitti'"),
        ([KITTI | {"weight": 0}], r"^data\[0\].weight: got 0; it must be a number above 0"),
        ([STREET, KITTI | {"weight": -1.5}], r"^data\[1\].weight: got -1.5; it must be"),
        ([KITTI | {"weight": "much"}], r"^data\[0\].weight: got 'much'; it must be a number"),
        ([STREET | {"weight": 1}, KITTI], "^data.kitti.weight: got none, but street has one"),
        (
            [STREET, KITTI | {"augment": {"crop": [64, 64]}}],
            r"^data.kitti.augment: got {'crop': \[64, 64\]}, but street has {'crop': \[32, 64\]}",
        ),
        (
            [STREET, KITTI | {"resize": {"scale": 0.5}}, KITTI | {"set": "b", "resize": {}}],
            "resize",
        ),
        ([KITTI | {"set": "a.b"}], r"^data\[0\].set: got 'a.b'; give letters"),
        ([KITTI | {"set": "workers"}], r"^data\[0\].set: got 'workers'; give letters"),
        ([KITTI | {"evaluation": {"by": "epoch"}}], r"^data\[0\].evaluation: got 'by'; a set has"),
        ([KITTI | {"teacher": {"mpas": "x"}}], "^data.kitti: teacher: unknown key 'mpas'"),
        ([KITTI | {"teacher": {"maps": "x"}, "teachers": [{"maps": "y"}]}], "both teacher and"),
        ([KITTI | {"validate": 3}], r"^data\[0\].validate: got 3; it must be true or false"),
    ],
)
def test_wrong_list_is_refused_in_one_line(tmp_path, data, told):
    """Each mistake in a list of data sets is one line."""
    with pytest.raises(RecipeError, match=told) as caught:
        sets(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_each_set_is_a_recipe_by_itself(tmp_path):
    """A set has the keys that all share, its own, its teacher, and its evaluation."""
    own = KITTI | {"weight": 2, "teacher": {"maps": "m"}, "evaluation": {"crop": "garg"}}
    other = STREET | {"weight": 1.5, "validate": False}
    found = sets(
        tmp_path,
        [own, other],
        teacher={"maps": "all"},
        evaluation={"cap": 5, "set": "kitti", "against": "teacher"},
        train={"validate": True, "iterations": 3},
    )
    kitti, street = found["kitti"], found["street"]
    shared = {"augment": {"crop": [32, 64]}, "workers": 1}
    assert kitti["data"] == {"name": "kitti", "root": "/kitti"} | shared
    assert street["data"] == {"name": "folder", "images": "rgb"} | shared | {
        "root": str(Path.home() / "x")
    }
    assert kitti["teacher"] == {"maps": "m"}
    assert street["teacher"] == {"maps": "all"}
    assert kitti["evaluation"] == {"cap": 5, "crop": "garg", "against": "teacher"}
    # A set that isn't validated is compared with nothing.
    assert street["evaluation"] == {"cap": 5}
    assert street["train"] == {"validate": False, "iterations": 3}
    assert kitti["train"]["validate"] is True


def test_set_without_teacher_has_none(tmp_path):
    """A `teacher` of null in an entry is none, though the recipe has one."""
    found = sets(tmp_path, [KITTI | {"teacher": None}, STREET], teacher={"maps": "all"})
    assert "teacher" not in found["kitti"]
    assert found["street"]["teacher"] == {"maps": "all"}


def test_mapping_is_no_list(tmp_path):
    """A recipe with one set as a mapping has no list of sets."""
    recipe = loaded(tmp_path, KITTI)
    assert not data_sets.is_list(recipe)
    assert data_sets.sets_of(recipe) == ()


@pytest.mark.parametrize("place", ["0", "street"])
def test_override_of_one_set_by_number_and_name(tmp_path, place):
    """`data.0.root` and `data.street.root` set a key of one set, text as it is typed."""
    overrides = [f"data.{place}.root=2024-01-01", f"data.{place}.val_fraction=0.25"]
    found = sets(tmp_path, [STREET, KITTI], overrides)
    assert found["street"]["data"]["root"] == "2024-01-01"
    assert found["street"]["data"]["val_fraction"] == 0.25
    assert found["kitti"]["data"]["root"] == "/kitti"


def test_override_of_a_teacher_of_one_set(tmp_path):
    """A set's teacher can be set, and taken away by null, without the others'."""
    override = ["data.kitti.teacher.maps=~/maps"]
    found = sets(tmp_path, [STREET, KITTI], override, teacher={"maps": "all"})
    assert found["kitti"]["teacher"] == {"maps": str(Path.home() / "maps")}
    assert found["street"]["teacher"] == {"maps": "all"}
    found = sets(tmp_path, [STREET, KITTI], ["data.kitti.teacher=null"], teacher={"maps": "all"})
    assert "teacher" not in found["kitti"]


def test_override_of_what_all_sets_share(tmp_path):
    """`data.workers` and `data.augment.crop` are those of all sets, whichever entry has them."""
    found = sets(tmp_path, [STREET, KITTI], ["data.workers=5", "data.augment.crop=[64, 96]"])
    for each in found.values():
        assert each["data"]["workers"] == 5
        assert each["data"]["augment"] == {"crop": [64, 96]}


def test_override_removes_a_set_or_replaces_all(tmp_path):
    """A null removes a set; a whole `data` takes the place of the list."""
    assert list(sets(tmp_path, [STREET, KITTI], ["data.street=null"])) == ["kitti"]
    recipe = loaded(tmp_path, [STREET, KITTI], ["data={name: scenes, num_train: 3}"])
    assert recipe["data"] == {"name": "scenes", "num_train": 3}


def test_removed_set_leaves_what_all_sets_share(tmp_path):
    """What applies to all sets stays if the set that gives it is removed; its own keys go."""
    found = sets(tmp_path, [STREET, KITTI], ["data.street=null"])["kitti"]["data"]
    assert found == KITTI | {"augment": STREET["augment"]}
    two = [STREET | {"on_error": "skip"}, KITTI, KITTI | {"set": "own", "timeout_s": 9.0}]
    found = sets(tmp_path, two, ["data.0=null", "data.own=null"])["kitti"]["data"]
    shared = {"augment": STREET["augment"], "on_error": "skip", "timeout_s": 9.0}
    assert found == KITTI | shared
    other = [KITTI | {"set": "own"}, KITTI | {"workers": 2}]
    removed = loaded(tmp_path, other, ["data.own=null"])["data"]
    assert removed == [KITTI | {"workers": 2}]


def test_override_to_another_kind_of_set_keeps_what_any_has(tmp_path):
    """Another `name` drops the options of the old data set, and keeps weight and teacher."""
    street = STREET | {"weight": 1, "teacher": {"maps": "m"}}
    found = sets(tmp_path, [street, KITTI | {"weight": 2}], ["data.street.name=nyu"])
    assert found["street"]["data"] == {
        "name": "nyu",
        "augment": {"crop": [32, 64]},
        "workers": 1,
    }
    assert found["street"]["teacher"] == {"maps": "m"}


@pytest.mark.parametrize("key", ["data.foo.root", "data.root", "data.2.root", "data.name"])
def test_override_of_no_set_is_refused(tmp_path, key):
    """A key that names no set is refused, with the names of all."""
    told = f"^--set {key}=x: data is a list of sets: street, kitti; give data.SET.KEY=VALUE"
    with pytest.raises(RecipeError, match=told):
        loaded(tmp_path, [STREET, KITTI], [f"{key}=x"])


def test_shared_keys_are_those_of_loading():
    """All keys of the loader but the folder of decoded frames apply to batches."""
    of_loader = set(Loading.__dataclass_fields__) - {"decoded"}
    assert of_loader == set(data_sets.SHARED) - {"augment", "resize"}


def test_kinds_of_a_sets_keys():
    """The kinds of a set's keys are those of its data set, teacher and evaluation."""
    recipe = {"data": [STREET, KITTI | {"teacher": {"maps": "m"}}]}
    kind_of = kinds.kind_of
    assert kind_of(("data", "street", "images"), recipe) is Path
    assert kind_of(("data", "1", "kb_crop"), recipe) == tuple[int, int] | None
    assert kind_of(("data", 1, "weight"), recipe) is float
    assert kind_of(("data", "kitti", "teacher", "maps"), recipe) is Path
    assert kind_of(("data", "kitti", "evaluation", "crop"), recipe) is str
    assert kind_of(("data", "workers"), recipe) is int


def test_relative_recipe_of_a_sets_teacher_starts_at_its_file(tmp_path):
    """`teacher.recipe` of an entry is a path from the recipe's folder, and lends its network."""
    (tmp_path / "big.yaml").write_text(json.dumps({"network": {"encoder": {"name": "x"}}}))
    found = sets(tmp_path, [KITTI | {"teacher": {"recipe": "big.yaml"}}, STREET])
    teacher = found["kitti"]["teacher"]
    assert teacher["recipe"] == str((tmp_path / "big.yaml").resolve())
    assert teacher["network"] == {"encoder": {"name": "x"}}
    assert "teacher" not in found["street"]


def test_printed_config_reads_back(tmp_path):
    """bin/print_config.py prints a list of data sets that gives the same recipe."""
    recipe = loaded(tmp_path, [STREET, KITTI], ["data.kitti.weight=2", "data.street.weight=1"])
    path = tmp_path / "recipe.yaml"
    text = annotated(path, ["data.kitti.weight=2", "data.street.weight=1"])
    (tmp_path / "again.yaml").write_text(text)
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_replace_teachers_changes_each_where_it_stands():
    """A teacher of all sets stays at the top, and that of a set in its entry."""
    recipe = {"teacher": {"maps": "all"}, "data": [KITTI, STREET | {"teacher": {"maps": "own"}}]}
    of_sets = [data_sets.single_set_recipe(recipe, each) for each in data_sets.sets_of(recipe)]
    changed = [each | {"teacher": {"maps": each["teacher"]["maps"] + "!"}} for each in of_sets]
    found = data_sets.replace_teachers(recipe, changed)
    assert found["teacher"] == {"maps": "all!"}
    assert "teacher" not in found["data"][0]
    assert found["data"][1]["teacher"] == {"maps": "own!"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("data.root: no folder"), "data.street.root: no folder"),
        (RecipeError("data (folder): unknown key"), "data.street (folder): unknown key"),
        (TeacherError("teacher.maps: none"), "data.street: teacher.maps: none"),
        (RecipeError("data.resize: too small"), "data.street: data.resize: too small"),
        (RecipeError("data.augment.crop: too large"), "data.street: data.augment.crop: too large"),
        (DataError("data.street.root: no folder"), "data.street.root: no folder"),
    ],
)
def test_errors_name_the_set(error, told):
    """A message about a set's option names the set in it; any other has the name before it."""
    with pytest.raises(type(error)) as caught, data_sets.errors_of_set("street"):
        raise error
    assert str(caught.value) == told
    with pytest.raises(type(error)) as caught, data_sets.errors_of_set(""):
        raise error
    assert str(caught.value) == told  # one set has no name, so its errors stay


def test_documented_example_loads(tmp_path):
    """The recipe of several data sets in the documents loads, and its keys are known."""
    text = (MODEL_CONFIGS / "DATA.md").read_text()
    (block,) = re.findall(r"```yaml\n(# mixed.yaml.*?)```", text, re.DOTALL)
    path = tmp_path / "mixed.yaml"
    path.write_text(block.replace("_base_/", f"{MODEL_CONFIGS}/_base_/"))
    recipe = Recipe(load_recipe(path))
    street, mine = (each.recipe for each in recipe.data_sets)
    assert (street.teachers.is_given, mine.teachers.maps) == (
        False,
        {"teacher.maps": "gt_kd_huggingface_mine"},
    )
    assert (street.evaluation.crop, street.validates, mine.validates) == ("garg", True, False)
    assert (recipe.train.epoch_images, recipe.evaluation.set) == (24000, "street")
    assert recipe.augment.sizes == "keep_aspect"
    for each in recipe.data_sets:
        part = each.recipe.dataset.part
        known = parameters_of(find(part["name"], "tiekd.data.datasets", "data"))
        assert part.keys() - {"name"} <= known.keys()


@pytest.mark.parametrize(
    ("option", "whole"),
    [
        ("data.val_fraction=0.2", "data.street.val_fraction=0.2"),
        ("data.resize.height=96", "data.resize.height=96"),
        ("data.augment={}", "data.augment={}"),
        ("teacher.flip=true", "data.street.teacher.flip=true"),
        ("train.epochs=3", "train.epochs=3"),
    ],
)
def test_option_of_a_set_is_one_of_the_whole_recipe(tmp_path, option, whole):
    """What belongs to one set is named by the set, and the override is accepted so."""
    street = STREET | {"teacher": {"maps": "x"}}
    recipe = loaded(tmp_path, [street, KITTI], teacher={"maps": "y"})
    assert data_sets.option_of_set(option, "street", recipe) == whole
    assert data_sets.option_of_set("teacher.flip=true", "kitti", recipe) == "teacher.flip=true"
    alone = recipe | {"data": STREET}
    assert data_sets.option_of_set(option, "", alone) == option
