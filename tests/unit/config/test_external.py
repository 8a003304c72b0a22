"""Finding the modules that a recipe names.

They are looked for on Python's path, in the current folder and beside the recipe, in this order.
"""

import sys

import pytest

from tiekd.config import external
from tiekd.config.recipe import load_recipe
from tiekd.workdir import launch_record


@pytest.fixture(autouse=True)
def untouched(monkeypatch, tmp_path):
    """Restores Python's path, its modules and the known recipes.

    The current folder is an empty one.
    """
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(external, "_recipe_folders", [])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def write(folder, name, text=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("package", ["with_init", "without_init"])
def test_import_module_package_in_current_folder(tmp_path, package):
    """A package in the current folder is found, with or without an `__init__.py`."""
    name = f"{package}_of_mine.part"
    for folder in ("recipes", "here"):
        write(tmp_path / folder, f"{name.replace('.', '/')}.py", f"place = {folder!r}")
        if package == "with_init":
            write(tmp_path / folder, f"{package}_of_mine/__init__.py")
    assert external.import_module(name).place == "here"


def test_import_module_recipe_folder_after_load(tmp_path):
    """The recipe's folder is searched only after a recipe has been loaded from it."""
    write(
        tmp_path / "recipes",
        "only_there/part.py",
        "from only_there import other\nplace = other.place",
    )
    write(tmp_path / "recipes", "only_there/other.py", "place = 'recipes'")
    recipe = write(tmp_path / "recipes", "r.yaml", "log: {interval: 1}")
    assert external.import_module("only_there.part") is None
    load_recipe(recipe)
    assert external.import_module("only_there.part").place == "recipes"


@pytest.mark.parametrize("place", ["recipes", "started_in"])
def test_import_module_saved_recipe_uses_launch_folders(tmp_path, monkeypatch, place):
    """For a saved recipe, the original recipe's and the launch folder are searched."""
    write(tmp_path / place, f"of_a_run_in_{place}/part.py", "found = True")
    saved = write(tmp_path / "work", "config.yaml", "log: {interval: 1}")
    for name, value in {"WORLD_SIZE": "1", "MASTER_PORT": "1", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "started_in").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "started_in")
    launch_record.write(tmp_path / "work", tmp_path / "recipes" / "mine.yaml")
    monkeypatch.chdir(tmp_path / "here")
    load_recipe(saved)
    assert external.import_module(f"of_a_run_in_{place}.part").found


def test_import_module_appends_folder_to_sys_path(tmp_path):
    """The folder is appended to sys.path, last, and hides no installed package."""
    before = list(sys.path)
    write(tmp_path / "here", "json/mine.py", "place = 'here'")
    write(tmp_path / "here", "torch.py", "raise AssertionError('hides an installed package')")
    assert external.import_module("nothing_here.at_all") is None
    assert external.import_module("json.mine") is None
    assert sys.path in (before, [*before, str(tmp_path / "here")])
    write(tmp_path / "here", "such_a_package/__init__.py")
    assert external.import_module("such_a_package").__file__.startswith(str(tmp_path / "here"))
    assert sys.path == [*before, str(tmp_path / "here")]


def test_import_module_keeps_import_errors(tmp_path):
    """An ImportError raised inside the module reaches the caller."""
    write(tmp_path / "here", "broken_one/part.py", "import no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        external.import_module("broken_one.part")


@pytest.mark.parametrize("name", ["", ".", "..x", "a.", "a b.c", "../etc/passwd"])
def test_import_module_malformed_name_is_none(name):
    """A string that is no dotted module name gives None."""
    assert external.import_module(name) is None
