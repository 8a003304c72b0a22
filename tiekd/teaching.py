"""Builds the teacher or the teachers of a recipe, which give the depth that the student learns.

A teacher is a frozen network of the project, cached depth maps, the ground truth, a published
network that a module in tiekd/teachers/ runs, or the user's own code outside the project. All
classes of teachers are in tiekd/teachers/. Each is a callable from a batch to the target depth, (B,
1, H, W) float32, metres, 0 in pixels that aren't valid, or to a `Target`. A teacher's network is
not part of the DeepSpeed engine: otherwise ZeRO would shard the teacher, the engine's `train()`
would update its BatchNorm statistics, and every checkpoint would contain its weights.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from tiekd import console
from tiekd.config import data_sets
from tiekd.config.build import build
from tiekd.config.data_sets import errors_of_set
from tiekd.config.recipe import load_recipe, work_dir_of
from tiekd.config.teacher_node import TeacherList, TeacherNode, errors_of
from tiekd.data import learned_from, teacher_maps
from tiekd.data import resize as resizes
from tiekd.data.resize import Resize
from tiekd.errors import CheckpointError, TeacherError
from tiekd.files import check_readable
from tiekd.models import canonical
from tiekd.models.build import build_network
from tiekd.models.weights import state_dicts
from tiekd.teachers.average import Average
from tiekd.teachers.external import OutsideTeacher
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.mixture import Member, Mixture, Teacher, members_of
from tiekd.teachers.network import FrozenTeacher, check_precision
from tiekd.teachers.outputs import digest as digests
from tiekd.teachers.outputs.sigma import options_of
from tiekd.teachers.outputs.teacher import FoundationTeacher
from tiekd.teachers.per_set import PerSet, SetTeacher
from tiekd.teachers.stereo import StereoTeacher
from tiekd.workdir import workdir
from tiekd.workdir.checkpoints import find_weights


def build_teachers(recipe: dict, device: torch.device, max_depth_m: float) -> Teacher:
    """Builds what the student of a recipe learns from: one or several teachers, or ground truth.

    Args:
        recipe: The recipe.
        device: The device on which teachers run.
        max_depth_m: The largest depth that the student predicts, in metres.

    Returns:
        The teacher that the recipe's section `teacher` describes, which may be an `Average` of
        several teachers; or a `Mixture` of the teachers in the section `teachers`.
        `tiekd.teachers.mixture.members_of` returns the single teachers.

    Raises:
        TeacherError: A section is wrong, there are no weights, or they are of another network. The
            message names the teacher, such as `teachers[1]`.
    """
    teachers = TeacherList.of(recipe)
    if teachers.several is None:
        node = teachers.nodes[0].node if teachers.is_given else None
        return build_teacher(node, device, max_depth_m=max_depth_m)
    members = []
    for index, node in enumerate(teachers.nodes):
        map_index = teachers.map_index_of(index)
        with errors_of(node.where):
            teacher = build_teacher(
                node.own_section, device, max_depth_m=max_depth_m, map_index=map_index
            )
        members.append(Member(teacher, node.where, node.weight, node.sigma))
    mixture = Mixture(members, device)
    if teachers.several == "teachers":
        return mixture
    digest = digest_of_maps(teachers, recipe.get("data"))
    return Average(mixture, teachers.weights, teachers.sigma, digest)


def build_per_set(
    recipes: Mapping[str, dict],
    frames: Mapping[str, Dataset],
    device: torch.device,
    max_depth_m: float,
) -> PerSet:
    """Builds the teachers of several data sets; sets whose teacher is the same network share it.

    Args:
        recipes: For each data set, by its name, a recipe in which it is the only data set.
        frames: The training frames of each data set, by its name.
        device: The device on which teachers run.
        max_depth_m: The largest depth that the student predicts, in metres.

    Returns:
        A `PerSet`, which gives each image the depth of its data set's teacher.

    Raises:
        UserError: As `build_teachers` does; the message names the set.
    """
    built: dict[str, Teacher] = {}
    found = []
    # If no data set has a teacher, all learn from the ground truth, as a run with a single data set
    # does without a teacher.
    if not any(TeacherList.of(recipe).is_given for recipe in recipes.values()):
        truth = GroundTruth()
        return PerSet([SetTeacher(name, truth) for name in recipes])
    for name, recipe in recipes.items():
        teachers = TeacherList.of(recipe)
        if not teachers.is_given:
            found.append(SetTeacher(name, None))
            continue
        key = json.dumps([recipe.get("teacher"), recipe.get("teachers")], default=str)
        with errors_of_set(name):
            # Share a network between data sets, but not cached depth maps: they take no memory, and
            # each data set has folders of its own.
            if teachers.maps or key not in built:
                built[key] = build_teachers(recipe, device, max_depth_m)
        folders = getattr(frames[name], "map_folders", ())
        num_maps = len(folders) or len(teachers.maps)
        has_sigma = any(folder.sigma_scale_m is not None for folder in folders)
        found.append(SetTeacher(name, built[key], num_maps, has_sigma))
    return PerSet(found)


def digest_of_maps(teachers: TeacherList, data: Mapping | None) -> str | None:
    """Returns a digest that identifies averaged teachers with cached maps, and their weights.

    Args:
        teachers: The teachers.
        data: The recipe's section `data`, whose `root` a relative folder of maps starts from; None
            if the recipe has none.

    Returns:
        64 hexadecimal digits; None if a teacher has no cached maps, or if its maps don't record
        which network made them.
    """
    digest = hashlib.sha256(teachers.weights.encode())
    root = Path((data or {}).get("root", ".")).expanduser()
    for node in teachers.nodes:
        folder = None if node.maps is None else root / Path(node.maps).expanduser()
        manifest = None if folder is None else teacher_maps.read_manifest(folder)
        found = None if manifest is None else manifest.get("teacher_digest")
        if found is None:
            return None
        digest.update(f"{found} {node.weight} {node.sigma}".encode())
    return digest.hexdigest()


def build_teacher(
    node: dict | None,
    device: torch.device,
    resize: Resize | None = None,
    max_depth_m: float | None = None,
    map_index: int = 0,
) -> FrozenTeacher | CachedMaps | GroundTruth | OutsideTeacher | FoundationTeacher | StereoTeacher:
    """Builds the teacher that a recipe's section `teacher` describes.

    The section has one of these forms:

    - `name`: the name of a file in tiekd/teachers/, or the dotted name of a module outside the
      project. All other keys except `audit` are arguments of the module's `build`.
    - `maps`: a folder of cached depth maps.
    - `recipe` and `checkpoint`: a network of the project and its weights. The checkpoint is a file
      of weights, a checkpoint's folder, or a work dir, whose best or else latest weights are used;
      without `checkpoint` it is the work dir of the recipe. `flip` and `precision` are arguments of
      `FrozenTeacher`.

    Args:
        node: The section as a dict; None makes the ground truth the teacher.
        device: The device on which the teacher runs.
        resize: For a network of the project, how images are resized for it; None for the setting
            that is recorded with the weights or, failing that, in the teacher's recipe.
        max_depth_m: The largest depth that the student predicts, in metres; needed if `name` is a
            file in tiekd/teachers/.
        map_index: For cached maps, the teacher's index among all teachers with cached maps, from
            0.

    Returns:
        The teacher, a callable from a batch to the target depth in metres.

    Raises:
        TeacherError: The section is wrong, there are no weights, or they are of another network.
    """
    if node is None:
        return GroundTruth()
    teacher = TeacherNode(node)
    node = teacher.own_section
    if teacher.kind is not None:
        assert max_depth_m is not None
        teacher.check()
        return build(node, "tiekd.teachers", "teacher", run_device=device, max_depth_m=max_depth_m)
    # A teacher module outside the project interprets all other keys itself.
    if teacher.module is not None:
        return OutsideTeacher(teacher.module, build(node, "", "teacher", device=device), device)
    # Refuse keys on how to compute depth maps, since cached maps exist already.
    if teacher.maps is not None:
        if teacher.recipe is not None or teacher.checkpoint is not None:
            raise TeacherError(
                "teacher: has both maps and a recipe; give `maps` (cached) or `recipe` + "
                "`checkpoint`"
            )
        for key in ("flip", "precision", "sigma"):
            # A `sigma` that is one number for all pixels is allowed, since it isn't cached with the
            # depth maps.
            if key == "sigma" and not isinstance(node.get("sigma"), dict):
                continue
            if key in node:
                raise TeacherError(
                    f"teacher.{key}: cached maps stay as they were made; leave it out, or make "
                    "others with it"
                )
        sigma = options_of(node.get("sigma"))
        return CachedMaps(map_index, None if sigma is None else sigma.constant)
    if not teacher.network:
        raise TeacherError(
            "teacher: give `recipe` (and `checkpoint`) for a network, or `maps` for cached maps"
        )
    # All other teachers are networks: check the precision.
    precision = node.get("precision", "fp32")
    check_precision(precision, device)
    # Load the network's weights, and check that all tensors match.
    path = teacher_checkpoint(teacher)
    try:
        state = state_dicts.read_checkpoint(path)
        network_node = canonical.with_stored_factors(teacher.network, state, path)
        tensors = state_dicts.named_tensors(state)
    except CheckpointError as error:
        raise TeacherError(f"teacher.checkpoint: {error}") from None
    network = build_network(network_node, "teacher.network")
    try:
        state_dicts.load_into(network, tensors)
    except CheckpointError as error:
        raise TeacherError(f"teacher.checkpoint: {path}: {error}") from None
    # Unless the caller sets a resize, use the one with which the teacher was trained.
    if resize is None:
        resize = resizes.resize_of(state, _recipe_file(teacher))
    flip, sigma = node.get("flip", False), node.get("sigma")
    return FrozenTeacher(network, device, flip, precision, resize, sigma)


def records_of(
    teacher: Teacher, teachers: TeacherList, maps: Sequence[Path] = ()
) -> list[learned_from.Teacher]:
    """Returns the records of a recipe's teachers, and of the teachers that these learned from.

    A record names a network, its licence and its digest (tiekd/data/learned_from.py). Records are
    stored with the student's weights.

    Args:
        teacher: What `build_teachers` returned.
        teachers: The recipe's teachers, with the paths of networks' weights.
        maps: The folders of cached maps from which the student learns, in the order of the recipe.

    Returns:
        A list with one dict per teacher, without repetitions.
    """
    records = []
    for node, member in zip(teachers.nodes, members_of(teacher), strict=False):
        folder = None
        if isinstance(member.teacher, CachedMaps) and maps:
            folder = maps[member.teacher.map_index]
        records.append(record_of(member.teacher, node, folder))
    return learned_from.union(*records)


def record_of(
    teacher: Teacher, node: TeacherNode, maps: Path | None = None
) -> list[learned_from.Teacher]:
    """Returns the records of one teacher, and of the teachers that it learned from.

    A record names a network, its licence and its digest (tiekd/data/learned_from.py). Records are
    stored with the student's weights. Computing the digest of a network's weights takes about a
    second per gigabyte.

    Args:
        teacher: The teacher, as `build_teacher` returns it.
        node: The teacher's section `teacher`, with the path of a network's weights.
        maps: The folder of cached maps from which the student learns; None if there is none.

    Returns:
        A list with one dict per teacher; empty for the ground truth.
    """
    if isinstance(teacher, FoundationTeacher | StereoTeacher):
        return learned_from.of_description(teacher.description)
    if isinstance(teacher, FrozenTeacher):
        recipe = None if node.recipe is None else node.recipe.stem
        return learned_from.of_network(digests.of_network(teacher.network), node.checkpoint, recipe)
    if isinstance(teacher, OutsideTeacher):
        digest = None if teacher.network is None else digests.of_network(teacher.network)
        return learned_from.of_description({"name": teacher.name, "digest": digest})
    if maps is not None:
        return learned_from.of_manifest(teacher_maps.read_manifest(maps), maps)
    return []


def _recipe_file(teacher: TeacherNode) -> dict | None:
    """Loads the recipe that `teacher.recipe` names.

    It says how images are resized for the teacher if the teacher's weights don't.

    Args:
        teacher: The section `teacher`.

    Returns:
        The recipe; None if the section names none or the file doesn't exist.
    """
    path = teacher.recipe
    return load_recipe(path) if path is not None and path.exists() else None


def with_teachers_file(recipe: dict, resuming: bool, name: str = "") -> dict:
    """Returns a recipe in which `checkpoint` of each teacher is the path of its weights file.

    If `checkpoint` names a work dir, the best weights in that may change between two starts of a
    run. So the file's path is fixed at the first start, and a resumed run uses the same file.

    Args:
        recipe: The run's recipe.
        resuming: True to use the path that the first start recorded in the run's work dir.
        name: The data set's name, if the recipe is that of one data set of several.

    Returns:
        A copy of the recipe with the paths; the recipe itself if no teacher is a network of the
        project.
    """
    if data_sets.is_list(recipe):
        return _for_each_set(recipe, lambda node, name: with_teachers_file(node, resuming, name))
    teachers = TeacherList.of(recipe)
    networks = [node for node in teachers.nodes if node.network is not None]
    if not networks:
        return recipe
    # The recipe in the run's work dir names the files of teachers' weights with which the run was
    # started.
    saved, started_with = Path(recipe["work_dir"]) / workdir.RECIPE, {}
    if resuming and saved.is_file() and any(node.checkpoint is None for node in networks):
        before = load_recipe(saved)
        for data_set in data_sets.sets_of(before):
            if data_set.name == name:
                before = data_sets.single_set_recipe(before, data_set)
                break
        started_with = {node.where: node for node in TeacherList.of(before).nodes}

    def as_before(node: TeacherNode) -> dict:
        before = started_with.get(node.where)
        is_same = before is not None and before.recipe == node.recipe
        if node.checkpoint is None and is_same and before.checkpoint is not None:
            return node.with_checkpoint(before.checkpoint).node
        return node.node

    return with_checkpoints(teachers.replace_in(recipe, as_before))


def with_checkpoints(recipe: dict) -> dict:
    """Returns a recipe in which each teacher's `checkpoint` is the path of a file of weights.

    Only teachers that are networks of the project have such a file; others stay as they are.

    Args:
        recipe: The recipe; it isn't changed.

    Raises:
        TeacherError: A teacher that is a network of the project has no weights.
    """
    if data_sets.is_list(recipe):
        return _for_each_set(recipe, lambda of_set, _: with_checkpoints(of_set))

    def named(node: TeacherNode) -> dict:
        if node.network is None:
            return node.node
        with errors_of(node.where):
            return node.with_checkpoint(teacher_checkpoint(node).resolve()).node

    return TeacherList.of(recipe).replace_in(recipe, named)


def _for_each_set(recipe: dict, change: Callable[[dict, str], dict]) -> dict:
    """Returns a recipe with several data sets in which the teachers of each set are changed.

    Args:
        recipe: The recipe; it isn't changed.
        change: Function that is called with a recipe in which one of the data sets is the only one,
            and with the set's name, and that returns this recipe with changed teachers.
    """
    changed = []
    for data_set in data_sets.sets_of(recipe):
        with data_sets.errors_of_set(data_set.name):
            changed.append(change(data_sets.single_set_recipe(recipe, data_set), data_set.name))
    return data_sets.replace_teachers(recipe, changed)


def teacher_checkpoint(teacher: TeacherNode) -> Path:
    """Returns the path of the file with the weights of a teacher that is a network of the project.

    Args:
        teacher: The section `teacher`. Its `checkpoint` may be a file, a checkpoint's folder or a
            work dir; without it the file is searched in the work dir of `teacher.recipe`.

    Raises:
        TeacherError: There is no such file.
    """
    path = teacher.checkpoint
    if path is None:
        path = default_checkpoint(teacher)
    if path.is_dir():
        path = _weights_in(path, teacher, "teacher.checkpoint: ")
    check_readable(path, "checkpoint", TeacherError, "teacher.checkpoint: ")
    if not path.is_file():
        raise TeacherError(
            f"teacher.checkpoint: no file at {path}; train one with {console.command('train')} "
            f"{_recipe_of(teacher)}, or use cached maps (teacher.maps)"
        )
    return path


def default_checkpoint(teacher: TeacherNode) -> Path:
    """Returns the path of a teacher's weights if `teacher.checkpoint` isn't given.

    It is the file of the best weights, or else of the latest weights, in the work dir of
    `teacher.recipe`.

    Args:
        teacher: The section `teacher`.

    Raises:
        TeacherError: The section has no `recipe`, or the work dir has no weights.
    """
    path = teacher.recipe
    if path is None:
        raise TeacherError(
            "teacher.checkpoint: needed beside teacher.network; give a file of weights"
        )
    # If a run is repeated from its saved recipe, the teacher's recipe file may be missing. Then
    # find the teacher's work dir by the name of that file.
    work_dir = load_recipe(path).get("work_dir") if path.exists() else None
    return _weights_in(
        Path(work_dir or work_dir_of(path)), teacher, "teacher.checkpoint: not given, and "
    )


def _weights_in(work_dir: Path, teacher: TeacherNode, beginning: str) -> Path:
    try:
        return find_weights(work_dir)
    except CheckpointError as error:
        raise TeacherError(
            f"{beginning}{error}; train the teacher with {console.command('train')} "
            f"{_recipe_of(teacher)}"
        ) from None


def _recipe_of(teacher: TeacherNode) -> str:
    """Returns the path of the teacher's recipe, quoted for a shell command in a message.

    It is the word RECIPE if the section names no recipe.

    Args:
        teacher: The section `teacher`.
    """
    return "RECIPE" if teacher.recipe is None else shlex.quote(str(teacher.recipe))
