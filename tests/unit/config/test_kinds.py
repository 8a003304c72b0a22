"""Kinds are read from the source as Python reads them, and nothing is imported or run for it."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tiekd.config import external, kinds
from tiekd.config.build import _names, build, parameters_of, settings
from tiekd.config.recipe import load_recipe
from tiekd.data.augment.augment import Augment
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import Resize
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.training.settings import LoadSettings, TrainSettings

RECIPES = Path(__file__).parents[3] / "model_configs"
PACKAGES = [
    "losses",
    "data.datasets",
    "training.hooks",
    "models.encoders",
    "models.decoders",
    "models.heads",
    "models.necks",
    "teachers",
]
PARTS = [(package, name) for package in PACKAGES for name in _names(f"tiekd.{package}")]
OF_THE_PROGRAM = {"hooks", "info", "text_log", "frames", "split", "needs_ground_truth"}
OF_THE_PROGRAM |= {"run_device", "max_depth_m", "network", "device", "resize", "teacher"}
OF_THE_PROGRAM |= {"evaluation"}
OF_THE_PROGRAM |= {"mixture", "members", "sets"}
# Text parameters of data sets that are no paths; `maps` is teacher.maps.
NO_PATHS = {"split", "maps", "on_error", "unmatched", "shards", "val_shards"}


@pytest.mark.parametrize(("package", "name"), PARTS)
def test_kinds_of_part_match_signature(package, name):
    """Kinds read from a part's source equal the annotations of its build function."""
    real = parameters_of(importlib.import_module(f"tiekd.{package}.{name}").build)
    read = kinds._parameters_of_build(package.replace(".", "/"), name)
    assert list(read) == list(real)
    assert {key: read[key] for key in read.keys() - OF_THE_PROGRAM} == {
        key: real[key].annotation for key in real.keys() - OF_THE_PROGRAM
    }


@pytest.mark.parametrize(
    ("section", "cls"),
    [
        (("train",), TrainSettings),
        (("load",), LoadSettings),
        (("evaluation",), EvaluationSettings),
        (("data", "augment"), Augment),
        (("data", "resize"), Resize),
        (("data",), Loading),
    ],
)
def test_kinds_of_section_match_dataclass(section, cls):
    """Kinds read for a section equal the field types of its dataclass."""
    real = {key: field.type for key, field in cls.__dataclass_fields__.items()}
    assert kinds._parameters_in(*kinds._FIELDS[section]) == real


def test_kinds_dataset_texts_are_paths():
    """Each text parameter of a dataset is a path, unless listed as no path."""
    for name in _names("tiekd.data.datasets"):
        for key, kind in kinds._parameters_of_build("data/datasets", name).items():
            if kinds.is_text(kind) and key not in NO_PATHS:
                assert kinds.is_path(kinds.kind_of(("data", key), {"data": {"name": name}})), (
                    name,
                    key,
                )


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("work_dir", Path),
        ("data", dict | list[dict]),
        ("data.name", str),
        ("data.root", Path),
        ("data.kb_crop", tuple[int, int] | None),
        ("data.workers", int),
        ("data.augment.sizes", str),
        ("data.nonsense", Any),
        ("data.root.nonsense", Any),
        ("network.encoder.pretrained", Path),
        ("network.encoder.widths", Any),
        ("network.max_depth", float),
        ("network.head.target", str),
        ("teacher.maps", Path),
        ("teacher.network.encoder.pretrained", Path),
        ("teachers", list[dict]),
        ("losses.dpm.weight", float),
        ("losses.depth.name", str),
        ("losses.depth.reduce", str),
        ("losses.depth.against", str),
        ("log.exp_name", str | None),
        ("hooks", list[dict]),
        ("load.ignore", Sequence[str]),
        ("optimizer.lr", Any),
        ("nonsense.x", Any),
    ],
)
def test_kind_of_key(key, kind):
    """`kind_of` gives the type of a dotted recipe key, and Any for an unknown one."""
    recipe = load_recipe(RECIPES / "demo.yaml")
    recipe["data"]["name"] = "kitti"
    assert kinds.kind_of(key.split("."), recipe) == kind


MINE = """
raise SystemExit("this file was run")

import pathlib
import torch_that_is_not_there
from typing import List, Literal, Optional, Union


class Base:
    def __init__(
        self,
        root: "pathlib.Path",
        label: str,
        sizes: List[int],
        unsaid,
        mode: Literal["a", "b"] = "a",
    ):
        pass


class Mine(Base):
    size: Optional[int] = None


def build(
    *,
    files: list[pathlib.Path],
    count: int | None = 3,
    either: Union[str, float] = "x",
    odd: int[str] = 1,
):
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a package that ends the process when it is run."""
    monkeypatch.setattr(external, "_recipe_folders", [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts_unrun").mkdir()
    (tmp_path / "my_parts_unrun/__init__.py").write_text(
        "raise SystemExit('this package was run')\n"
    )
    (tmp_path / "my_parts_unrun/part.py").write_text(MINE)
    (tmp_path / "my_parts_unrun/other.py").write_text(
        MINE.replace("def build", "def unused") + "\nbuild = Mine\n"
    )
    (tmp_path / "my_parts_unrun/broken.py").write_text("def build(:\n")
    yield tmp_path
    assert not [name for name in sys.modules if name.startswith("my_parts_unrun")]


@pytest.mark.usefixtures("mine")
def test_kind_of_external_part_is_parsed_not_run():
    """The kinds of an external part come from its source, which is never imported."""
    recipe = {
        "losses": {
            "mine": {"name": "my_parts_unrun.part"},
            "other": {"name": "my_parts_unrun.other"},
        }
    }
    of = lambda *key: kinds.kind_of(("losses", *key), recipe)  # noqa: E731
    assert (of("mine", "files"), of("mine", "files", 0), of("mine", "count")) == (
        list[Path],
        Path,
        int | None,
    )
    assert (of("mine", "either"), of("mine", "odd"), of("mine", "weight")) == (
        str | float,
        Any,
        float,
    )
    assert (of("other", "root"), of("other", "label"), of("other", "sizes")) == (
        Path,
        str,
        list[int],
    )
    assert (of("other", "unsaid"), of("other", "mode"), of("other", "size")) == (
        Any,
        str,
        int | None,
    )
    for name in (
        "my_parts_unrun.broken",
        "my_parts_unrun.nothing",
        "no.such",
        "..x",
        "/etc/passwd",
        3,
        None,
        ["a.b"],
    ):
        assert kinds.kind_of(("losses", "x", "y"), {"losses": {"x": {"name": name}}}) is Any


def test_overrides_follow_external_part_kinds(mine, monkeypatch):
    """`--set` values and `~` are read by the kinds that an external part declares."""
    monkeypatch.setenv("HOME", "/home/of/mine")
    (mine / "r.yaml").write_text("losses: {mine: {name: my_parts_unrun.other, root: ~/a}}\n")
    given = [
        "losses.mine.label=1e3",
        "losses.mine.unsaid=1e3",
        "losses.mine.size=3",
        "losses.mine.mode=no # x",
    ]
    assert load_recipe("r.yaml", given)["losses"]["mine"] == {
        "name": "my_parts_unrun.other",
        **{
            "root": "/home/of/mine/a",
            "label": "1e3",
            "unsaid": 1000.0,
            "size": 3,
            "mode": "no # x",
        },
    }
    node = "losses={mine: {name: my_parts_unrun.part, files: [~/a, b~], either: ~/c}}"
    assert load_recipe("r.yaml", [node])["losses"]["mine"]["files"] == ["/home/of/mine/a", "b~"]
    assert load_recipe("r.yaml", [node])["losses"]["mine"]["either"] == "~/c"


def test_build_passes_paths_as_path(tmp_path, monkeypatch):
    """`build` passes a Path where one is annotated, and rejects values that are no text."""
    (tmp_path / "given_paths.py").write_text("")
    (tmp_path / "given_paths_of").mkdir()
    (tmp_path / "given_paths_of/part.py").write_text(
        "from pathlib import Path\n"
        "def build(root: Path, other: str | Path, files: list[Path] = (),\n"
        "          depths: Path | None = None):\n"
        "    return root, other, files, depths\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"name": "given_paths_of.part", "root": "a", "other": "b", "files": ["c"]}
    assert build(node, "tiekd.losses", "here") == (Path("a"), "b", [Path("c")], None)
    assert build(node | {"depths": "d"}, "tiekd.losses", "here")[3] == Path("d")
    for wrong in ({"root": 3}, {"other": 3}, {"files": [3]}, {"depths": True}):
        with pytest.raises(ValueError, match="it must be (a list, each )?text"):
            build(node | wrong, "tiekd.losses", "here")
    assert settings({"load": {"checkpoint": "a"}}, "load", LoadSettings).checkpoint == "a"


@pytest.mark.parametrize("several", [("teachers",), ("teacher", "teachers")])
def test_kind_of_key_of_several_teachers(several):
    """An entry of several teachers has the keys of a teacher, and weight and sigma."""
    entries = [{"maps": "a"}, {"name": "exported"}]
    recipe = {"teachers": entries}
    if len(several) > 1:
        recipe = {"teacher": {"name": "average", "teachers": entries}}
        assert kinds.kind_of(several, recipe) == list[dict]
        assert kinds.kind_of(("teacher", "weights"), recipe) is str
    of = {
        (0, "maps"): Path,
        (0, "weight"): float,
        (0, "network", "encoder", "pretrained"): Path,
        (1, "file"): Path,
        (1, "sigma"): float | dict | None,
        (1, "nonsense"): Any,
    }
    assert {key: kinds.kind_of((*several, *key), recipe) for key in of} == of
