"""One training run from a recipe: puts the parts together, then calls the loop.

Everything that can be wrong with a recipe is found here, before the first iteration and before anything is written.
"""

import sys
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

from tiekd import (
    checkpoint,
    distributed,
    execution,
    input_changes,
    inputs,
    launch,
    layouts,
    notes,
    profiling,
    resuming,
    schedules,
    trained_on,
    work_dirs,
)
from tiekd.config import build, settings
from tiekd.data import resize as resizes
from tiekd.data.agreement import check_same
from tiekd.data.depth_values import check_range
from tiekd.data.loader import Loading, Unreadable
from tiekd.data.sampler import iterations_per_epoch, repeats, size_groups
from tiekd.data.section import build_dataset, loading_of
from tiekd.data.transforms import Augment
from tiekd.engine import build_engine, resolve, stepper
from tiekd.errors import CheckpointError, RecipeError
from tiekd.evaluation import EvaluationSettings
from tiekd.hooks.base import Hook
from tiekd.hooks.counting import PixelsCount
from tiekd.hooks.evaluation import Evaluation
from tiekd.hooks.guard import Guard
from tiekd.hooks.kept_memory import KeptMemory
from tiekd.hooks.preemption import Preemption
from tiekd.hooks.text_log import TextLog
from tiekd.hooks.unreadable import UnreadableSamples
from tiekd.loop import TrainState, train
from tiekd.losses import criterion as criteria
from tiekd.losses.dpm import DPM
from tiekd.models import pretrained, weights
from tiekd.models.factory import build_network
from tiekd.models.teacher import build_teacher, is_outside
from tiekd.optimizer import build_optimizer
from tiekd.options import LoadSettings, TrainSettings
from tiekd.parts import Parts
from tiekd.shown_frames import ShownFrames


def run(
    recipe: dict,
    recipe_path: Path,
    engine_config: dict,
    resume_from: str | None,
    accept_changes: bool = False,
) -> None:
    """Trains as the recipe says, in `recipe["work_dir"]`. Collective; raises UserErrors.

    recipe_path: where the recipe came from, which is whose work dir it is. resume_from: a checkpoint folder, "auto" for
    the newest whole one, or None. accept_changes: of what is trained on or compared, since the start.
    """
    options = settings(recipe, "train", TrainSettings)
    work_dir, resuming_one = Path(recipe["work_dir"]), resume_from is not None
    device = launch.start_rank(options.timeout_minutes)
    if resuming_one:
        work_dirs.lock(work_dir, resuming=True)  # before looking: a run that is about to end may save once more
    resume_path, passed_over = resuming.checkpoint_path(work_dir, resume_from)
    layout, laid_out = resuming.take_layouts(work_dir, device, resume_path)
    started = inputs.of_checkpoint(resume_path) if distributed.is_main() else None
    held_out = distributed.broadcast_object(inputs.held_out(started, recipe))
    begins = resume_path is None
    parts = build_parts(recipe, engine_config, options, device, resuming_one, begins, held_out)
    state, log = parts.state, parts.log
    work_dirs.check(work_dir, recipe_path, resuming=resuming_one)
    now = None
    if distributed.is_main():
        datasets = {"train": parts.train_set, "val": parts.val_set}
        per_epoch = state.iterations_per_epoch
        now = inputs.collect(recipe, recipe_path, parts.config, datasets, per_epoch, started)
    verdict = input_changes.judge(started, now, resume_path, accept_changes)
    state.engine = build_engine(parts.network, parts.optimizer, parts.config)
    work_dirs.lock(work_dir)
    launch.seed_everything(options.seed + distributed.rank(), options.deterministic)
    changed, ranks = [], notes.of_ranks(work_dir) if resuming_one else []
    if resuming_one:
        resuming.restore(state, resume_path, log)
        changed = work_dirs.changed_keys(work_dir, recipe) if verdict.keys is None else verdict.keys
        resuming.forget_other_best(state, started, now, accepted=bool(verdict.refused))
    distributed.barrier()
    if distributed.is_main():
        work_dirs.write(work_dir, recipe, recipe_path, parts.config)
        inputs.write(work_dir, now)
        if layout is not None:
            layouts.write(work_dir, layout)
    work_dirs.check_shared(work_dir)
    batches = parts.batches(state.total_iterations)
    log.open(work_dir, state.timestamp)
    told = notes.about(
        recipe, options, parts.train_set, parts.val_set, parts.network, parts.teacher, state.total_iterations
    )
    told += execution.about(parts.config.values, device) + laid_out
    told += notes.of_resuming(resume_path, changed, verdict)
    for note in ranks + told + passed_over + parts.report:
        log.info(note)
    if distributed.is_main():
        input_changes.note_epochs(log, started, now, state.iteration)
    with work_dirs.outcome_of(state):
        step = stepper(state.engine, parts.config, options.clip_norm)
        train(state, batches, parts.teacher, parts.criterion, parts.schedule, step)
    profiling.print_collectives(state.engine)
    if state.stop_reason is not None:
        raise launch.Stopped(f"stopped after iteration {state.iteration}, {state.stop_reason}; go on with bin/resume")


def build_parts(
    recipe: dict,
    engine_config: dict,
    options: TrainSettings,
    device: torch.device,
    resuming_one: bool,
    begins: bool,
    held_out: Collection[str] | None = None,
) -> Parts:
    """Everything up to the engine. Collective; raises UserErrors, and writes nothing but the teacher's file of weights
    into the recipe. begins: with the weights that the recipe says, at iteration 0. held_out: see `build_dataset`."""
    launch.seed_everything(options.seed, options.deterministic)
    config = resolve(engine_config, options.batch_size, options.clip_norm, distributed.world_size())
    work_dir = Path(recipe["work_dir"])

    network = build_network(recipe.get("network"))
    replica = build_network(recipe["network"]).to(device) if options.validate else None
    criterion = criteria.build(recipe.get("losses", {}), recipe.get("teacher") is not None).to(device)
    check_ignored_depths(network, criterion)
    train_set = build_dataset(recipe, "train", held_out=held_out)
    val_set = build_dataset(recipe, "val", held_out=held_out) if options.validate else None
    check_same({"training": train_set} | ({} if val_set is None else {"validation": val_set}))
    augment, loading = _loading(recipe)
    resize = resizes.of_data(recipe["data"])
    unreadable = Unreadable(loading.max_errors) if loading.on_error == "skip" else None
    resuming.fix_teacher_checkpoint(recipe, work_dir, resuming=resuming_one)
    teacher = build_teacher(recipe.get("teacher"), device)

    groups = size_groups(train_set, resize) if augment.sizes == "bucket" else None
    per_epoch = iterations_per_epoch(len(train_set), options.batch_size, groups)
    total = options.iterations or options.epochs * per_epoch
    report = [*check_range(train_set), *check_range(val_set)]
    report += _load_weights(network, recipe) if begins else []
    seen = None
    if distributed.is_main():
        seen = trained_on.union(trained_on.trained_on(train_set), _seen_before(recipe) if begins else None)
    if groups is not None:
        places = per_epoch * options.batch_size
        report = [
            f"A batch holds pictures of one size, of which there are {len(set(groups))}; to fill up each size's last "
            f"batch, {places - len(groups)} of an epoch's {places} places repeat a picture",
            *report,
        ]
    report += repeats(len(train_set), options.batch_size, groups)
    optimizer = build_optimizer(recipe.get("optimizer", {}), network, options.batch_size, options.lr_scaling)
    values = optimizer.defaults
    schedule = schedules.build(
        recipe.get("schedule", {"name": "constant"}),
        base_lr=values["lr"],
        base_momentum=values["betas"][0] if "betas" in values else values["momentum"],
        total_iterations=total,
        iterations_per_epoch=per_epoch,
    )
    state = TrainState(
        engine=None,
        recipe=recipe,
        work_dir=work_dir,
        timestamp=distributed.broadcast_object(datetime.now().strftime("%Y%m%d_%H%M%S")),
        batch_size=options.batch_size,
        accumulation=config.accumulation,
        iterations_per_epoch=per_epoch,
        total_iterations=total,
        by_epoch=options.iterations is None,
        trained_on=seen,
    )
    state.hooks, log = build_hooks(recipe, val_set, replica, teacher, device, loading, options, unreadable)
    return Parts(
        options, config, device, network, replica, criterion, teacher, train_set, val_set, augment, resize, loading,
        groups, unreadable, optimizer, schedule, state, log, report,
    )  # fmt: skip


def check_ignored_depths(network: nn.Module, criterion: criteria.Criterion) -> None:
    """RecipeError where a head ignores depths that the divergence's mean counts: they would scale the loss down."""
    if getattr(network.head, "beyond", None) != "ignore":
        return
    for key, term in criterion.terms.items():
        if isinstance(term.loss, DPM) and (term.loss.max_depth is None or term.loss.max_depth > network.max_depth):
            raise RecipeError(
                f"losses.{key}.max_depth: got {term.loss.max_depth} with head.beyond ignore, so ignored pixels would "
                f"count as 0; set losses.{key}.max_depth={network.max_depth} or network.head.beyond=clamp"
            )


def build_hooks(
    recipe, val_set, replica, teacher, device, loading, options, unreadable
) -> tuple[list[Hook], TextLog]:
    """The hooks in their order. The log comes first, so that an iteration's own line stands before what follows it;
    evaluation before the checkpoint, so that a checkpoint holds the outcome of the evaluation at its iteration."""
    log = build({"name": "text_log", **recipe.get("log", {})}, "tiekd.hooks", "log")
    evaluation, frames = settings(recipe, "evaluation", EvaluationSettings), None
    resize = resizes.of_data(recipe.get("data", {}))
    if options.validate:
        # Rank 0 alone asks, for validation frames: a teacher of the user's own may not be made for either.
        taught = bool(recipe.get("teacher")) and not is_outside(recipe["teacher"])
        shown = teacher if taught else None
        frames = ShownFrames(val_set, replica, shown, device, evaluation.crop, cap=evaluation.cap, resize=resize)
    board = build(
        {"name": "tensorboard", **recipe.get("tensorboard", {})},
        "tiekd.hooks",
        "tensorboard",
        text_log=log,
        max_depth=recipe["network"]["max_depth"],
        frames=frames,
    )
    hooks: list[Hook] = [log, board, Preemption(), Guard(log, options.max_bad_iterations)]
    hooks += [PixelsCount(log), KeptMemory()]
    if unreadable is not None:
        hooks.append(UnreadableSamples(unreadable, log))
    if options.validate:
        hooks.append(
            Evaluation(evaluation, val_set, replica, device, loading, [log, board], log.info, sys.stderr, resize)
        )
    hooks += [build(node, "tiekd.hooks", "hooks") for node in recipe.get("hooks", [])]
    saving = {"name": "checkpoint", **recipe.get("checkpoint", {})}
    hooks.append(build(saving, "tiekd.hooks", "checkpoint", hooks=list(hooks), info=log.info))
    return hooks, log


def _load_weights(network, recipe: dict) -> list[str]:
    """Loads `load.checkpoint`, else what the encoder's `pretrained` says, into the network; returns what to log."""
    load = settings(recipe, "load", LoadSettings)
    if load.checkpoint is None:
        return [note for note in [pretrained.load(network)] if note]
    path = _weights_file(load.checkpoint)
    state = weights.read_weights(path)
    try:
        report = weights.load_into(network, state, ignore=load.ignore)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}, or leave them out, as in --set 'load.ignore=[head.*]'") from None
    left_out = [*report.misfit, *report.missing]
    told = f"; left as initialised: {', '.join(left_out)}" if left_out else ""
    return [f"Loaded {len(report.matched)} tensors from {path}{told}"]


def _weights_file(given: str) -> Path:
    """The file of weights that `load.checkpoint` means, which may be a work dir or a checkpoint in one."""
    path = Path(given)
    return checkpoint.find_weights(path) if path.is_dir() else path


def _seen_before(recipe: dict) -> trained_on.TrainedOn | None:
    """What the weights that the run begins with were trained on."""
    given = settings(recipe, "load", LoadSettings).checkpoint
    return None if given is None else trained_on.read(_weights_file(given))


def _loading(recipe: dict) -> tuple[Augment, Loading]:
    loading = loading_of(recipe)
    augment = settings({"data.augment": recipe["data"].get("augment", {})}, "data.augment", Augment)
    if loading.on_error == "skip" and augment.sizes == "bucket":
        raise RecipeError(
            "data.on_error: skip can't go with data.augment.sizes=bucket, where all pictures' sizes must be known; set "
            "sizes=keep_aspect, or train on the split that bin/check_data.py cleans"
        )
    return augment, loading
