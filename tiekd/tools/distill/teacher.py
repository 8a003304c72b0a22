"""Converts `--teacher` and `--teacher-set` to a recipe's section `teacher` or `teachers`.

    value of --teacher                  the teacher
    stereo                              stereo matching with a second camera's images
    model.onnx, model.pt2               the exported network in this file
    a folder with config.json           the transformers model in this folder
    a folder with config.yaml           network and weights of this work dir of tiekd
    a YAML file with teacher(s) alone   the section in this file
    another YAML file, or a name        the teacher of this recipe of tiekd; if it has none, the
                                        recipe's own network

Only YAML is read here; no model is loaded. `check` raises the recipe's errors for keys that are
unknown or missing for the kind of teacher.
"""

from collections.abc import Sequence
from pathlib import Path

from tiekd.config import build, shipped
from tiekd.config.recipe import apply_overrides, load_recipe, merge_files
from tiekd.config.teacher_node import TeacherList
from tiekd.errors import TeacherError

STEREO = "stereo"
_EXPORTED = (".onnx", ".pt2")
# Arguments of a teacher's `build` that the program gives, so that the section needn't have them.
_GIVEN = ("run_device", "max_depth_m")
_SECTIONS = ("teacher", "teachers")
# Keys whose values may be paths. An existing relative path is made absolute, because the recipe may
# be used in another folder.
_PATHS = ("model", "file", "checkpoint", "maps", "calibration")


def parse(given: str, options: Sequence[str] = ()) -> dict:
    """Returns the recipe's section for the teacher that the command line names.

    Args:
        given: The value of --teacher, as in the table at the top of this module.
        options: The values of --teacher-set, each `KEY=VALUE` for a key in the section `teacher`.

    Returns:
        `{"teacher": {...}}` or `{"teachers": [...]}`, with absolute paths.

    Raises:
        UserError: There is no such file, folder or recipe; an option isn't `KEY=VALUE`; or a key is
            unknown or missing.
    """
    for option in options:
        if "=" not in option or option.startswith("="):
            raise TeacherError(f"--teacher-set: got {option!r}; write KEY=VALUE, as output=metres")
    path = Path(given).expanduser()
    if given == STEREO:
        section = {"teacher": {"name": STEREO}}
    elif path.suffix.lower() in _EXPORTED:
        if not path.is_file():
            raise TeacherError(f"--teacher: no file at {path}; give an exported network")
        section = {"teacher": {"name": "exported", "file": str(path)}}
    elif path.is_dir():
        section = {"teacher": _of_folder(path)}
    else:
        section = _of_recipe(given)
    if options:
        section = _with_options(section, options)
    section = {key: _absolute(value) for key, value in section.items()}
    check(section)
    return section


def check(section: dict) -> None:
    """Checks the keys of a recipe's section for a teacher, without loading the teacher.

    Args:
        section: `{"teacher": {...}}` or `{"teachers": [...]}`.

    Raises:
        UserError: The section is empty, or a key is unknown or missing for the kind of teacher.
    """
    teachers = TeacherList.of(section)
    if not teachers.is_given:
        raise TeacherError("--teacher: its node `teacher` is empty; give a teacher's keys")
    teachers.check()
    for node in teachers.nodes:
        if node.kind is not None:
            build.check(node.own_section, "tiekd.teachers", node.where, _GIVEN)


def is_cached(section: dict) -> bool:
    """Returns True if all teachers are folders of cached maps already.

    Args:
        section: `{"teacher": {...}}` or `{"teachers": [...]}`.
    """
    return all(node.maps is not None for node in TeacherList.of(section).nodes)


def _of_folder(path: Path) -> dict:
    if (path / "config.json").is_file():
        return {"name": "huggingface", "model": str(path)}
    if (path / "config.yaml").is_file():
        return {"recipe": str(path.resolve() / "config.yaml"), "checkpoint": str(path)}
    raise TeacherError(
        f"--teacher: {path} has neither config.json, as a model of transformers has, nor "
        "config.yaml, as a work dir of tiekd has; give such a folder"
    )


def _of_recipe(given: str) -> dict:
    path = shipped.find(shipped.RECIPES, Path(given).expanduser())
    if not path.is_file():
        raise TeacherError(
            f"--teacher: nothing is called {given}; give a recipe of tiekd (a YAML file or a "
            "name), a folder of a transformers model, an .onnx or .pt2 file, stereo, or a YAML "
            "file with a node `teacher`"
        )
    node = merge_files(path)
    section = {key: node[key] for key in _SECTIONS if node.get(key)}
    if section:
        return section
    if not load_recipe(path).get("network"):
        raise TeacherError(
            f"--teacher: {path} has neither `teacher` nor `network`; give a recipe that has one"
        )
    return {"teacher": {"recipe": str(path.resolve())}}


def _with_options(section: dict, options: Sequence[str]) -> dict:
    """Returns a recipe's section for a teacher with the values of --teacher-set applied.

    Args:
        section: `{"teacher": {...}}`.
        options: The values, each `KEY=VALUE`, read like those of --set.

    Raises:
        TeacherError: The section has several teachers, so it isn't clear which one is meant.
    """
    if "teachers" in section:
        raise TeacherError(
            "--teacher-set: there are several teachers; write their options into the file"
        )
    return apply_overrides(section, [f"teacher.{option}" for option in options])


def _absolute(node: object) -> object:
    """Returns a copy of a part of a recipe in which relative paths of existing files are absolute.

    Only the values of the keys _PATHS are taken as paths.

    Args:
        node: A dict, a list of dicts, or a value; other values than dicts and lists are returned
            unchanged.
    """
    if isinstance(node, list):
        return [_absolute(each) for each in node]
    if not isinstance(node, dict):
        return node
    found = {key: _absolute(value) for key, value in node.items()}
    for key in _PATHS:
        value = found.get(key)
        if isinstance(value, str) and Path(value).expanduser().exists():
            found[key] = str(Path(value).expanduser().absolute())
    return found
