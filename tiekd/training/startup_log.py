"""Composes the log's first lines, about data, networks, learning rate, ranks and the resume."""

from pathlib import Path

from torch.utils.data import Dataset

from tiekd import console
from tiekd.config.teacher_node import TeacherNode
from tiekd.data import learned_from, teacher_maps
from tiekd.data.frames import listed_frames
from tiekd.data.mixed import sets_in
from tiekd.data.resize import OWN_SIZE
from tiekd.distributed import comm
from tiekd.errors import CheckpointError
from tiekd.teachers.average import Average
from tiekd.teachers.external import OutsideTeacher
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.mixture import Teacher, members_of
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs.sigma import SigmaOptions
from tiekd.teachers.outputs.teacher import FoundationTeacher
from tiekd.training import inputs, mixed_data, schedules
from tiekd.training.build import Parts, teachers_by_set
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.input_changes import Verdict
from tiekd.training.optimizer import lr_factor
from tiekd.training.settings import Recipe
from tiekd.workdir import launch_record


def first_lines(parts: Parts) -> list[str]:
    """Returns the first lines of a run's log, about its data, networks and learning rate.

    Args:
        parts: The parts of the run, such as datasets, networks and teacher.
    """
    recipe, teacher = parts.recipe, parts.teacher
    train_set, val_set = parts.train_set, parts.val_set
    # Describe the data: the number of frames in each split, and warnings about them.
    said = [f"Training frames: {len(train_set)}" + _skipped(train_set)]
    if val_set is None:
        said.append("Validation is off: no evaluation, and no best checkpoint will be saved")
    else:
        said.append(f"Validation frames: {len(val_set)}" + _skipped(val_set))
    for hook in parts.state.hooks:
        if isinstance(hook, Evaluation):
            said += _about_validation(hook)
    said.append(f"Working resolution: {recipe.resize}")
    notes = {}
    for dataset in (train_set, val_set):
        for name, frames in sets_in(dataset):
            notes |= dict.fromkeys(mixed_data.prefix_lines(name, getattr(frames, "notes", ())))
    said += [f"Warning: {note}" for note in notes]
    for dataset in (train_set, val_set):
        for name, frames in sets_in(dataset):
            told = mixed_data.prefix_lines(name, getattr(frames, "camera_notes", ()))
            said += [note for note in told if note not in said]
    for name, frames in sets_in(train_set):
        order = getattr(frames, "epoch_order", None)
        if order is not None:
            # Log the length of an epoch only if there is one data set. With several sets another
            # line already states it.
            length = f"{parts.state.iterations_per_epoch} iterations"
            line = f"Order: {order}" if name else f"An epoch has {length}: {order}"
            said += mixed_data.prefix_lines(name, [line])
    both = [frames for dataset in (train_set, val_set) for _, frames in sets_in(dataset)]
    said += inputs.left_out(both)
    # Describe the sizes of the networks, and the source of the teacher's depth.
    said.append(f"Student: {_millions(parts.network)} M parameters, trainable")
    teachers, frames_of = teachers_by_set(teacher), dict(sets_in(train_set))
    for name, _, own in Recipe(parts.state.recipe).data_sets:
        if teachers[name] is not None:
            lines = _about_teachers(teachers[name], own, frames_of[name], parts)
            said += mixed_data.prefix_lines(name, lines)
    # Name the other teachers from which weights were learned: the teacher's own teachers, and those
    # of the initial weights. With a single teacher, leave out the first record, which is about that
    # teacher and is logged above.
    is_single = recipe.teachers.is_given and recipe.teachers.several is None
    is_single = is_single and not recipe.is_mixed
    said += learned_from.lines(parts.state.teachers[is_single:])
    # Describe the learning rate if it is scaled from another batch size. Warn if the run ends
    # before the warm-up does.
    batch_size, lr_scaling = recipe.train.batch_size, recipe.train.lr_scaling
    lr_batch_size = recipe.section("optimizer").get("lr_batch_size") or batch_size
    if lr_batch_size != batch_size:
        factor = lr_factor(batch_size, lr_batch_size, lr_scaling)
        said.append(
            f"The learning rate is meant for a global batch of {lr_batch_size}, this run has "
            f"{batch_size}: train.lr_scaling {lr_scaling} multiplies it by {factor:.4g}"
        )
    total_iterations = parts.state.total_iterations
    warmup = schedules.unfinished_warmup(recipe.section("schedule"), total_iterations)
    return said if warmup is None else [*said, warmup]


def _about_validation(hook: Evaluation) -> list[str]:
    """Returns lines for the log about what is evaluated and with what it is compared.

    Args:
        hook: The hook that evaluates.
    """
    said = []
    for each in hook.validation_sets:
        if each.name:
            said.append(
                f"Validation of {each.name}: {len(each.dataset)} frames, crop "
                f"{each.settings.crop}, up to {hook.protocol_of(each).cap:g} m"
            )
        if each.reference is not None:
            of_set = f" of {each.name}" if each.name else ""
            said.append(
                f"Validation{of_set}: {each.reference.label}, compared with {each.reference.name}"
            )
    if hook.sets:
        said.append(
            f"The best weights are chosen by {hook.settings.save_best}, {hook.metrics_label}"
        )
    return said


def _about_teachers(
    teacher: Teacher, recipe: Recipe, train_set: Dataset, parts: Parts
) -> list[str]:
    """Returns lines for the log about the teachers of a data set.

    Args:
        teacher: The teacher or combination of teachers of the data set.
        recipe: The recipe with this data set as its only one, and with the paths of the teachers'
            weights.
        train_set: The set's training frames.
        parts: The parts of the run.
    """
    nodes, said = {node.where: node for node in recipe.teachers.nodes}, []
    for member in members_of(teacher):
        lines = _about_teacher(member.teacher, nodes.get(member.where), train_set, parts)
        lines += _about_sigma(member.teacher)
        # Distinguish several teachers by their keys in the recipe.
        if len(nodes) > 1:
            lines = [f"{member.where}: {line}" for line in lines]
        said += lines
    # The sigma of a mean is none of its teachers'.
    of_mean = _about_sigma(teacher) if isinstance(teacher, Average) else []
    return said + _about_mixture(recipe) + of_mean


def _about_teacher(
    teacher: Teacher, node: TeacherNode | None, train_set: Dataset, parts: Parts
) -> list[str]:
    """Returns lines for the log about one teacher, the source of its depth.

    Args:
        teacher: The teacher.
        node: Its section in the recipe; None for the ground truth, about which nothing is said.
        train_set: The training frames of the data set that it teaches.
        parts: The parts of the run.
    """
    recipe = parts.recipe
    if isinstance(teacher, FrozenTeacher):
        size = _millions(teacher.network)
        said = [f"Teacher: {size} M parameters, frozen, from {node.checkpoint}"]
        if recipe.teachers.several is None and not recipe.is_mixed:
            # Log the origin of the teacher's weights. The first record is about the only teacher;
            # any further ones are about the teacher's own teachers.
            said += [f"Teacher: {learned_from.describe(own)}" for own in parts.state.teachers[:1]]
        if teacher.resize not in (recipe.resize, OWN_SIZE):
            said.append(
                f"WARNING: the teacher was trained on images at {teacher.resize}, but gets them at "
                f"{recipe.resize} in this run; to get its depth at its own resolution, cache its "
                f"maps with {console.command('cache_teacher')}"
            )
        return said
    if isinstance(teacher, FoundationTeacher):
        return [
            f"Teacher: {learned_from.describe(teacher.description)}",
            "WARNING: the teacher sees augmented crops here; cache its maps of whole images with "
            f"{console.command('cache_teacher')}",
            *teacher.check_frames(listed_frames(train_set)),
        ]
    if isinstance(teacher, OutsideTeacher):
        counted = (
            ""
            if teacher.network is None
            else f", {_millions(teacher.network)} M parameters, frozen"
        )
        return [f"Teacher: {teacher.name}{counted}"]
    folders = getattr(train_set, "map_folders", ())
    if isinstance(teacher, CachedMaps) and folders:
        return [teacher_maps.describe(folders[teacher.map_index].path)]
    return []


def _about_sigma(teacher: Teacher) -> list[str]:
    """Returns a line for the log about the source of a teacher's sigma, in a list.

    A sigma is the standard deviation of the error of each pixel's depth. The list is empty if the
    teacher gives no sigma, or a constant one.

    Args:
        teacher: The teacher.
    """
    sigma = getattr(teacher, "sigma", None)
    has_source = isinstance(sigma, SigmaOptions) and sigma.source is not None
    return [sigma.note()] if has_source else []


def _about_mixture(recipe: Recipe) -> list[str]:
    """Returns a line for the log on how several teachers are combined, in a list.

    The list is empty if the recipe has only one teacher.

    Args:
        recipe: The run's recipe.
    """
    teachers = recipe.teachers
    if teachers.several is None:
        return []
    said = ", ".join(
        f"{node.weight:g}" + ("" if node.sigma is None else f" (sigma {node.sigma:g} m)")
        for node in teachers.nodes
    )
    if teachers.several == "teachers":
        return [f"The student learns a mixture of {len(teachers.nodes)} teachers, weights {said}"]
    more = " and 1 / sigma^2" if teachers.weights == "precision" else ""
    return [f"The student learns the mean of {len(teachers.nodes)} teachers, weights {said}{more}"]


def rank_warning(work_dir: Path) -> list[str]:
    """Warns if a run had another number of ranks when it was last started.

    The former number is read from the launch record in the work dir. So the function has to be
    called before the record is overwritten.

    Args:
        work_dir: The folder of the run.

    Returns:
        The warning in a list; an empty list if the number is the same or there is no record.
    """
    try:
        before, now = launch_record.read(work_dir).world_size, comm.world_size()
    except CheckpointError:
        return []
    if before == now:
        return []
    fewer = (
        "; if that isn't meant, stop it and see to --hostfile, --include or --num_gpus"
        if now < before
        else ""
    )
    return [f"The run was started on {before} ranks and resumes on {now}{fewer}"]


def resume_lines(path: Path | None, changed: list[str], verdict: Verdict) -> list[str]:
    """Returns lines for the log about the checkpoint from which a run resumes, and about changes.

    Args:
        path: The checkpoint's folder; None for a new run, for which the list is empty.
        changed: The dotted names of values in the recipe that have changed since the run was
            started.
        verdict: The changes of the run's input files since it was started. Those in `refused` have
            been accepted by the user with --accept-changes.
    """
    if path is None:
        return []
    said = [f"Resumed from {path}", *verdict.only_logged]
    if verdict.refused:
        said.append(f"Accepted changes: {'; '.join(verdict.refused)}")
        said.append(
            "The search for the best weights restarts; earlier best weights are now "
            "abandoned_best_*.pth"
        )
    if changed:
        said.append(
            "Not as it was started, so it won't continue as it would have; changed: "
            f"{', '.join(changed)}"
        )
    return said


def _skipped(dataset: Dataset) -> str:
    skipped = getattr(dataset, "num_skipped", 0)
    return f" ({skipped} without ground truth skipped)" if skipped else ""


def _millions(network) -> str:
    count = sum(getattr(p, "ds_numel", p.numel()) for p in network.parameters())
    return f"{count / 1e6:.2f}"
