"""Recipes: merging, overrides, names, teachers; and one line for every mistake."""

from pathlib import Path

import pytest
import yaml

from tiekd.config import shipped
from tiekd.config.build import build, find, settings
from tiekd.config.provenance import annotated
from tiekd.config.recipe import dump_recipe, load_recipe, merge
from tiekd.config.teacher_node import TeacherList
from tiekd.data.augment.augment import Augment
from tiekd.errors import RecipeError
from tiekd.evaluation.evaluate import EvaluationSettings


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path, *overrides):
    """The message of the RecipeError that loading ends with: one line."""
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_recipe_later_bases_and_file_override(tmp_path):
    """A later base overrides an earlier one, and the file overrides all its bases."""
    write(tmp_path / "a.yaml", "train: {epochs: 1, seed: 1}\nlog: {interval: 1}\nwork_dir: a\n")
    write(tmp_path / "sub/b.yaml", "_base_: ../c.yaml\ntrain: {epochs: 2}\n")
    write(tmp_path / "c.yaml", "train: {epochs: 9, clip_norm: 9.0}\nwork_dir: c\n")
    path = write(tmp_path / "x.yaml", "_base_: [a.yaml, sub/b.yaml]\ntrain: {seed: 3}\n")
    assert load_recipe(path) == {
        "train": {"epochs": 2, "seed": 3, "clip_norm": 9.0},
        "log": {"interval": 1},
        "work_dir": "c",
    }


def test_merge_is_deep_and_removes_null():
    """`merge` is deep, removes keys set to null and leaves its arguments unchanged."""
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1], "f": 3}
    change = {"a": {"c": {"d": None, "g": 4}}, "e": [2], "f": None}
    kept = (dump_recipe(base), dump_recipe(change))
    merged = merge(base, change)
    assert merged == {"a": {"b": 1, "c": {"g": 4}}, "e": [2]}
    merged["e"].append(5)
    assert (dump_recipe(base), dump_recipe(change)) == kept


def test_merge_changed_name_replaces_node():
    """A node with another name replaces the base's node; the same name is merged."""
    base = {
        "encoder": {"name": "mobilenet_v2", "width": 0.5},
        "decoder": {"name": "bts", "width": 128},
    }
    merged = merge(
        base, {"encoder": {"name": "resnet", "depth": 18}, "decoder": {"name": "bts", "norm": 1}}
    )
    assert merged == {
        "encoder": {"name": "resnet", "depth": 18},
        "decoder": {"name": "bts", "width": 128, "norm": 1},
    }


def test_recipe_null_removes_key_of_base(tmp_path):
    """A null in a recipe removes the section or key of its base."""
    write(tmp_path / "base.yaml", "teacher: {maps: m}\ndata: {name: kitti, kb_crop: [352, 1216]}\n")
    path = write(tmp_path / "x.yaml", "_base_: base.yaml\nteacher: null\ndata: {kb_crop: null}\n")
    assert load_recipe(path) == {"data": {"name": "kitti"}}


def test_overrides_are_yaml_and_apply_last(tmp_path):
    """Override values are parsed as YAML and replace what the recipe says."""
    path = write(
        tmp_path / "x.yaml", "optimizer: {name: adamw, lr: 1}\ndata: {name: kitti, root: a}\n"
    )
    given = [
        "optimizer.lr=1e-3",
        "data.augment.crop=[96, 320]",
        "data.root=/b=c",
        "train.validate=false",
        "log={}",
    ]
    recipe = load_recipe(path, given)
    assert recipe["optimizer"] == {"name": "adamw", "lr": 0.001}
    assert isinstance(recipe["optimizer"]["lr"], float)
    assert recipe["data"] == {"name": "kitti", "root": "/b=c", "augment": {"crop": [96, 320]}}
    assert recipe["train"] == {"validate": False}
    assert "data" not in load_recipe(path, ["data=null"])


AS_TYPED = [
    "/x/my data #2",
    "2024-01-01",
    "123",
    "1e3",
    "on",
    "no",
    "a=b: c",
    "'quoted'",
    '"my data"',
    "[a",
    "{a}",
    "*",
    "&a",
    "!!python/object:os.x",
    "- a",
    "#",
    "a #b",
    "@x",
    "%x",
    "|",
    " a ",
    "日本/ü",
    "./~",
    "a~",
    "$HOME",
    "x" * 5000,
    "NULL",
    "two\nlines",
]


@pytest.mark.parametrize("text", AS_TYPED)
def test_overrides_text_is_literal_and_reloads(tmp_path, text):
    """An override of a text key is taken literally and survives saving and loading."""
    path = write(tmp_path / "x.yaml", "data: {name: kitti, root: a}\nteacher: {maps: m}\n")
    given = [
        f"data.root={text}",
        f"data.train_split={text}",
        f"teacher.maps={text}",
        f"data.name={text}",
    ]
    recipe = load_recipe(path, given[:3])
    assert (recipe["data"]["root"], recipe["data"]["train_split"], recipe["teacher"]["maps"]) == (
        text,
    ) * 3
    assert load_recipe(path, given)["data"] == {"name": text}
    assert load_recipe(write(tmp_path / "saved.yaml", dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=12", 12),
        ("train.epochs=010", 10),
        ("optimizer.lr=1e-3", 0.001),
        ("schedule.warmup_ratio=1E-3", 0.001),
        ("losses.depth.weight=2", 2),
        ("train.clip_norm=.5", 0.5),
        ("train.validate=false", False),
        ("data.augment.crop=[64, 128]", [64, 128]),
        ("load.ignore=[1e3, no, head.*, 2024-01-01]", ["1e3", "no", "head.*", "2024-01-01"]),
        ("schedule.milestones=[10, 20]", [10, 20]),
        ("data.augment={crop: [64, 128], sizes: no}", {"crop": [64, 128], "sizes": "no"}),
        ("log.anything='3'", "3"),
        ("log.anything=3 # three", "3 # three"),
        ("log.anything=2024-01-01", "2024-01-01"),
    ],
)
def test_overrides_non_text_is_parsed_by_kind(tmp_path, override, value):
    """An override of a key that is no text gets the value and type YAML gives it."""
    recipe = load_recipe(write(tmp_path / "x.yaml", "data: {name: kitti}\n"), [override])
    for part in override.partition("=")[0].split("."):
        recipe = recipe[part]
    assert recipe == value
    assert type(recipe) is type(value)


def test_overrides_null_removes_key_of_any_kind(tmp_path):
    """An override of null removes the key, whatever its kind."""
    text = "data: {name: kitti, root: a, kb_crop: [1, 2]}\ntrain: {epochs: 1}\nwork_dir: w\n"
    path = write(tmp_path / "x.yaml", text)
    given = [
        "data.root=null",
        "data.kb_crop=null",
        "train=null",
        "work_dir=null",
        "log.exp_name=null",
    ]
    assert load_recipe(path, given) == {"data": {"name": "kitti"}, "log": {}}


def test_overrides_last_wins_and_name_sets_kinds(tmp_path):
    """The last override of a key wins; an overridden name decides the kinds."""
    path = write(tmp_path / "x.yaml", "data: {name: kitti, root: a}\n")
    assert load_recipe(path, ["data.root=1", "data.root=2"])["data"]["root"] == "2"
    assert load_recipe(path, ["data.name=folder", "data.images=123"])["data"] == {
        "name": "folder",
        "images": "123",
    }


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1.e-3", "1.0e-3"])
def test_recipe_scientific_notation_is_float(tmp_path, text):
    """Each form of scientific notation is read as a float."""
    value = load_recipe(write(tmp_path / "x.yaml", f"train: {{clip_norm: {text}}}\n"))["train"][
        "clip_norm"
    ]
    assert value == 0.001
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "data.workers",
            "--set data.workers: must be key.sub=value, for example --set data.workers=2",
        ),
        ("data..workers=2", "--set data..workers=2: must be key.sub=value"),
        ("data.kb_crop=[1, 2", "--set data.kb_crop=[1, 2: value is not YAML"),
        ("data=3", "data: got 3; it must be a mapping"),
        ("evaluation=7", "evaluation: got 7; it must be a mapping"),
        ("teacher=yes", "teacher: got 'yes'; it must be a mapping"),
        ("hooks={name: x}", "hooks: got {'name': 'x'}; it must be a list, each a mapping"),
        ("hooks=[3]", "hooks: got [3]; it must be a list, each a mapping"),
        ("data.root=", "--set data.root=: has no value; give one, or null to remove data.root"),
        ("=x", "--set =x: must be key.sub=value"),
        ("", "--set : must be key.sub=value"),
        ("data.=x", "--set data.=x: must be key.sub=value"),
        ("a." * 2000 + "b=1", "must be key.sub=value"),
        ("data[0].root=x", "unknown key 'data[0]'; did you mean 'data'?"),
        (
            "hooks.0.interval=1",
            "hooks: got {'0': {'interval': 1}}; it must be a list, each a mapping",
        ),
        ("work_dir.x=3", "work_dir: got {'x': 3}; it must be text"),
        (
            "hooks=[!!python/name:os.system ]",
            "value is not YAML: could not determine a constructor",
        ),
        ("hooks=[&a [*a]]", "value is not YAML: an anchor holds itself"),
        ("load.ignore=[*head]", "value is not YAML"),
        ("train={epochs: 1, epochs: 2}", "value is not YAML: the key 'epochs' is there twice"),
        ("train={epochs:2}", "value is not YAML: 'epochs:2' has no value"),
        ("train.seed=" + "9" * 5000, "value is not YAML: Exceeds the limit"),
        (
            "dat.root=x",
            "unknown key 'dat'; did you mean 'data'? allowed: checkpoint, data, evaluation",
        ),
        (
            "teacher={recipe: 3}",
            "--set teacher={recipe: 3}: teacher.recipe: got 3; it must be text",
        ),
        (
            "teacher={checkpoint: 3}",
            "teacher.checkpoint: got 3; it must be text; write it in quotes",
        ),
        ("teacher.weights=x", "teacher: unknown key 'weights'"),
    ],
)
def test_overrides_invalid_is_one_line_error(tmp_path, override, line):
    """An invalid override raises a RecipeError of one line that names it."""
    assert line in refused(write(tmp_path / "x.yaml", "data: {name: kitti}\n"), override)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1", "not YAML that is allowed: while parsing"),
        ("train:\n\tepochs: 1\n", "not YAML that is allowed: while scanning"),
        (
            "train: {epochs: 1}\ntrain: {seed: 1}\n",
            "not YAML that is allowed: the key 'train' is there twice",
        ),
        ("train: {epochs:1}\n", "not YAML that is allowed: 'epochs:1' has no value"),
        (
            "train: {epochs: 1}\n---\nlog: {}\n",
            "not YAML that is allowed: expected a single document",
        ),
        ("log: &a [*a]\n", "not YAML that is allowed: an anchor holds itself"),
        (
            "work_dir: !!timestamp 2024-01-01\n",
            "not YAML that is allowed: could not determine a construct",
        ),
        ("a\0: 1\n", "not YAML that is allowed: unacceptable character"),
        ("- data\n", "a recipe is a mapping of sections"),
        ("", "a recipe is a mapping of sections"),
        ("_base_: 3\n", "_base_: got 3; it must be text or a list, each text"),
        ("_base_: [other.yaml]\n", "other.yaml: no such recipe; near it: x.yaml"),
        ("_base_: .\n", "can't be read as a recipe, it is a folder; give a YAML file: "),
        (
            "work_dir: !!python/object/apply:os.getcwd []\n",
            "not YAML that is allowed: could not determine a construct",
        ),
        ("work_dir: !!python/name:os.system\n", "not YAML that is allowed"),
    ],
)
def test_recipe_invalid_file_is_one_line_error(tmp_path, text, line):
    """An invalid recipe file raises a RecipeError of one line with its path."""
    message = refused(write(tmp_path / "x.yaml", text))
    assert line in message
    assert str(tmp_path) in message


def test_recipe_file_encodings(tmp_path):
    """A BOM, CRLF or document end mark is accepted; an encoding but UTF-8 is rejected."""
    wanted = {"train": {"epochs": 3}, "data": {"root": "/x y/ü"}}
    text = "train: {epochs: 3}\ndata:\n  root: /x y/ü\n"
    with_returns = text.replace("\n", "\r\n")
    for content in (
        text.encode(),
        text.encode("utf-8-sig"),
        with_returns.encode(),
        text.encode() + b"...\n",
    ):
        (tmp_path / "x.yaml").write_bytes(content)
        assert load_recipe(tmp_path / "x.yaml") == wanted
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "x.yaml").write_bytes(text.encode(encoding))
        assert "can't be read as a recipe" in refused(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data: {root: 123}", "data.root: got 123; it must be text; write it in quotes"),
        ("data: {root: 1e3}", "data.root: got 1000.0; it must be text; write it in quotes"),
        ("data: {root: true}", "data.root: got True; it must be text; write it in quotes"),
        ("data: {root: a, kb_crop: 1_000}", "data.kb_crop: got '1_000'; it must be a list of 2"),
        ("data: {root: a, kb_crop: [a, 1]}", "data.kb_crop: got ['a', 1]; it must be a list of 2"),
    ],
)
def test_build_wrong_kind_says_what_to_write(tmp_path, text, line):
    """A value of the wrong kind is an error that says what to write instead."""
    node = load_recipe(write(tmp_path / "x.yaml", text + "\n"))["data"] | {"name": "kitti"}
    with pytest.raises(RecipeError) as error:
        build(node, "tiekd.data.datasets", "data", split="train", max_depth=80.0)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("text", ["on", "2024-01-01", "1:30", "2024_01_01", "a#b"])
def test_recipe_text_is_not_converted(tmp_path, text):
    """A text that YAML 1.1 would convert (on, a date, 1:30) stays text in a recipe."""
    assert load_recipe(write(tmp_path / "x.yaml", f"work_dir: {text}\n")) == {"work_dir": text}


def test_recipe_missing_file_names_close_ones(tmp_path):
    """A missing recipe is an error that names recipes with a close name."""
    write(tmp_path / "tiekd_light.yaml", "{}")
    assert "tiekd_ligth.yaml: no such recipe; near it: tiekd_light.yaml" in refused(
        tmp_path / "tiekd_ligth.yaml"
    )


def test_recipe_base_loop_is_rejected(tmp_path):
    """A cycle of bases is rejected; a base that is used twice is allowed."""
    write(tmp_path / "a.yaml", "_base_: sub/b.yaml\n")
    write(tmp_path / "sub/b.yaml", "_base_: ../a.yaml\n")
    assert "leads back to itself" in refused(tmp_path / "a.yaml")
    write(tmp_path / "c.yaml", "work_dir: c\n")
    write(tmp_path / "d.yaml", "_base_: c.yaml\n")
    assert load_recipe(write(tmp_path / "e.yaml", "_base_: [c.yaml, d.yaml]\n")) == {
        "work_dir": "c"
    }


def test_recipe_teacher_network_from_teacher_recipe(tmp_path, monkeypatch):
    """The teacher's network is loaded from its recipe and is kept in a saved recipe."""
    write(
        tmp_path / "teachers/big.yaml", "network: {max_depth: 10.0}\nteacher: {recipe: big.yaml}\n"
    )
    write(tmp_path / "teachers/other.yaml", "network: {max_depth: 20.0}\n")
    write(
        tmp_path / "base/student.yaml",
        "teacher: {recipe: ../teachers/big.yaml, checkpoint: big.pth}\n",
    )
    path = write(tmp_path / "deep/er/x.yaml", "_base_: ../../base/student.yaml\n")
    recipe = load_recipe(path)
    big = str((tmp_path / "teachers/big.yaml").resolve())
    assert recipe["teacher"] == {
        "recipe": big,
        "checkpoint": "big.pth",
        "network": {"max_depth": 10.0},
    }

    monkeypatch.chdir(tmp_path)
    other = load_recipe(path, ["teacher.recipe=teachers/other.yaml"])["teacher"]
    assert other["recipe"] == str((tmp_path / "teachers/other.yaml").resolve())
    assert other["network"] == {"max_depth": 20.0}

    saved = write(tmp_path / "work/config.yaml", dump_recipe(recipe))
    (tmp_path / "teachers/big.yaml").unlink()
    assert load_recipe(saved) == recipe
    assert load_recipe(saved, ["teacher.recipe=teachers/other.yaml"])["teacher"]["network"] == {
        "max_depth": 20.0
    }
    assert "big.yaml: no such recipe" in refused(path)


def test_overrides_change_teacher_network(tmp_path):
    """An override changes one key of the teacher's network, and is saved with it."""
    parts = "encoder: {name: e}, decoder: {name: d, width: 512}, head: {name: h}"
    write(tmp_path / "big.yaml", f"network: {{{parts}, max_depth: 80.0}}\n")
    path = write(tmp_path / "x.yaml", "teacher: {recipe: big.yaml}\n")
    teacher = load_recipe(path, ["teacher.network.decoder.width=128"])["teacher"]
    assert teacher["network"]["decoder"] == {"name": "d", "width": 128}
    assert teacher["network"]["max_depth"] == 80.0
    # What was saved stays as it was trained with, whatever becomes of the teacher's recipe.
    write(tmp_path / "big.yaml", f"network: {{{parts}, max_depth: 10.0, min_depth: 0.1}}\n")
    saved = write(tmp_path / "saved.yaml", dump_recipe({"teacher": teacher}))
    assert load_recipe(saved)["teacher"]["network"] == teacher["network"]


def test_recipe_teacher_maps_replace_base_recipe(tmp_path):
    """A child recipe can replace its base's teacher recipe by teacher maps."""
    write(tmp_path / "big.yaml", "network: {max_depth: 10.0}\n")
    write(tmp_path / "base.yaml", "teacher: {recipe: big.yaml}\n")
    path = write(tmp_path / "x.yaml", "_base_: base.yaml\nteacher: {recipe: null, maps: gt_kd}\n")
    assert load_recipe(path) == {"teacher": {"maps": "gt_kd"}}


def test_recipe_external_teacher_replaces_node(tmp_path):
    """An external teacher keeps all its keys, and replaces a base's teacher as a whole."""
    write(tmp_path / "big.yaml", "network: {encoder: {name: resnet}, min_depth: 0.001}\n")
    own = {"name": "mine.teacher", "recipe": "x", "network": 3, "maps": 4, "flip": "maybe"}
    outside = write(tmp_path / "outside.yaml", f"teacher: {own}\n")
    assert load_recipe(outside)["teacher"] == own
    write(tmp_path / "base.yaml", "teacher: {recipe: big.yaml, checkpoint: big.pth}\n")
    over = write(
        tmp_path / "over.yaml", "_base_: base.yaml\nteacher: {name: mine.teacher, scale: 2}\n"
    )
    assert load_recipe(over)["teacher"] == {"name": "mine.teacher", "scale": 2}
    back = write(tmp_path / "back.yaml", "_base_: over.yaml\nteacher: {recipe: big.yaml}\n")
    assert load_recipe(back)["teacher"].keys() == {"recipe", "network"}
    for name in ("teacher", "3", "[a.b]"):
        message = refused(write(tmp_path / "x.yaml", f"teacher: {{name: {name}}}\n"))
        assert "or a module of yours, as my_package.my_teacher" in message


def test_recipe_teacher_without_network_is_rejected(tmp_path):
    """A teacher recipe that describes no network is rejected."""
    write(tmp_path / "t.yaml", "work_dir: t\n")
    path = write(tmp_path / "x.yaml", "teacher: {recipe: t.yaml}\n")
    assert "describes no network" in refused(path)
    assert "describes no network" in refused(path, "teacher.network.encoder.width=1")


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("tiekd.data.datasets", {"kitti", "scenes"}),
        ("tiekd.losses", {"dpm", "mse", "silog", "ssim"}),
        ("tiekd.models.encoders", {"mobilenet_v2", "resnet"}),
        ("tiekd.models.heads", {"dpm", "sigmoid"}),
    ],
)
def test_find_unknown_name_lists_buildable_modules(package, names):
    """An unknown name is an error that lists exactly the modules with a build."""
    with pytest.raises(RecipeError) as error:
        find("loader", package, "here")
    head, _, listed = str(error.value).partition("there are (nearest first): ")
    assert head == "here.name: no 'loader'; "
    assert set(listed.split(", ")) >= names
    assert not set(listed.split(", ")) & {
        "loader",
        "transforms",
        "sampler",
        "batch",
        "splits",
        "criterion",
        "street",
    }
    assert all(callable(find(name, package, "here")) for name in listed.split(", "))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mobilenetv2", "mobilenet_v2"),
        ("resnet50", "resnet"),
        ("", "depthformer"),  # none is nearer than another: by the alphabet
    ],
)
def test_build_unknown_name_lists_nearest_first(name, nearest):
    """The names listed for an unknown one begin with the nearest."""
    with pytest.raises(RecipeError) as error:
        build({"name": name}, "tiekd.models.encoders", "network.encoder")
    listed = str(error.value).split("nearest first): ")[1].split(", ")
    assert f"network.encoder.name: no {name!r}" in str(error.value)
    assert listed[0] == nearest


def test_build_dotted_name_is_external_module(tmp_path, monkeypatch):
    """A dotted name builds from an external module; failures say what is missing."""
    write(tmp_path / "outside_parts/__init__.py", "")
    write(
        tmp_path / "outside_parts/pair.py",
        "def build(left: int, right: float = 2.0, *, known=0):\n    return left, right, known\n",
    )
    write(tmp_path / "outside_parts/empty.py", "")
    write(tmp_path / "outside_parts/broken.py", "import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"name": "outside_parts.pair", "left": 1}
    assert build(node, "tiekd.losses", "here", known=7, unasked=8) == (1, 2.0, 7)
    cases = {
        "outside_parts.empty": "module outside_parts.empty has no build; end it with `build = "
        "YourClass`",
        # The module calls itself posixpath; the message has the recipe's name.
        "os.path": "module os.path has no build",
        "outside_parts.nothing": "no module 'outside_parts.nothing' can be imported; "
        "its package belongs",
        "no_such_package.x": "no module 'no_such_package.x' can be imported",
        "..x": "no module '..x' can be imported",
        "outside_parts.": "no module 'outside_parts.' can be imported",
    }
    for name, line in cases.items():
        with pytest.raises(RecipeError, match="here.name: ") as error:
            build({"name": name}, "tiekd.losses", "here")
        assert line in str(error.value)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        build({"name": "outside_parts.broken"}, "tiekd.losses", "here")


@pytest.mark.parametrize(
    ("node", "line"),
    [
        (3, "here: got 3; it must be a mapping with a name, one of: adabins, bts, densedepth"),
        ({"width": 8}, "it must be a mapping with a name"),
        ({"name": ["bts"]}, "it must be a mapping with a name"),
        (
            {"name": "bts", "widht": 8},
            "here (bts): unknown key 'widht'; did you mean 'width'? allowed: ",
        ),
        ({"name": "bts", "encoder_channels": 8}, "here (bts): unknown key 'encoder_channels'"),
        ({"name": "bts", "width": "wide"}, "here.width: got 'wide'; it must be a whole number"),
        (
            {"name": "bts", "width": "128"},
            "got '128'; it must be a whole number; write numbers without quotes",
        ),
        (
            {"name": "bts", "width": "1_28"},
            "got '1_28'; it must be a whole number; write numbers without _",
        ),
        ({"name": "bts", "width": True}, "here.width: got True; it must be a whole number"),
        ({"name": "bts", "width": 128.0}, "here.width: got 128.0; it must be a whole number"),
        ({"name": "bts", "width": [128]}, "here.width: got [128]; it must be a whole number"),
        (
            {"name": "densedepth", "widths": 3},
            "here.widths: got 3; it must be a list, each a whole number",
        ),
        (
            {"name": "densedepth", "widths": [3, "a"]},
            "here.widths: got [3, 'a']; it must be a list",
        ),
        ({"name": "densedepth"}, "here (densedepth): needs widths"),
    ],
)
def test_build_invalid_node_is_one_line_error(node, line):
    """An invalid node raises a RecipeError of one line that names key and kind."""
    context = {"encoder_channels": (1, 2), "encoder_strides": (2, 4), "max_depth": 80.0}
    with pytest.raises(RecipeError) as error:
        build(node, "tiekd.models.decoders", "here", **context)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "node", "line"),
    [
        (
            "data.augment",
            [1],
            "data.augment: got [1]; it must be a mapping with keys from: rotate_p, ",
        ),
        (
            "data.augment",
            {"crop": 5},
            "data.augment.crop: got 5; it must be a list of 2: a whole number, a whole number",
        ),
        ("data.augment", {"crop": [5]}, "data.augment.crop: got [5]; it must be a list of 2"),
        (
            "data.augment",
            {"crop": [0, 5]},
            "data.augment.crop: got [0, 5]; it must be [height, width] in pixels",
        ),
        (
            "data.augment",
            {"gamma": ["a", 1]},
            "data.augment.gamma: got ['a', 1]; it must be a list of 2: a number, a",
        ),
        (
            "data.augment",
            {"gamma": [1.1, 0.9]},
            "data.augment.gamma: got [1.1, 0.9]; must be [low, high], 0 < low",
        ),
        (
            "data.augment",
            {"flip_p": "often"},
            "data.augment.flip_p: got 'often'; it must be a number",
        ),
        ("data.augment", {"flip_p": 2}, "data.augment.flip_p: got 2; a probability is in 0..1"),
        (
            "data.augment",
            {"rotate_deg": -1},
            "data.augment.rotate_deg: got -1; the largest angle is in 0..180",
        ),
        ("data.augment", {"flip": 0.5}, "data.augment: unknown key 'flip'; did you mean 'flip_p'?"),
        ("evaluation", 7, "evaluation: got 7; it must be a mapping"),
        (
            "evaluation",
            {"interval": 0},
            "evaluation.interval: got 0; it must be a whole number from 1",
        ),
        (
            "evaluation",
            {"interval": "2"},
            "evaluation.interval: got '2'; it must be a whole number; write numbers",
        ),
        ("evaluation", {"flip": 1}, "evaluation.flip: got 1; it must be true or false"),
        ("evaluation", {"cap": 0}, "evaluation.cap: got 0; it must be metres > 0"),
        (
            "evaluation",
            {"batch_size": 0},
            "evaluation.batch_size: got 0; it must be a whole number from 1",
        ),
        (
            "evaluation",
            {"crop": "grag"},
            "evaluation.crop: got 'grag'; allowed: none, garg, eigen, nyu_eigen",
        ),
        (
            "evaluation",
            {"save_best": "loss"},
            "evaluation.save_best: got 'loss'; allowed: a1, a2, a3, abs_rel",
        ),
    ],
)
def test_settings_invalid_value_is_one_line_error(section, node, line):
    """An invalid setting raises a RecipeError of one line that names key and range."""
    cls = {"data.augment": Augment, "evaluation": EvaluationSettings}[section]
    with pytest.raises(RecipeError) as error:
        settings({section: node}, section, cls)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_missing_keys_take_defaults():
    """Keys that a section leaves out take the defaults of its dataclass."""
    assert settings({}, "evaluation", EvaluationSettings) == EvaluationSettings()
    given = settings({"data.augment": {"crop": [2, 3], "flip_p": 1}}, "data.augment", Augment)
    assert (given.crop, given.flip_p, given.rotate_p) == ([2, 3], 1, 0.5)


@pytest.mark.parametrize(
    ("base", "changes", "resize"),
    [
        (
            {},
            ["height=192", "width=640", "mode=stretch"],
            {"height": 192, "width": 640, "mode": "stretch"},
        ),
        (
            {"height": 1, "width": 2, "mode": "cover"},
            ["width=640"],
            {"height": 1, "width": 640, "mode": "cover"},
        ),
        ({"height": 1, "width": 2, "mode": "cover"}, ["short_side=64"], {"short_side": 64}),
        (
            {"scale": 0.5},
            ["height=3", "width=4", "mode=fit"],
            {"height": 3, "width": 4, "mode": "fit"},
        ),
        ({"short_side": 64}, ["scale=0.5"], {"scale": 0.5}),
    ],
)
def test_overrides_resize_form_replaces_base(tmp_path, base, changes, resize):
    """An override of another form of resize replaces it; one of the same form merges."""
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"data": {"resize": base}} if base else {"data": {}}))
    recipe = load_recipe(path, [f"data.resize.{change}" for change in changes])
    assert recipe["data"]["resize"] == resize


@pytest.mark.parametrize("mean", [False, True])
def test_several_teachers_are_resolved_each(tmp_path, mean):
    """Each entry's recipe is found from its own file and lends its network; a list replaces one."""
    (tmp_path / "big").mkdir()
    for name in ("a", "b"):
        lent = {"network": {"encoder": {"name": name}, "max_depth": 80.0}}
        (tmp_path / "big" / f"{name}.yaml").write_text(yaml.safe_dump(lent))
    entries = [{"recipe": "big/a.yaml", "weight": 2.0}, {"maps": "~/m"}, {"recipe": "big/b.yaml"}]

    def node(entries: list) -> dict:
        return (
            {"teacher": {"name": "average", "teachers": entries}} if mean else {"teachers": entries}
        )

    (tmp_path / "base.yaml").write_text(yaml.safe_dump(node(entries)))
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "x.yaml").write_text("_base_: ../base.yaml\n")
    nodes = TeacherList.of(load_recipe(sub / "x.yaml")).nodes
    assert nodes[0].recipe == tmp_path / "big" / "a.yaml"
    assert nodes[0].network == {"encoder": {"name": "a"}, "max_depth": 80.0}
    assert nodes[1].maps == str(Path.home() / "m")
    assert nodes[2].network["encoder"] == {"name": "b"}
    key = "teacher.teachers" if mean else "teachers"
    other = TeacherList.of(load_recipe(sub / "x.yaml", [f"{key}=[{{maps: m, weight: 3}}]"])).nodes
    assert [each.node for each in other] == [{"maps": "m", "weight": 3}]
    # A recipe that comes with tiekd is found by its name.
    (named,) = TeacherList.of(load_recipe(sub / "x.yaml", [f"{key}=[{{recipe: demo}}]"])).nodes
    assert named.recipe == shipped.folder(shipped.RECIPES) / "demo.yaml"
    assert named.network["max_depth"] == 80.0
    # Printing the recipe with the origin of each value gives the same recipe.
    printed = sub / "printed.yaml"
    printed.write_text(annotated(sub / "x.yaml"))
    assert load_recipe(printed) == load_recipe(sub / "x.yaml")
    (tmp_path / "none.yaml").write_text("train: {epochs: 1}\n")
    with pytest.raises(RecipeError, match=rf"^{key}\[0\].recipe: .*none.yaml"):
        load_recipe(sub / "x.yaml", [f"{key}=[{{recipe: {tmp_path}/none.yaml}}]"])
