"""Writes the two recipes of a distillation, teacher.yaml and recipe.yaml in the folder of --out.

teacher.yaml is used to check the images, audit the teacher and cache its depth maps. recipe.yaml
trains, evaluates and exports the student with these maps. Both are computed from the plan alone.
They are short, since they inherit from files of model_configs/_base_/ (`_base_`), and the user may
edit and use them by hand.
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
_EVALUATIONS = 10  # number of evaluations during a training
_EMA = 0.999
_WORKERS = 4  # largest number of data workers per rank
_LINE = 100


def teacher_recipe(plan: Plan, out: Path, teacher: dict, student: str = family.DEFAULT) -> dict:
    """Returns the recipe with which images are checked, the teacher audited, and its maps cached.

    Args:
        plan: The plan.
        out: The folder of --out.
        teacher: The recipe's section of the teacher, `{"teacher": {...}}` or `{"teachers": [...]}`.
        student: Name of the student whose network the recipe gets. Caching doesn't depend on it, so
            any name can be given before the student is chosen.
    """
    member = family.find(student)
    return {
        "_base_": [_DATA, member.base, _SCHEDULE],
        "data": _data(plan, out),
        "network": family.network_of(member, plan.max_depth, plan.init == "random"),
        "losses": {"dpm": {"weight": 1.0}, "silog": {"weight": 1.0}},
        # Switch flip averaging off, since the exported file doesn't use it either.
        "evaluation": {"against": "teacher", "flip": False},
        **_without_audit(teacher, plan),
    }


def student_recipe(plan: Plan, out: Path) -> dict:
    """Returns the student's recipe, a dict, with cached maps in place of the teacher.

    Args:
        plan: The plan, in which no value of the training is None any more.
        out: The folder of --out.
    """
    recipe = teacher_recipe(plan, out, with_cached_maps(plan, out), plan.student)
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


def with_cached_maps(plan: Plan, out: Path) -> dict:
    """Returns the recipe's section of the teacher, with each network replaced by its cached maps.

    Args:
        plan: The plan.
        out: The folder of --out.

    Returns:
        `{"teacher": {"maps": FOLDER, ...}}`; `{"teachers": [...]}` with such entries if the student
        learns from several teachers.
    """
    teachers = TeacherList.of(plan.teacher)
    if teachers.several is None:
        return {"teacher": _maps_node(teachers.nodes[0], out.absolute() / MAPS)}
    folders = maps_folders(out)
    entries = [
        _maps_node(node, folder) for node, folder in zip(teachers.nodes, folders, strict=True)
    ]
    if teachers.several == "teachers":
        return {"teachers": entries}
    return {"teacher": plan.teacher["teacher"] | {"teachers": entries}}


def maps_folders(out: Path) -> list[Path]:
    """Returns the folder of cached maps of each of several teachers, in the order of teacher.yaml.

    The folders are in OUT/maps and named as bin/cache_teacher.py names them. For a teacher that the
    user gave as a folder of maps, it is that folder.

    Args:
        out: The folder of --out, called OUT here.
    """
    from tiekd.config.recipe import load_recipe
    from tiekd.tools import cache_teacher
    from tiekd.training.settings import Recipe

    path = out / TEACHER
    recipe = Recipe(load_recipe(path))
    all_settings = cache_teacher.settings_of_teachers(recipe, path, None)
    folders = cache_teacher.folders_of(recipe, all_settings, path, "train", out.absolute() / MAPS)
    map_folders = {
        settings.teacher.where: folder
        for settings, folder in zip(all_settings, folders, strict=True)
    }
    return [map_folders.get(node.where, Path(node.maps or "")) for node in recipe.teachers.nodes]


def write(recipe: dict, path: Path, purpose: str) -> None:
    """Writes a recipe to a YAML file, atomically.

    Args:
        recipe: The recipe.
        path: The file.
        purpose: Text of the comment in the file's first line.
    """
    replace_text(path, text_of(recipe, purpose))


def text_of(recipe: dict, purpose: str) -> str:
    """Returns a recipe as the text of a YAML file.

    Args:
        recipe: The recipe.
        purpose: Text of the comment in the first line.
    """
    head = f"# {purpose}\n# Written by `distill` from plan.yaml.\n"
    return head + recipe_yaml.dump(recipe, width=_LINE)


def _maps_node(node, folder: Path) -> dict:
    """Returns the recipe node of a teacher with cached maps, in place of that of the network.

    Args:
        node: The TeacherNode of the teacher.
        folder: The folder of its maps; not used if the teacher is a folder of maps itself.

    Returns:
        A dict with "maps", and "weight" and "sigma" if the teacher has them. "sigma" is kept only
        if it is a number, since a sigma per pixel is cached together with the maps.
    """
    entry = {"maps": node.maps or str(folder)}
    entry |= {key: node.node[key] for key in ("weight",) if key in node.node}
    if isinstance(node.node.get("sigma"), int | float):
        entry["sigma"] = node.node["sigma"]
    return entry


def _without_audit(teacher: dict, plan: Plan) -> dict:
    """Returns the recipe's section of the teacher, without audits if `plan.audit` is False.

    Args:
        teacher: The section, `{"teacher": {...}}` or `{"teachers": [...]}`.
        plan: The plan. Its `audit` is False if the user gave --accept-audit.
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
        # Choose the number of data workers by the number of cores. It doesn't affect what is
        # learned.
        "workers": max(1, min(_WORKERS, len(os.sched_getaffinity(0)) // plan.ranks)),
        # Disable random crops and batches by image size: `resize` gives all images one size.
        "augment": {"sizes": None, "crop": None},
    }
    if plan.depth is not None:
        # Allow images without a depth map, which `unmatched: allow` does.
        data |= {"depth_unit": plan.depth_unit, "unmatched": "allow"}
    if plan.intrinsics is not None:
        data["intrinsics"] = plan.intrinsics
    if plan.size is not None:
        height, width = plan.size
        data["resize"] = {"height": height, "width": width, "mode": plan.resize_mode}
    return data
