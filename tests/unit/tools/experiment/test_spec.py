"""The specification of an experiment: what is read, and what is refused with one line."""

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from tiekd.config.recipe import load_recipe
from tiekd.data import splits
from tiekd.errors import RecipeError, UserError
from tiekd.tools.experiment import planted_teachers, runs
from tiekd.tools.experiment import spec as specs
from tiekd.training.settings import Recipe

EXPERIMENTS = Path(__file__).parents[4] / "model_configs" / "experiments"
SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))
REAL = [path for path in sorted(EXPERIMENTS.glob("real/*.yaml")) if "\nrows:" in path.read_text()]
# Those of maps that are cached first, or of frames of the user's.
PREPARED = ("sigmas", "indoor_cameras")
PLANNED = [path for path in SHIPPED if path.stem not in PREPARED]
GOOD = {
    "steps": 10,
    "seeds": [0, 1],
    "scenes": {"regex": r"^([^/]+)/"},
    "rows": {"a": {"recipe": "a.yaml", "set": ["losses.dpm.weight=2"]}, "b": {"recipe": "b.yaml"}},
    "sets": {"streets": {"primary": ["a", "b"], "train": "t.txt", "val": "v.txt"}},
}


def read(tmp_path, node):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(node))
    return specs.read(tmp_path / "spec.yaml")


def changed(keys, value):
    node = copy.deepcopy(GOOD)
    place = node
    *path, last = keys.split(".")
    for key in path:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return node


def test_read_fills_defaults(tmp_path):
    """A specification is read with its defaults, and the recipes are found from its folder."""
    spec = read(tmp_path, GOOD)
    assert spec.rows["a"].set == ["losses.dpm.weight=2"]
    assert spec.recipe_of("b") == tmp_path / "b.yaml"
    assert str(spec.folder) == "work_dirs/experiments/spec"
    assert str(spec.readings_file) == "work_dirs/experiments/test_readings.jsonl"
    assert (spec.split, spec.weights) == ("val", "last")
    each = spec.sets["streets"]
    assert each.overrides(None) == ["data.train_split=t.txt", "data.val_split=v.txt"]


def test_size_and_folds_become_overrides(tmp_path):
    """The working resolution and a fold's lists become overrides of the recipe."""
    folds = [{"train": "t0", "val": "v0"}, {"train": "t1", "val": "v1"}]
    node = changed("sets.streets", {"primary": ["a", "b"], "size": [96, 320], "folds": folds})
    each = read(tmp_path, node).sets["streets"]
    assert each.parts == [specs.Fold("t0", "v0"), specs.Fold("t1", "v1")]
    assert each.overrides(each.parts[1]) == [
        "data.train_split=t1",
        "data.val_split=v1",
        "data.resize={height: 96, width: 320, mode: stretch}",
    ]


def with_folds(**of_second):
    folds = [
        {"train": "t0", "val": "v0", "set": ["teacher.maps=m0"]},
        {"train": "t1", "val": "v1", "set": ["teacher.maps=m1"], **of_second},
    ]
    return changed("sets.streets", {"primary": ["a", "b"], "folds": folds, "set": ["log=null"]})


def test_overrides_of_a_fold_come_after_those_of_its_set(tmp_path):
    """Each fold's own overrides are added to those of the set."""
    each = read(tmp_path, with_folds()).sets["streets"]
    assert [each.overrides(part)[-1] for part in each.parts] == [
        "teacher.maps=m0",
        "teacher.maps=m1",
    ]
    assert each.overrides(each.parts[0])[0] == "log=null"


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (
            {"set": ["train.seed=1"]},
            "folds.1.set: train.seed=1 would be replaced; train.seed comes",
        ),
        ({"rows": {"a": ["train={epochs: 2}"]}}, "folds.1.rows.a: train={epochs: 2} would be rep"),
        ({"set": "teacher.maps=m1"}, "sets.streets.folds.1.set: got 'teacher.maps=m1'; it must be"),
        (
            {"rows": {"a": "b=1"}},
            "sets.streets.folds.1.rows.a: got 'b=1'; it must be a list of KEY",
        ),
        ({"rows": {"a": [1]}}, "sets.streets.folds.1.rows.a: got [1]; it must be a list of KEY"),
        ({"set": []}, "folds.1: teacher.maps of a is set in only one of folds 0 and 1"),
    ],
)
def test_read_refuses_overrides_of_folds(tmp_path, second, told):
    """Overrides of folds are checked as those of rows are, and against each other."""
    with pytest.raises(RecipeError) as error:
        read(tmp_path, with_folds(**second))
    assert told in str(error.value)


def test_read_refuses_row_that_replaces_the_folds_teacher(tmp_path):
    """A row's own teacher would be that of every fold, so it is refused; none is allowed."""
    node = with_folds()
    node["rows"]["a"]["set"] = ["teacher=null"]
    assert read(tmp_path, node).rows["a"].set == ["teacher=null"]
    node["rows"]["a"]["set"] = ["teacher={maps: mine}"]
    with pytest.raises(RecipeError, match=r"rows\.a\.set: teacher\.maps is set by sets\.streets"):
        read(tmp_path, node)


def test_read_refuses_test_list_in_overrides_of_a_fold(tmp_path):
    """A fold's override that lets a row read the test list is refused."""
    node = with_folds(rows={"a": ["data.extra=test.txt"]})
    node["sets"]["streets"]["folds"][0]["rows"] = {"a": ["data.extra=x"]}
    node["sets"]["streets"]["test"] = "test.txt"
    with pytest.raises(RecipeError, match=r"folds\.1\.rows\.a: test\.txt is the test list"):
        read(tmp_path, node)


def test_lists_beside_the_specification_are_found(tmp_path, monkeypatch):
    """A list that lies in SPEC's folder is read there; any other one is below data.root."""
    there = tmp_path / "a b"
    (there / "lists").mkdir(parents=True)
    for name in ("train", "val", "test"):
        (there / "lists" / f"{name}.txt").touch()
    (there / "t1").mkdir()  # no file
    monkeypatch.chdir(tmp_path)
    folds = [{"train": "lists/train.txt", "val": "v0"}, {"train": "t1", "val": "lists/val.txt"}]
    node = changed("sets.streets", {"primary": ["a", "b"], "folds": folds})
    each = read(Path("a b"), node).sets["streets"]
    lists = there / "lists"
    assert each.parts == [
        specs.Fold(f"{lists}/train.txt", "v0"),
        specs.Fold("t1", f"{lists}/val.txt"),
    ]
    given = {"train": "lists/train.txt", "val": str(tmp_path / "v"), "test": "lists/test.txt"}
    node = changed("sets.streets", {"primary": ["a", "b"], **given})
    each = read(Path("a b"), node).sets["streets"]
    assert (each.train, each.val, each.test) == (
        f"{lists}/train.txt",
        str(tmp_path / "v"),
        f"{lists}/test.txt",
    )
    assert each.overrides(None)[0] == f"data.train_split={lists}/train.txt"
    # The test list is protected in whichever way it is spelled.
    node["sets"]["streets"]["val"] = f"{lists}/test.txt"
    with pytest.raises(RecipeError, match=r"streets\.val: .*test\.txt is the test list of streets"):
        read(Path("a b"), node)


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        ("steps", None, "steps is missing; it needs steps, seeds, scenes, sets, rows"),
        ("steps", 0, "steps: got 0; it must be a whole number from 1"),
        ("stepz", 1, "unknown key 'stepz'"),
        ("steps", "ten", "experiment.steps: got 'ten'; it must be a whole number"),
        ("seeds", [0, 0], "seeds: got [0, 0]; give different whole numbers from 0"),
        ("rows.a.recipe", None, "rows.a: recipe is missing"),
        ("rows.0", {"recipe": "x"}, "rows.0: a name begins with a letter"),
        ("rows.c", 3, "rows.c: got 3; it must be a mapping with recipe"),
        ("sets.streets.primary", ["a", "c"], "sets.streets.primary: got ['a', 'c']; give two"),
        ("sets.streets.primary", ["a", "a"], "sets.streets.primary: got ['a', 'a']; give two"),
        ("sets.streets.compare", [["a"]], "sets.streets.compare: got ['a']; give two"),
        ("sets.streets.metric", "rmse", "sets.streets.metric: got 'rmse'; allowed: abs_rel"),
        ("sets.streets.folds", [{"train": "x", "val": "y"}], "folds have their own lists"),
        ("sets.streets.test", "v.txt", "sets.streets.val: v.txt is the test list of streets"),
        ("scenes", {"regex": "("}, "scenes.regex: '(' is no regular expression"),
        ("scenes", {}, "scenes: got {}; give either"),
        ("weights", "first", "weights: got 'first'; allowed: last, best"),
        (
            "launcher",
            ["--num_gpus"],
            "launcher: got '--num_gpus'; allowed are options of deepspeed",
        ),
        ("headline", True, "sets.streets: headline: true evaluates on the test list"),
        ("rows.a.set", ["train.seed=3"], "rows.a.set: train.seed=3 would be replaced; train.seed"),
        ("rows.a.set", ["train={seed: 3}"], "train={seed: 3} would be replaced; train.seed comes"),
        ("set", ["train={batch_size: 2, epochs: 3}"], "would be replaced; train.epochs comes"),
        ("rows.a.readouts", ["modal"], "rows.a.readouts: got ['modal']; give different ones of: "),
        ("rows.a.readouts", [], "rows.a.readouts: got []; give different ones of: mean, mode"),
        ("sets.streets.primary", ["a:mode", "b"], "give two different rows of: a, b"),
        ("set", ["evaluation={interval: 3}"], "evaluation.interval comes from weights: last"),
    ],
)
def test_read_refuses(tmp_path, keys, value, told):
    """A specification that can't be meant is refused with the key and what is allowed."""
    with pytest.raises(UserError) as error:
        read(tmp_path, changed(keys, value))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_read_allows_overrides_of_other_keys(tmp_path):
    """A mapping without keys of the experiment is allowed, and so is evaluating for `best`."""
    node = changed("set", ["train={batch_size: 2}", "evaluation.interval=3", "log.name=a: ["])
    assert read(tmp_path, node | {"weights": "best"}).weights == "best"


def test_read_refuses_test_list_in_overrides(tmp_path):
    """An override that lets training read the test list is refused, wherever it stands."""
    node = changed("rows.a.set", ["data.val_split=test.txt"])
    node["sets"]["streets"]["test"] = "test.txt"
    with pytest.raises(RecipeError, match=r"rows\.a\.set: test\.txt is the test list of streets"):
        read(tmp_path, node)


@pytest.mark.parametrize("key", ["rows", "sets"])
def test_read_refuses_name_that_is_no_text(tmp_path, key):
    """A name that YAML reads as something else, such as true, is refused."""
    node = changed(f"{key}.x", {})
    node[key][True] = node[key].pop("x")
    with pytest.raises(RecipeError, match=f"{key}: got .*True.*; a name is text, so quote it"):
        read(tmp_path, node)


def test_recipe_of_row_is_found_by_name(tmp_path):
    """A row may name a recipe of tiekd; a file beside the specification comes first."""
    spec = read(tmp_path, changed("rows.a.recipe", "demo_baseline"))
    assert spec.recipe_of("a") == SHIPPED[0].parents[1] / "demo_baseline.yaml"
    (tmp_path / "demo_baseline.yaml").write_text("")
    assert spec.recipe_of("a") == tmp_path / "demo_baseline.yaml"


@pytest.mark.parametrize("text", ["a: [", "just text", "a: 1\na: 2\n"])
def test_read_refuses_what_is_no_mapping(tmp_path, text):
    """Text that is no YAML mapping is refused in one line."""
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        specs.read(tmp_path / "spec.yaml")
    assert "\n" not in str(error.value)


def test_read_names_similar_file(tmp_path):
    """A missing file is refused with the names of similar ones."""
    read(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"no such specification; near it: spec\.yaml"):
        specs.read(tmp_path / "spek.yaml")


def test_scene_rule_by_regex(tmp_path):
    """A frame's scene is the pattern's first group; a frame that doesn't match is refused."""
    rule = read(tmp_path, GOOD).scene_rule()
    assert rule("kitchen/rgb_1.jpg") == "kitchen"
    with pytest.raises(RecipeError, match="doesn't match the frame 'rgb_1.jpg'"):
        rule("rgb_1.jpg")


def test_scene_rule_by_list(tmp_path):
    """A frame's scene is read from the list; a frame without a line is refused."""
    (tmp_path / "scenes.txt").write_text("a/1.jpg kitchen\na/2.jpg hall\n")
    rule = read(tmp_path, changed("scenes", {"list": "scenes.txt"})).scene_rule()
    assert rule("a/2.jpg") == "hall"
    with pytest.raises(RecipeError, match="scenes.txt has no line for the frame 'a/3.jpg'"):
        rule("a/3.jpg")
    (tmp_path / "scenes.txt").write_text("a/1.jpg kitchen\na/1.jpg hall\n")
    with pytest.raises(RecipeError, match=r"scenes.txt:2: got 'a/1.jpg hall'"):
        read(tmp_path, changed("scenes", {"list": "scenes.txt"})).scene_rule()


def test_shipped_specifications_of_prepared_data_have_valid_recipes(monkeypatch):
    """The rows that need cached maps or real frames first are what a training takes, and paired."""
    monkeypatch.setattr(runs, "build_network", lambda node: None)  # packaged weights may be absent
    monkeypatch.setattr(runs, "check_readout", lambda network, readout: None)
    for path in SHIPPED:
        spec = specs.read(path)
        if path.stem not in PREPARED:
            continue
        for name, row in spec.rows.items():
            for each in spec.sets.values():
                overrides = [*spec.set, *each.overrides(each.parts[0]), *row.set]
                recipe = Recipe(load_recipe(spec.recipe_of(name), overrides))
                runs._check_recipe(recipe, spec.steps, row.readouts)
                assert recipe.teachers.is_given == (path.stem == "sigmas")
                assert recipe.data["root"].startswith("data/")


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_specifications_of_real_frames_are_split_by_scene(path, monkeypatch):
    """Rows are what a training takes; no fold trains on a scene that a fold is evaluated on."""
    monkeypatch.setattr(runs, "build_network", lambda node: None)  # packaged weights may be absent
    monkeypatch.setattr(runs, "check_readout", lambda network, readout: None)
    spec = specs.read(path)
    scene = spec.scene_rule()
    for name, each in spec.sets.items():
        seen = set()
        first = each.parts[0]  # all folds set the same keys
        for row in spec.rows:
            overrides = [*spec.set, *each.overrides(first), *spec.rows[row].set]
            overrides += () if first is None else first.rows.get(row, ())
            recipe = Recipe(load_recipe(spec.recipe_of(row), overrides))
            runs._check_recipe(recipe, spec.steps, spec.rows[row].readouts)
            assert recipe.teachers.is_given == ("teacher=null" not in overrides)
            assert recipe.data["root"] == f"data/{name}"
        for part in each.folds or ():
            train, val = (splits.read_split(Path(file)) for file in part.lists.values())
            held_out = {scene(frame.image) for frame in val}
            assert not held_out & {scene(frame.image) for frame in train}
            assert not held_out & seen
            seen |= held_out
            assert all(frame.ground_truth for frame in val)


def test_indoor_folds_label_25_frames_and_hold_out_rooms_of_nyu():
    """Students see some 25 labels, their teachers all depth of the same frames, none of val."""
    lists = EXPERIMENTS / "real" / "lists"
    for fold in (1, 2, 3):
        every, labelled, val = (
            splits.read_split(lists / f"indoor_fold{fold}_{kind}.txt") for kind in ("a", "b", "val")
        )
        assert [frame.image for frame in every] == [frame.image for frame in labelled]
        assert all(frame.ground_truth for frame in every)
        assert 24 <= sum(frame.ground_truth is not None for frame in labelled) <= 26
        assert sum(frame.image.startswith("nyu_") for frame in val) >= 7


def test_indoor_screening_has_the_rows_of_the_outdoor_one():
    """Both screenings try the same losses; indoors one teacher more saw the labels alone."""
    outdoor, indoor = (
        specs.read(EXPERIMENTS / "real" / f"{name}_screening.yaml")
        for name in ("outdoor", "indoor")
    )
    of_indoor = {name.replace("teacher", "stereo"): row for name, row in indoor.rows.items()}
    assert [*outdoor.rows, "label_stereo_silog_labels"] == [*of_indoor]
    for name, row in outdoor.rows.items():
        assert row.set[-1] == of_indoor[name].set[-1]


@pytest.mark.parametrize("name", ["outdoor", "indoor"])
def test_headlines_repeat_rows_of_the_screenings(name):
    """Five rows as in a screening, but for the maps' folder; one is compared with the others."""
    spec = specs.read(EXPERIMENTS / "real" / f"headline_{name}.yaml")
    known = {}
    for path in REAL:
        if path.name in (f"{name}_screening.yaml", f"{name}_more.yaml"):
            screened = specs.read(path)
            known |= screened.rows
            assert spec.steps == screened.steps
    assert (spec.headline, len(spec.rows), len(spec.seeds)) == (True, 5, 5)

    def lines(row):
        return [each for each in row.set if not each.startswith("teacher.maps=")]

    for row, own in spec.rows.items():
        assert (own.recipe, lines(own)) == (known[row].recipe, lines(known[row]))
    each = spec.sets[name]
    assert (each.test, each.primary[1]) == ("test.txt", "labels_dpm")
    assert {pair[0] for pair in each.compare} == {each.primary[0]}
    assert len({pair[1] for pair in each.compare} | {each.primary[1]}) == 4


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.name)
def test_shipped_specifications_can_run(path, tmp_path):
    """Each specification in model_configs/experiments/ is valid, and so are its recipes."""
    spec = specs.read(path)
    shown = ["data.num_train=2", "data.num_val=2"]
    small = dataclasses.replace(spec, set=[*spec.set, "data.height=32", "data.width=64"])
    sets = {
        name: dataclasses.replace(each, set=[*each.set, *shown, f"data.root={tmp_path / name}"])
        for name, each in spec.sets.items()
    }
    small = dataclasses.replace(small, sets=sets)
    if path.stem == "two_teachers":
        # Its header says that the teachers' maps are written first.
        overrides = [*small.set, *sets["streets"].set]
        recipe = load_recipe(small.recipe_of("mixture"), overrides)
        planted_teachers.write(Recipe(recipe))
    planned, _ = runs.plan(small)
    assert len(planned) == len(spec.rows) * len(spec.seeds) * len(spec.sets)
    runs.check_recipes(planned, small)
    assert runs.check_scenes(planned, small)
