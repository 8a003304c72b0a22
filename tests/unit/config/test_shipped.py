"""What a wheel has beside the code, where it is found, and what a user is told to type."""

import ast
import re
import runpy
from pathlib import Path

import pytest
import setuptools

from tiekd import __version__, console
from tiekd.config import shipped
from tiekd.config.provenance import annotated
from tiekd.config.recipe import load_recipe
from tiekd.engine.config import read_engine_config
from tiekd.errors import LaunchError, RecipeError
from tiekd.evaluation import compare
from tiekd.tools import arguments
from tiekd.tools.experiment import spec as specs

ROOT = Path(__file__).parents[3]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder outside the checkout."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that isn't a checkout: the folders are below tiekd/share, as in a wheel."""
    share = tmp_path / "site" / "tiekd" / "share"
    share.mkdir(parents=True)
    for kind in (shipped.PROGRAMS, shipped.RECIPES, shipped.ENGINE_CONFIGS):
        (share / kind).symlink_to(ROOT / kind)
    monkeypatch.setattr(console, "SHARE", share)
    return share


def wheel_files(monkeypatch) -> set[str]:
    """The paths of the files that setup.py puts into a wheel; nothing is built."""
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path("setup.py")
    assert given["version"] == __version__
    assert given["entry_points"] == {
        "console_scripts": ["tiekd = tiekd.tools.console_command:main"]
    }
    distribution = setuptools.Distribution(given | {"script_name": "setup.py"})
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    lib = Path(build.build_lib)
    return {str(Path(path).relative_to(lib)) for path in build.get_outputs(include_bytecode=0)}


def test_wheel_has_code_and_shared_files(monkeypatch):
    """A wheel has every module, recipe, engine config and Python program, and the type marker."""
    found = wheel_files(monkeypatch)
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "tiekd").rglob("*.py")}
    shared = [*(ROOT / "model_configs").rglob("*.yaml"), *(ROOT / "ds_configs").glob("*.json")]
    shared += [path for path in (ROOT / "bin").glob("*") if path.suffix == ".py"]
    shared += [ROOT / "bin/resume", ROOT / "model_configs/TEACHERS.md"]
    assert len(shared) > 140
    shared = {f"tiekd/share/{path.relative_to(ROOT)}" for path in shared}
    assert code | shared | {"tiekd/py.typed", "tiekd/tools/TEACHER_AUDIT.md"} <= found
    assert not [path for path in found if path.startswith("tests") or "__pycache__" in path]


def test_wheel_has_nothing_of_an_earlier_build(tmp_path, monkeypatch):
    """What an earlier build has left in the checkout isn't packed again."""
    left = tmp_path / "build" / "lib" / "tiekd" / "share" / "model_configs" / "gone.yaml"
    left.parent.mkdir(parents=True)
    left.write_text("")
    (tmp_path / "tiekd").mkdir()
    for name in ("setup.py", "README.md", "tiekd/__init__.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(setuptools, "setup", lambda **given: None)
    runpy.run_path(str(tmp_path / "setup.py"))
    assert not left.exists()


def test_folders_of_checkout_and_wheel(installed, monkeypatch):
    """The folders are beside the package in a checkout and inside it in a wheel."""
    assert not console.is_checkout()
    assert shipped.folder("bin") == installed / "bin"
    assert shipped.shown_folder("ds_configs") == f"{installed / 'ds_configs'}/"
    monkeypatch.setattr(console, "SHARE", ROOT / "tiekd" / "share")
    assert console.is_checkout()
    assert shipped.folder("bin") == ROOT / "bin"
    assert shipped.shown_folder("ds_configs") == "ds_configs/"


def test_recipes_are_found_by_name(elsewhere, installed):
    """A name, a path in model_configs and a path through it lead to the package's recipe."""
    recipes = installed / "model_configs"
    light = recipes / "students" / "tiekd_light_bts_kitti.yaml"
    for given in (
        *("tiekd_light_bts_kitti", "tiekd_light_bts_kitti.yaml"),
        *("students/tiekd_light_bts_kitti", "model_configs/students/tiekd_light_bts_kitti.yaml"),
        "../model_configs/students/tiekd_light_bts_kitti.yaml",
    ):
        assert shipped.find("model_configs", given) == light, given
    assert shipped.find("model_configs", "_base_/datasets/folder") == (
        recipes / "_base_" / "datasets" / "folder.yaml"
    )
    assert shipped.find("ds_configs", "fp16") == installed / "ds_configs" / "fp16.json"
    # What isn't there stays as it was given, for the error about it.
    for given in ("folder", "../demo", str(elsewhere / "demo"), "x/demo", "", "model_configs"):
        assert shipped.find("model_configs", given) == Path(given), given


def test_experiments_are_found_by_name(elsewhere, installed):
    """A specification that comes with tiekd is found by its name, and is no recipe."""
    experiments = installed / "model_configs" / "experiments"
    for given in ("demo", "demo.yaml", "model_configs/experiments/demo", "experiments/demo.yaml"):
        assert arguments.experiment_argument(given) == experiments / "demo.yaml", given
    assert specs.read(experiments / "demo.yaml").recipe_of("silog").is_file()
    assert shipped.find(shipped.RECIPES, "demo") == installed / "model_configs" / "demo.yaml"
    assert "demo" in shipped.names(shipped.EXPERIMENTS)
    with pytest.raises(RecipeError, match="demoo: no such specification; near it: demo"):
        specs.read(arguments.experiment_argument("demoo"))
    (elsewhere / "demo.yaml").write_text("")
    assert arguments.experiment_argument("demo") == Path("demo.yaml")


def test_recipe_of_user_comes_first(elsewhere):
    """A file of the user's, also a broken one, hides the package's; a folder doesn't."""
    ours = ROOT / "model_configs" / "demo.yaml"
    (elsewhere / "demo").mkdir()
    assert shipped.find("model_configs", "demo") == ours
    (elsewhere / "demo.yaml").symlink_to("nowhere")
    assert shipped.find("model_configs", "demo") == Path("demo.yaml")
    (elsewhere / "demo").rmdir()
    (elsewhere / "demo").write_text("network: {}\n")
    assert shipped.find("model_configs", "demo") == Path("demo")
    assert shipped.find("model_configs", "demo", ROOT) == ours


def test_every_recipe_has_its_own_name():
    """No two recipes have one name, so a name says which is meant."""
    recipes = [
        path
        for path in (ROOT / "model_configs").rglob("*.yaml")
        if not {"_base_", "experiments"} & {*path.parts}
    ]
    assert sorted(shipped.names("model_configs").values()) == sorted(recipes)


@pytest.mark.usefixtures("elsewhere")
def test_names_are_taken_where_recipes_are():
    """load_recipe, bases, teacher.recipe, --against and engine configs take names."""
    demo = load_recipe(ROOT / "model_configs" / "demo.yaml")
    assert load_recipe("demo") == demo
    assert annotated("demo") == annotated(ROOT / "model_configs" / "demo.yaml")
    Path("mine.yaml").write_text(
        "_base_: [../model_configs/demo_teacher.yaml, _base_/networks/light_kitti.yaml]\n"
        "teacher: {recipe: bts_r50_kitti}\n"
    )
    mine = load_recipe("mine")
    assert mine["network"]["decoder"] != demo["teacher"]["network"]["decoder"]
    assert mine["teacher"]["recipe"] == str(ROOT / "model_configs/teachers/bts_r50_kitti.yaml")
    assert compare.recipe_and_checkpoint("demo:x.pth") == (
        str(ROOT / "model_configs/demo.yaml"),
        "x.pth",
    )
    assert compare.recipe_and_checkpoint("demo")[0] == str(ROOT / "model_configs/demo.yaml")
    assert read_engine_config("fp32") == read_engine_config(None)
    with pytest.raises(LaunchError, match="fp99: no such file; .*of tiekd: bf16_autocast, "):
        read_engine_config("fp99")
    with pytest.raises(RecipeError, match="no such recipe; near it: tiekd_light_bts_kitti"):
        load_recipe("tiekd_light_bts_kity")


@pytest.mark.usefixtures("installed")
def test_commands_are_spelled_for_checkout_and_wheel(monkeypatch):
    """A command is `tiekd X` in a wheel and after `tiekd`, and `bin/X` in a checkout."""
    monkeypatch.delenv(console.CONSOLE, raising=False)
    assert console.command("cache_teacher") == "tiekd cache-teacher"
    monkeypatch.setattr(console, "SHARE", ROOT / "tiekd" / "share")
    assert console.command("cache_teacher") == "bin/cache_teacher.py"
    assert console.command("resume") == "bin/resume"
    assert console.respelled("python bin/train.py RECIPE") == "python bin/train.py RECIPE"
    monkeypatch.setenv(console.CONSOLE, "1")
    assert console.command("resume") == "tiekd resume"
    assert shipped.shown_folder("ds_configs") == f"{ROOT / 'ds_configs'}/"


@pytest.mark.usefixtures("installed")
def test_descriptions_of_programs_are_respelled():
    """In a wheel the help of every program names only commands that are there."""
    programs = shipped.programs()
    assert len(programs) >= 14
    assert programs["resume"].name == "resume"
    for name, path in programs.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        told = arguments.new_parser(text).format_help()
        assert not re.search(r"\bbin/|deepspeed --|model_configs/|python ", told), name
        assert f"tiekd {name} " in told, name
    assert "tiekd train tiekd_light_bts_kitti --num_gpus 2\n" in console.respelled(
        ast.get_docstring(ast.parse(programs["train"].read_text(encoding="utf-8")))
    )


def test_no_message_spells_a_program_itself():
    """In tiekd/ only docstrings name programs as files; messages take them from `command`."""
    named = re.compile(r"\bbin/(" + "|".join(path.stem for path in programs_of_bin()) + r")\b")
    found = []
    for file in (ROOT / "tiekd").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text if named.search(text) else "")
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, documented)
        }
        found += [
            f"{file.name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value not in docstrings
            and named.search(node.value)
        ]
    assert found == []


def programs_of_bin() -> list[Path]:
    return [*(ROOT / "bin").glob("*.py"), ROOT / "bin" / "resume"]
