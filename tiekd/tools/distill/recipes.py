"""Writes the two recipes of a distillation: OUT/teacher.yaml and OUT/recipe.yaml.

The first is for checking the data, auditing the teacher and caching its maps; the second, which
learns from the maps, for training, evaluation and export. Both follow from the plan alone and are
short files on the shipped pieces, to be edited and used by hand.
"""

import os
from pathlib import Path

from tiekd.config import recipe_yaml
from tiekd.config.teacher_node import TeacherList
from tiekd.files import replace_text
from tiekd.tools.distill import family
from tiekd.tools.distill.images import IMAGES
from tiekd.tools.distill.plan import Plan

TEACHER, STUDENT, MAPS, RUN = "teacher.yaml", "recipe.yaml", "maps", "run"
_DATA, _SCHEDULE = "_base_/datasets/folder.yaml", "_base_/schedules/one_cycle_24e.yaml"
_EVALUATIONS = 10  # in a training
_EMA = 0.999
_WORKERS = 4  # at most, of each rank
_LINE = 100


def teacher_recipe(plan: Plan, out: Path, teacher: dict, student: str = family.DEFAULT) -> dict:
    """Returns the recipe of the stages before the training.

    Args:
        plan: The plan.
        out: The folder of the distillation.
        teacher: The section of the teacher, `{"teacher": {...}}` or `{"teachers": [...]}`.
        student: The student's name. These stages don't depend on it, so it isn't the chosen one.
    """
    member = family.find(student)
    return {
        "_base_": [_DATA, member.base, _SCHEDULE],
        "data": _data(plan, out),
        "network": family.network_of(member, plan.max_depth, plan.init == "random"),
        "losses": {"dpm": {"weight": 1.0}, "silog": {"weight": 1.0}},
        # Without flip averaging, as the exported file computes depth.
        "evaluation": {"against": "teacher", "flip": False},
        **_unaudited(teacher, plan),
    }


def student_recipe(plan: Plan, out: Path) -> dict:
    """Returns the recipe of the student, which learns from the cached maps.

    Args:
        plan: The plan, in which everything is chosen.
        out: The folder of the distillation.
    """
    recipe = teacher_recipe(plan, out, cached(plan, out), plan.student)
    epochs = plan.epochs
    length = {"epochs": epochs} if epochs else {"epochs": None, "iterations": plan.iterations}
    recipe["train"] = {"batch_size": plan.batch_size, "seed": plan.seed, **length}
    if epochs:
        recipe["evaluation"] |= {"interval": -(-epochs // _EVALUATIONS), "by": "epoch"}
    else:
        every = max(1, plan.iterations // _EVALUATIONS)
        recipe["evaluation"] |= {"interval": every, "by": "iteration"}
    recipe["checkpoint"] = {"interval": plan.checkpoint_every, "by": "iteration", "keep_last": 2}
    recipe["hooks"] = [{"name": "ema", "decay": _EMA}]
    if plan.patience is not None:
        recipe["hooks"].append({"name": "early_stop", "patience": plan.patience})
    if plan.init not in (None, "random"):
        recipe["load"] = {"checkpoint": plan.init}
    recipe["work_dir"] = str(out.absolute() / RUN)
    return recipe


def cached(plan: Plan, out: Path) -> dict:
    """Returns the section of the teacher with each network replaced by its cached maps.

    Args:
        plan: The plan.
        out: The folder of the distillation.
    """
    teachers = TeacherList.of(plan.teacher)
    if teachers.several is None:
        return {"teacher": _maps_of(teachers.nodes[0], out.absolute() / MAPS)}
    folders = maps_folders(out)
    entries = [_maps_of(node, folder) for node, folder in zip(teachers.nodes, folders, strict=True)]
    if teachers.several == "teachers":
        return {"teachers": entries}
    return {"teacher": plan.teacher["teacher"] | {"teachers": entries}}


def maps_folders(out: Path) -> list[Path]:
    """Returns the folders of the maps of several teachers, as bin/cache_teacher.py names them.

    Args:
        out: The folder of the distillation.
    """
    from tiekd.config.recipe import load_recipe
    from tiekd.tools import cache_teacher
    from tiekd.training.settings import Recipe

    path = out / TEACHER
    recipe = Recipe(load_recipe(path))
    sources = cache_teacher.sources_of(recipe, path, None)
    folders = cache_teacher.folders_of(recipe, sources, path, "train", out.absolute() / MAPS)
    made = {source.teacher.where: folder for source, folder in zip(sources, folders, strict=True)}
    return [made.get(node.where, Path(node.maps or "")) for node in recipe.teachers.nodes]


def write(recipe: dict, path: Path, purpose: str) -> None:
    """Writes a recipe, atomically.

    Args:
        recipe: The recipe.
        path: Its file.
        purpose: Its first line, a comment.
    """
    replace_text(path, text_of(recipe, purpose))


def text_of(recipe: dict, purpose: str) -> str:
    """Returns the content of a recipe's file.

    Args:
        recipe: The recipe.
        purpose: The first line, a comment.
    """
    head = f"# {purpose}\n# Written by `distill` from plan.yaml.\n"
    return head + recipe_yaml.dump(recipe, width=_LINE)


def _maps_of(node, folder: Path) -> dict:
    """Returns the section of a teacher whose maps are cached.

    A sigma per pixel is cached beside the maps; a constant one isn't, so it is repeated.

    Args:
        node: The TeacherNode.
        folder: The folder of its maps; not used if it has cached maps already.
    """
    entry = {"maps": node.maps or str(folder)}
    entry |= {key: node.node[key] for key in ("weight",) if key in node.node}
    if isinstance(node.node.get("sigma"), int | float):
        entry["sigma"] = node.node["sigma"]
    return entry


def _unaudited(teacher: dict, plan: Plan) -> dict:
    """Returns the section of the teacher, without an audit if the user has accepted it.

    Args:
        teacher: The section.
        plan: The plan.
    """
    if plan.audit:
        return teacher
    if "teachers" in teacher:
        return {"teachers": [each | {"audit": "off"} for each in teacher["teachers"]]}
    return {"teacher": teacher["teacher"] | {"audit": "off"}}


def _data(plan: Plan, out: Path) -> dict:
    data = {
        "root": str(out.absolute()),
        "images": IMAGES,
        "depths": plan.depth,
        "on_error": "skip",
        # Samples don't depend on their number.
        "workers": max(1, min(_WORKERS, len(os.sched_getaffinity(0)) // plan.ranks)),
        # Every image has one size then, so training needs neither a crop nor buckets.
        "augment": {"sizes": None, "crop": None},
    }
    if plan.depth is not None:
        # Only some images may have depth.
        data |= {"depth_unit": plan.depth_unit, "unmatched": "allow"}
    if plan.intrinsics is not None:
        data["intrinsics"] = plan.intrinsics
    if plan.size is not None:
        height, width = plan.size
        data["resize"] = {"height": height, "width": width, "mode": plan.resize_mode}
    return data
