"""Builds all parts of a run from its recipe, except the engine.

Errors in the recipe are found here, before the first iteration and before anything is written.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tiekd import console
from tiekd.config.build import build
from tiekd.config.data_sets import errors_of_set
from tiekd.config.teacher_node import IN_MEAN, TeacherList, errors_of
from tiekd.data import learned_from, least_size, map_focals, trained_on
from tiekd.data.batch import Batch
from tiekd.data.build import build_dataset
from tiekd.data.depth_values import check_range
from tiekd.data.frames import listed_frames
from tiekd.data.listing import listed_once
from tiekd.data.loading.loader import Unreadable, training_batches
from tiekd.data.loading.sampler import (
    MicroBatches,
    RankShare,
    iterations_per_epoch,
    repeats,
    size_groups,
)
from tiekd.data.mixed import MixedFrames, sets_in
from tiekd.data.rank_consistency import check_same
from tiekd.data.target import Target
from tiekd.distributed import comm, process_group
from tiekd.engine.config import EngineConfig, resolve
from tiekd.errors import CheckpointError, RecipeError, TeacherError
from tiekd.losses.dpm import DPM
from tiekd.models.build import build_network
from tiekd.models.weights import pretrained, state_dicts
from tiekd.teachers.mixture import Teacher, members_of
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs.teacher import FoundationTeacher
from tiekd.teachers.per_set import PerSet
from tiekd.teaching import build_per_set, build_teachers, records_of, with_teachers_file
from tiekd.training import canonical, mixed_data, schedules
from tiekd.training import criterion as criteria
from tiekd.training.canonical import Targets
from tiekd.training.criterion import Criterion
from tiekd.training.evaluation_hook import Evaluation, ValidationSet
from tiekd.training.hook import Hook, check_moments
from tiekd.training.hooks.counting import PixelsCount
from tiekd.training.hooks.ema import Ema
from tiekd.training.hooks.guard import Guard
from tiekd.training.hooks.preemption import Preemption
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.kept_memory_hook import KeptMemory
from tiekd.training.optimizer import build_optimizer
from tiekd.training.reference import reference_of
from tiekd.training.schedules import Schedule
from tiekd.training.settings import Recipe
from tiekd.training.state import TrainState
from tiekd.training.unreadable_hook import UnreadableSamples
from tiekd.visualization.validation_frames import ShownFrames
from tiekd.workdir import checkpoints

# The type of the names of the validation frames: a collection of names for one data set, or a dict
# from the name of each data set to such a collection. None if the names aren't known.
HeldOut = Collection[str] | Mapping[str, Collection[str] | None] | None


@dataclass(frozen=True)
class Parts:
    """All objects that a training run consists of, except the engine.

    Attributes:
        recipe: The recipe that the parts were built from.
        config: The engine config, in which every "auto" is replaced by a value.
        device: The device of this rank.
        network: The student, on the CPU; the engine moves it to the device.
        replica: A second copy of the student on the device, for evaluations; None without
            validation.
        criterion: The sum of the loss terms.
        teacher: Function from a batch to its target depth, (B, 1, H, W) float32, metres, 0 in
            pixels that aren't valid; or to a `Target` (tiekd/data/target.py), i.e. several depths
            or depths with a standard deviation.
        targets: Converts target depths from metres to the depth that the network learns: metres, or
            canonical depth, i.e. depth in metres times a fixed focal length / the image's focal
            length.
        train_set: The dataset of the training frames; a `MixedFrames` if the recipe lists several
            data sets.
        val_set: The dataset of the validation frames, or a `MixedFrames`; None without validation.
        groups: If each batch must have images of one size, for each training frame a number that
            stands for the size of its image; else None.
        unreadable: The collected messages about samples that can't be read and are replaced; None
            if such a sample ends the run.
        optimizer: The optimizer of the network's parameters.
        schedule: The learning rate and momentum of each iteration.
        state: The state of the run; its `engine` and `step` are still None. Its recipe names the
            file of the teacher's weights.
        log: The text log, which is also the first of `state.hooks`.
        report: Lines for the log that were composed while the parts were built.
    """

    recipe: Recipe
    config: EngineConfig
    device: torch.device
    network: nn.Module
    replica: nn.Module | None
    criterion: Criterion
    teacher: Callable[[Batch], Tensor | Target]
    targets: Targets
    train_set: Dataset
    val_set: Dataset | None
    groups: list[int] | None
    unreadable: Unreadable | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    state: TrainState
    log: TextLog
    report: list[str]

    def batches(self, end: int) -> Iterator[Batch]:
        """Returns an iterator over this rank's micro-batches in the rest of the run.

        Args:
            end: The total number of iterations of the run. The iterator ends after the
                micro-batches of the last one.

        Yields:
            `Batch` objects on this rank's device, `config.accumulation` for each iteration. The
            first belongs to the iteration after the `state.iteration` finished ones.
        """
        train = self.recipe.train
        # Begin with the first iteration that isn't finished. The order of samples depends on the
        # seed and the iteration alone, so a resumed run continues in the middle of an epoch.
        iterations = range(self.state.iteration, end)
        share = RankShare(comm.rank(), comm.world_size())
        is_mixed = isinstance(self.train_set, MixedFrames)
        if is_mixed:
            sampler = mixed_data.sampler_of(
                self.train_set, train, iterations, self.config.accumulation, share
            )
        else:
            sampler = MicroBatches(
                num_samples=len(self.train_set),
                batch_size=train.batch_size,
                iterations=iterations,
                seed=train.seed,
                accumulation=self.config.accumulation,
                share=share,
                groups=self.groups,
                order_of=getattr(self.train_set, "epoch_order", None),
            )
        batches = training_batches(
            self.train_set,
            sampler,
            self.recipe.augment,
            self.device,
            loading=self.recipe.loading,
            unreadable=self.unreadable,
            resize=self.recipe.resize,
            needs_focal=self.targets.camera is not None or _needing_focals(self.teacher),
        )
        return (
            mixed_data.with_target_counts(batches, sampler, self.train_set) if is_mixed else batches
        )


def build_parts(
    recipe: Recipe,
    engine_config: dict,
    device: torch.device,
    *,
    resuming: bool,
    begins: bool,
    held_out: HeldOut = None,
) -> Parts:
    """Builds all parts of a run except the engine. Writes no file. Collective.

    Args:
        recipe: The run's recipe.
        engine_config: The engine config as it was read from its file; not changed.
        device: The device of this rank.
        resuming: True if the run in the work dir is resumed, so that the teacher's weights are the
            file that it was started with.
        begins: True if training starts at iteration 0, with the initial weights that the recipe
            names; False if a checkpoint will be restored.
        held_out: For a run that holds a fraction of the frames out for validation: the names of
            these frames at the start of the run, so that a resumed run holds out the same ones.
            With several data sets, a dict from each set's name to such names. None to choose them
            anew.

    Returns:
        A `Parts` object.

    Raises:
        UserError: A value of the recipe or the engine config, or a file that they name, is wrong.
    """
    train = recipe.train
    mixed_data.check_recipe(recipe)
    process_group.seed_everything(train.seed, train.deterministic)
    config = resolve(engine_config, train.batch_size, train.clip_norm, comm.world_size())

    # If the network predicts canonical depth, i.e. depth in metres times a fixed focal length / the
    # image's focal length, build the datasets first: the range of its output depends on the focal
    # lengths of the frames.
    sets, about_focal = None, []
    if (recipe.network or {}).get("canonical_focal") is not None:
        sets = _build_sets(recipe, held_out)
        recipe, about_focal = canonical.with_factors(recipe, sets, resuming=resuming)

    # Build the networks and the losses.
    network = build_network(recipe.network)
    replica = build_network(recipe.network).to(device) if train.validate else None
    criterion = criteria.build(recipe.section("losses"), recipe.has_teacher).to(device)
    check_ignored_depths(network, criterion)

    # Build the datasets unless that is done already. Check the settings of their loader and the
    # sizes of the images.
    sets = sets or _build_sets(recipe, held_out)
    train_set, val_set = sets["training"], sets.get("validation")
    _check_loading(recipe)
    least = least_size.least_side(network)
    least_size.check_crop(recipe.augment.crop, least)
    for name, frames in (*sets_in(train_set), *sets_in(val_set)):
        with errors_of_set(name):
            least_size.check_frames(frames, recipe.resize, least)
    unreadable = None
    if recipe.loading.on_error == "skip":
        unreadable = Unreadable(recipe.loading.max_errors)

    # Build the teacher, and check that it gets the focal lengths that it needs.
    node = with_teachers_file(recipe.node, resuming=resuming)
    with_files = Recipe(node)
    frames_by_set = dict(sets_in(train_set))
    for own in recipe.data_sets:
        with errors_of_set(own.name):
            check_sigmas(network, own.recipe.teachers, frames_by_set[own.name])
    if recipe.is_mixed:
        mixed_data.check_targets(criterion, train_set)
        recipes = {own.name: own.recipe.node for own in with_files.data_sets}
        teacher = build_per_set(recipes, frames_by_set, device, recipe.max_depth_m)
    else:
        teacher = build_teachers(node, device, recipe.max_depth_m)
    teacher_of = teachers_by_set(teacher)
    for name, one in teacher_of.items():
        for member in () if one is None else members_of(one):
            with errors_of_set(name), errors_of(member.where):
                _prepare_teacher(member.teacher, recipe, frames_by_set[name])

    # Compute the number of iterations. With batches of images of one size, it depends on how many
    # images have each size.
    groups = None
    if recipe.augment.sizes == "bucket":
        groups = size_groups(train_set, recipe.resize)
    if recipe.is_mixed:
        per_epoch = mixed_data.iterations_per_epoch(recipe, train_set)
    else:
        per_epoch = iterations_per_epoch(len(train_set), train.batch_size, groups)
    total = train.iterations or train.epochs * per_epoch
    report = list(about_focal)
    if recipe.is_mixed:
        report = [*mixed_data.describe(recipe, train_set, network), *report]
    for dataset in (train_set, val_set):
        for name, frames in sets_in(dataset):
            with errors_of_set(name):
                report += mixed_data.prefix_lines(name, check_range(frames))
    for name, frames in sets_in(train_set):
        with errors_of_set(name):
            found = map_focals.check(frames, is_canonical=network.canonical is not None)
            report += mixed_data.prefix_lines(name, found)
    report += load_weights(network, recipe) if begins else []
    seen, teachers = None, []
    if comm.is_main():
        initial = _initial_weights(recipe) if begins else None
        seen = trained_on.union(trained_on.trained_on(train_set), trained_on.read(initial))
        records = [
            records_of(
                teacher_of[own.name],
                own.recipe.teachers,
                map_focals.folders_of(frames_by_set[own.name]),
            )
            for own in with_files.data_sets
            if teacher_of[own.name] is not None
        ]
        teachers = learned_from.union(*records, learned_from.read(initial))
    if groups is not None:
        report.insert(0, _repeated_images_line(groups, per_epoch * train.batch_size))
    if not recipe.is_mixed:  # the sets' own epochs follow each other within a batch
        report += repeats(len(train_set), train.batch_size, groups)

    # Build the optimizer and the schedule.
    optimizer = build_optimizer(
        recipe.section("optimizer"), network, train.batch_size, train.lr_scaling
    )
    values = optimizer.defaults
    schedule = schedules.build(
        recipe.section("schedule", {"name": "constant"}),
        base_lr=values["lr"],
        base_momentum=values["betas"][0] if "betas" in values else values["momentum"],
        total_iterations=total,
        iterations_per_epoch=per_epoch,
    )

    # Build the state of the run and its hooks.
    state = TrainState(
        engine=None,
        recipe=node,
        work_dir=recipe.work_dir,
        timestamp=comm.broadcast_object(datetime.now().strftime("%Y%m%d_%H%M%S")),
        batch_size=train.batch_size,
        accumulation=config.accumulation,
        iterations_per_epoch=per_epoch,
        total_iterations=total,
        by_epoch=train.iterations is None,
        trained_on=seen,
        teachers=teachers,
    )
    state.hooks, log = build_hooks(
        recipe,
        device,
        val_set=val_set,
        replica=replica,
        teacher=teacher,
        unreadable=unreadable,
    )
    return Parts(
        recipe=recipe,
        config=config,
        device=device,
        network=network,
        replica=replica,
        criterion=criterion,
        teacher=teacher,
        targets=canonical.Targets(network.canonical, recipe.resize),
        train_set=train_set,
        val_set=val_set,
        groups=groups,
        unreadable=unreadable,
        optimizer=optimizer,
        schedule=schedule,
        state=state,
        log=log,
        report=report,
    )


def _prepare_teacher(teacher: Teacher, recipe: Recipe, train_set: Dataset) -> None:
    """Prepares one teacher for training: checks its frames, and sets how its images are resized.

    Args:
        teacher: The teacher. If it is a network of this project, its attribute `seen_at` is set to
            the recipe's resize.
        recipe: The run's recipe.
        train_set: The dataset of the training frames.

    Raises:
        UserError: The teacher needs focal lengths that aren't known, or works only when maps are
            cached; or its depth would be wrong for images that the recipe's augmentation zooms.
    """
    if getattr(teacher, "reads_files", False):
        raise TeacherError(
            f"teacher.name: {teacher.description['name']} reads whole image pairs, and training "
            f"has augmented crops; make its maps with {console.command('cache_teacher')} RECIPE, "
            "and train with the --set that it prints"
        )
    if isinstance(teacher, FoundationTeacher):
        teacher.check_frames(listed_frames(train_set))
    is_blind = isinstance(teacher, FrozenTeacher) and not teacher.needs_focal
    if isinstance(teacher, FoundationTeacher):
        is_blind = not teacher.follows_focal
    canonical.check_zoom(recipe.augment, recipe.network, is_blind_teacher=is_blind)
    if isinstance(teacher, FrozenTeacher):
        teacher.seen_at = recipe.resize
        if teacher.needs_focal:
            canonical.require_focals(train_set, recipe.resize, "training")


def check_sigmas(network: nn.Module, teachers: TeacherList, train_set: Dataset) -> None:
    """Raises RecipeError if the student's head can't use the teachers or their sigma.

    A sigma is the standard deviation of the error of a teacher's depth. Refused are:

    - several teachers, or a sigma, with TIE-KD's published target (`network.head.target=released`),
      which is defined for one teacher and the head's own sigma;
    - a sigma for a head that doesn't use it;
    - a constant sigma outside the range to which the head clamps sigmas.

    Args:
        network: The student.
        teachers: The recipe's teachers.
        train_set: The dataset of the training frames, which may have cached maps of sigma.
    """
    head, stated = network.head, teachers.stated_sigmas
    has_maps = any(
        folder.sigma_scale_m is not None for folder in getattr(train_set, "map_folders", ())
    )
    has_sigma = bool(stated) or (has_maps and teachers.several != IN_MEAN)
    is_mixture = teachers.several == "teachers" and len(teachers.nodes) > 1
    if getattr(head, "target", None) == "released" and (is_mixture or has_sigma):
        raise RecipeError(
            "network.head.target: got released, which is defined for one teacher and the head's "
            "sigma; set network.head.target=gaussian for several teachers or their sigma"
        )
    for option, sigma in stated.items():
        is_number = isinstance(sigma, int | float)
        got = f"{sigma:g}" if is_number else str(sigma)
        if not getattr(head, "takes_target", False):
            raise RecipeError(
                f"{option}: got {got}, which only a dpm head learns; leave it out, or set "
                "network.head.name=dpm"
            )
        # Check the range of a constant sigma only if the network predicts depth in metres. If it
        # predicts canonical depth, the head's limits of sigma aren't in metres.
        if is_number and network.canonical is None and not head.sigma <= sigma <= head.sigma_max:
            raise RecipeError(
                f"{option}: got {got}; it must be within the head's network.head.sigma "
                f"({head.sigma:g}) and sigma_max ({head.sigma_max:g}), in metres"
            )


def _build_sets(recipe: Recipe, held_out: HeldOut) -> dict[str, Dataset]:
    """Builds the datasets of the training frames and the validation frames. Collective.

    Args:
        recipe: The run's recipe.
        held_out: The names of the validation frames at the start of the run; None for a new run.
            With several data sets, a dict from each set's name to such names.

    Returns:
        A dict with the dataset "training" and, if the run validates, "validation".
    """
    with listed_once():
        if recipe.is_mixed:
            sets = mixed_data.build_sets(recipe, held_out)
        else:
            sets = {"training": build_dataset(recipe.dataset, "train", held_out=held_out)}
            if recipe.train.validate:
                sets["validation"] = build_dataset(recipe.dataset, "val", held_out=held_out)
    check_same(sets)
    return sets


def check_ignored_depths(network: nn.Module, criterion: criteria.Criterion) -> None:
    """Raises RecipeError if the divergence loss averages over depths that the head ignores.

    A head with `beyond: ignore` sets the divergence to 0 in pixels whose target depth is beyond the
    head's range. If the loss counted these pixels, its mean would be too small.

    Args:
        network: The student.
        criterion: The weighted sum of the loss terms.
    """
    if getattr(network.head, "beyond", None) != "ignore":
        return
    # Compute the largest depth that the head can predict. If the network predicts canonical depth,
    # i.e. depth in metres times a factor for each image, use the largest factor.
    scale = 1.0 if network.canonical is None else network.canonical.largest
    largest = network.max_depth * scale
    for key, term in criterion.terms.items():
        if isinstance(term.loss, DPM) and (
            term.loss.max_depth is None or term.loss.max_depth > largest
        ):
            raise RecipeError(
                f"losses.{key}.max_depth: got {term.loss.max_depth} with head.beyond ignore, so "
                f"ignored pixels would count as 0; set losses.{key}.max_depth={largest} "
                "or network.head.beyond=clamp"
            )


def build_hooks(
    recipe: Recipe,
    device: torch.device,
    *,
    val_set: Dataset | None,
    replica: nn.Module | None,
    teacher: Callable[[Batch], Tensor],
    unreadable: Unreadable | None,
) -> tuple[list[Hook], TextLog]:
    """Builds the hooks, in the order in which they are called.

    The text log comes first, so that an iteration's own line precedes the lines of other hooks.
    Evaluation comes before the checkpoint, so that a checkpoint holds the outcome of the evaluation
    at its iteration.

    Args:
        recipe: The run's recipe. Its section `hooks` lists the hooks that the user adds.
        device: The device of this rank.
        val_set: The dataset of the validation frames; None if the run doesn't validate.
        replica: A second copy of the student on the device, for evaluations; None if the run
            doesn't validate.
        teacher: Function from a batch to the teacher's depth, which TensorBoard's images show.
        unreadable: Collects messages about samples that can't be read and are replaced; None if
            such a sample ends the run.

    Returns:
        (hooks, log): all hooks in the order in which they are called, and the text log, which is
        the first of them.
    """
    folder = "tiekd.training.hooks"
    log = build({"name": "text_log", **recipe.section("log")}, folder, "log")
    # Choose the validation frames whose images TensorBoard shows.
    evaluation, frames = recipe.evaluation, None
    if recipe.train.validate:
        # If there are several data sets, show the one whose metrics choose the best weights. If all
        # of them do, show the first one.
        val_sets, teacher_of = dict(sets_in(val_set)), teachers_by_set(teacher)
        shown = evaluation.set or next(iter(val_sets))
        of_shown = recipe.sets_named(shown)[0].recipe
        # Leave the depth of a teacher from outside the project out of these images: it would be
        # called on rank 0 alone and with validation frames, and may support neither.
        nodes = of_shown.teachers.nodes
        taught = bool(nodes) and all(node.module is None for node in nodes)
        frames = ShownFrames(
            val_sets[shown],
            replica,
            teacher_of[shown] if taught else None,
            device,
            of_shown.evaluation.crop,
            cap=of_shown.evaluation.cap,
            resize=recipe.resize,
        )
    board = build(
        {"name": "tensorboard", **recipe.section("tensorboard")},
        folder,
        "tensorboard",
        text_log=log,
        max_depth=recipe.max_depth_m,
        frames=frames,
    )
    # Put the hooks in order: logs, hooks that may stop the run, the moving average of the weights
    # before the evaluation, which uses it, the user's hooks, checkpoint.
    hooks: list[Hook] = [log, board, Preemption(), Guard(log, recipe.train.max_bad_iterations)]
    hooks += [PixelsCount(log), KeptMemory()]
    if unreadable is not None:
        hooks.append(UnreadableSamples(unreadable, log))
    own = _recipe_hooks(recipe, log)
    hooks += [hook for hook in own if isinstance(hook, Ema)]
    if recipe.train.validate:
        hook = Evaluation(
            evaluation,
            val_set,
            replica,
            device,
            recipe.loading,
            log.info,
            terminal=sys.stderr,
            resize=recipe.resize,
        )
        if recipe.is_mixed:
            hook.sets = _validation_sets(recipe, val_sets, teacher_of)
        elif recipe.scores_teacher:
            hook.reference = reference_of(teacher, recipe.teachers, val_set)
        hooks.append(hook)
    hooks += [hook for hook in own if not isinstance(hook, Ema)]
    saving = {"name": "checkpoint", **recipe.section("checkpoint")}
    hooks.append(build(saving, folder, "checkpoint", hooks=list(hooks), info=log.info))
    return hooks, log


def _validation_sets(
    recipe: Recipe, val_sets: Mapping[str, Dataset], teacher_of: Mapping[str, Teacher | None]
) -> tuple[ValidationSet, ...]:
    """Returns the data sets that have validation frames, in the order of the recipe.

    Each is a `ValidationSet` with its own evaluation settings and, if it is evaluated against its
    teacher, the teacher's depth as the reference.

    Args:
        recipe: The run's recipe.
        val_sets: The dataset of the validation frames of each data set, by the set's name. A set
            that isn't validated is missing.
        teacher_of: The teacher of each data set, by the set's name; None for a set without one.
    """
    found = []
    for name, _, own in recipe.data_sets:
        if name not in val_sets:
            continue
        reference = None
        if own.scores_teacher:
            with errors_of_set(name):
                reference = reference_of(teacher_of[name], own.teachers, val_sets[name])
        found.append(ValidationSet(name, val_sets[name], own.evaluation, reference))
    return tuple(found)


def _needing_focals(teacher: Teacher) -> bool | frozenset[int]:
    """Returns for which images the focal length has to be known because their teacher needs it.

    Args:
        teacher: The teacher of all images, or a `PerSet` with one teacher per data set.

    Returns:
        True for all images, False for none. For a `PerSet`, the indices of the data sets whose
        teacher needs focal lengths.
    """
    if isinstance(teacher, PerSet):
        numbered = enumerate(teacher.sets)
        return frozenset(number for number, each in numbered if each.needs_focal)
    return getattr(teacher, "needs_focal", False)


def teachers_by_set(teacher: Teacher) -> dict[str, Teacher | None]:
    """Returns the teacher of each data set, by the set's name.

    Args:
        teacher: The teacher of all images, or a `PerSet` with one teacher per data set.

    Returns:
        A dict from the set's name to the teacher, or to None for a set without one. If `teacher`
        isn't a `PerSet`, its only key is "".
    """
    if isinstance(teacher, PerSet):
        return {each.name: each.teacher for each in teacher.sets}
    return {"": teacher}


def _recipe_hooks(recipe: Recipe, log: TextLog) -> list[Hook]:
    """Builds the hooks in the recipe's section `hooks`, and returns them in the same order.

    Args:
        recipe: The run's recipe.
        log: The text log, to which the hooks may write.

    Raises:
        RecipeError: A hook can't be built, or isn't a valid hook; or `ema` is listed twice.
    """
    evaluation = recipe.evaluation if recipe.train.validate else None
    built = []
    for node in recipe.node.get("hooks", []):
        # Give these arguments only to tiekd's own hooks, because a hook from outside the project
        # may have arguments of these names with another meaning.
        is_outside = isinstance(node, dict) and "." in str(node.get("name"))
        given = {} if is_outside else {"evaluation": evaluation, "info": log.info}
        hook = build(node, "tiekd.training.hooks", "hooks", **given)
        check_moments(hook, f"hooks ({node['name']})")
        built.append(hook)
    if sum(isinstance(hook, Ema) for hook in built) > 1:
        raise RecipeError("hooks: ema is there twice; a run has one average, so remove one")
    return built


def load_weights(network: nn.Module, recipe: Recipe) -> list[str]:
    """Loads initial weights into the student, in place.

    They are those of `load.checkpoint` in the recipe. Without this option they are the pretrained
    weights of the encoder, if the recipe names some.

    Args:
        network: The student.
        recipe: The run's recipe.

    Returns:
        A list of lines for the log about the tensors that were loaded.

    Raises:
        CheckpointError: The weights can't be read or don't fit the network.
    """
    load = recipe.load
    if load.checkpoint is None:
        return [note for note in [pretrained.load(network)] if note]
    # Load the weights, except for the tensors that `load.ignore` lists, such as those of a head
    # with another number of bins. Any other tensor that doesn't fit is an error.
    path = _weights_file(load.checkpoint)
    content = state_dicts.read_checkpoint(path)
    state = state_dicts.named_tensors(content)
    try:
        report = state_dicts.load_into(network, state, ignore=load.ignore)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}, or leave them out, as in --set 'load.ignore=[head.*]'"
        ) from None
    left_out = [*report.misfit, *report.missing]
    told = f"; left as initialised: {', '.join(left_out)}" if left_out else ""
    other = canonical.check_weights(recipe.network, content, path)
    return [f"Loaded {len(report.matched)} tensors from {path}{told}", *other]


def _weights_file(given: str) -> Path:
    """Returns the path of the weights file that `load.checkpoint` names or whose folder it names.

    Args:
        given: The value of `load.checkpoint`: the path of a weights file, which is returned; or of
            a work dir or a checkpoint's folder, in which the file is searched for.
    """
    path = Path(given)
    return checkpoints.find_weights(path) if path.is_dir() else path


def _initial_weights(recipe: Recipe) -> Path | None:
    """Returns the path of the weights file with which a run starts; None for none.

    Args:
        recipe: The run's recipe, whose key `load.checkpoint` names the file or a folder with it.
    """
    given = recipe.load.checkpoint
    return None if given is None else _weights_file(given)


def _repeated_images_line(groups: list[int], images_per_epoch: int) -> str:
    """Returns a log line that says how many images of an epoch are repeated to fill batches.

    Images are repeated if each batch must have images of one size.

    Args:
        groups: For each training frame its group number; frames whose images have the same size
            share a number.
        images_per_epoch: The number of images in all batches of an epoch.
    """
    num_repeated = images_per_epoch - len(groups)
    return (
        f"A batch holds images of one size, of which there are {len(set(groups))}; to fill up "
        f"each size's last batch, {num_repeated} of an epoch's {images_per_epoch} places repeat an "
        "image"
    )


def _check_loading(recipe: Recipe) -> None:
    """Raises RecipeError if two settings of data loading exclude each other.

    `data.on_error: skip` skips images that can't be read, but `data.augment.sizes: bucket` needs
    the size of every image.

    Args:
        recipe: The run's recipe.
    """
    if recipe.loading.on_error == "skip" and recipe.augment.sizes == "bucket":
        raise RecipeError(
            "data.on_error: skip can't be combined with data.augment.sizes=bucket, where all "
            "images' sizes must be known; set sizes=keep_aspect, or train on the split that "
            f"{console.command('check_data')} cleans"
        )
