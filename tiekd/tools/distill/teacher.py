"""Reads `--teacher` and `--teacher-set`: a recipe's section `teacher` from a path or a name.

    stereo                              a second camera
    model.onnx, model.pt2               an exported network
    a folder with config.json           a model of transformers
    a folder with config.yaml           a work dir of tiekd: its network and its weights
    a YAML file with teacher(s) alone   that section
    another YAML file, or a name        a recipe of tiekd: its teacher or else its network is meant,
                                        as by bin/cache_teacher.py

Nothing is loaded here but YAML. `check` refuses an option that the teacher's kind doesn't have or
that is missing, with the messages of a recipe.
"""

from collections.abc import Sequence
from pathlib import Path

from tiekd.config import build, shipped
from tiekd.config.recipe import load_recipe, merged, overridden
from tiekd.config.teacher_node import TeacherList
from tiekd.errors import TeacherError

STEREO = "stereo"
_EXPORTED = (".onnx", ".pt2")
# What a teacher's `build` gets from the program.
_GIVEN = ("run_device", "max_depth_m")
_SECTIONS = ("teacher", "teachers")
# Keys whose values are paths if a file or folder is there. They start at the folder in which the
# command was given, so they are made absolute: the recipe may be used elsewhere.
_PATHS = ("model", "file", "checkpoint", "maps", "calibration")


def parse(given: str, options: Sequence[str] = ()) -> dict:
    """Returns the section of a recipe that describes a teacher.

    Args:
        given: The value of --teacher.
        options: The values of --teacher-set, each `KEY=VALUE`, where KEY is below `teacher`.

    Returns:
        `{"teacher": {...}}` or `{"teachers": [...]}`.

    Raises:
        UserError: Nothing is called like this, or an option is malformed.
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
    """Raises UserError for a key that the teacher's kind doesn't have, or that it needs and lacks.

    Args:
        section: `{"teacher": {...}}` or `{"teachers": [...]}`.
    """
    teachers = TeacherList.of(section)
    if not teachers.is_given:
        raise TeacherError("--teacher: its node `teacher` is empty; give a teacher's keys")
    teachers.check()
    for node in teachers.nodes:
        if node.kind is not None:
            build.check(node.part, "tiekd.teachers", node.where, _GIVEN)


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
    node = merged(path)
    section = {key: node[key] for key in _SECTIONS if node.get(key)}
    if section:
        return section
    if not load_recipe(path).get("network"):
        raise TeacherError(
            f"--teacher: {path} has neither `teacher` nor `network`; give a recipe that has one"
        )
    return {"teacher": {"recipe": str(path.resolve())}}


def _with_options(section: dict, options: Sequence[str]) -> dict:
    """Returns the section with the values of --teacher-set, which are read like those of --set.

    Args:
        section: The section.
        options: The values, each `KEY=VALUE`.
    """
    if "teachers" in section:
        raise TeacherError(
            "--teacher-set: there are several teachers; write their options into the file"
        )
    return overridden(section, [f"teacher.{option}" for option in options])


def _absolute(node: object) -> object:
    """Returns a node in which paths of what exists are absolute.

    Args:
        node: A section, a list of sections, or a value in one.
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
