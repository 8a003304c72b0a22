"""One training run from a recipe: puts the parts together, then calls the loop.

Everything that can be wrong with a recipe is found here, before the first iteration and before anything is written.
"""

from datetime import datetime
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from tiekd import checkpoint, distributed, launch, schedules, work_dirs
from tiekd.config import build, load_recipe, settings
from tiekd.data import teacher_maps
from tiekd.data.loader import Loading, Unreadable, training_batches
from tiekd.data.sampler import MicroBatches, iterations_per_epoch, size_groups
from tiekd.data.transforms import Augment
from tiekd.engine import build_engine, resolve, stepper
from tiekd.errors import CheckpointError, RecipeError
from tiekd.evaluation import EvaluationSettings
from tiekd.hooks.base import Hook
from tiekd.hooks.checkpoint import keyed
from tiekd.hooks.evaluation import Evaluation
from tiekd.hooks.guard import Guard
from tiekd.hooks.preemption import Preemption
from tiekd.hooks.text_log import TextLog
from tiekd.hooks.unreadable import UnreadableSamples
from tiekd.loop import TrainState, train
from tiekd.losses import criterion as criteria
from tiekd.losses.dpm import DPM
from tiekd.models import pretrained, weights
from tiekd.models.factory import build_network
from tiekd.models.teacher import FrozenTeacher, build_teacher, teacher_checkpoint
from tiekd.optimizer import build_optimizer, lr_factor
from tiekd.options import LoadSettings, TrainSettings

_NOT_FOR_DATASETS = ("augment", *Loading.__dataclass_fields__)
_TRAINING_CROPS = ("nyu_crop",)  # options that cut training frames only; evaluation and teacher maps are of whole ones


def run(recipe: dict, recipe_path: Path, engine_config: dict, resume_from: str | None) -> None:
    """Trains as the recipe says, in `recipe["work_dir"]`. Collective; raises UserErrors.

    recipe_path: where the recipe came from, which is whose work dir it is. resume_from: a checkpoint folder, "auto" for
    the newest whole one, or None.
    """
    options = settings(recipe, "train", TrainSettings)
    work_dir = Path(recipe["work_dir"])
    device = launch.start_rank(options.timeout_minutes)
    if resume_from is not None:
        work_dirs.lock(work_dir, resuming=True)  # before looking: a run that is about to end may save once more
    resume_path, passed_over = _resume_path(work_dir, resume_from)
    launch.seed_everything(options.seed, options.deterministic)
    config = resolve(engine_config, options.batch_size, options.clip_norm, distributed.world_size())

    network = build_network(recipe.get("network"))
    replica = build_network(recipe["network"]).to(device) if options.validate else None
    has_teacher = recipe.get("teacher") is not None
    criterion = criteria.build(recipe.get("losses", {}), has_teacher).to(device)
    check_ignored_depths(network, criterion)
    train_set = build_dataset(recipe, "train")
    val_set = build_dataset(recipe, "val") if options.validate else None
    augment, loading = _loading(recipe)
    unreadable = Unreadable(loading.max_errors) if loading.on_error == "skip" else None
    _fix_teacher_checkpoint(recipe, work_dir, resuming=resume_from is not None)
    teacher = build_teacher(recipe.get("teacher"), device)

    groups = size_groups(train_set) if augment.sizes == "bucket" else None
    per_epoch = iterations_per_epoch(len(train_set), options.batch_size, groups)
    total = options.iterations or options.epochs * per_epoch
    optimizer_node = recipe.get("optimizer", {})
    report = _load_weights(network, recipe) if resume_path is None else []
    if groups is not None:
        places = per_epoch * options.batch_size
        report = [
            f"A batch holds pictures of one size, of which there are {len(set(groups))}; to fill up each size's last "
            f"batch, {places - len(groups)} of an epoch's {places} places repeat a picture",
            *report,
        ]
    optimizer = build_optimizer(optimizer_node, network, options.batch_size, options.lr_scaling)
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
    )
    state.hooks, log = build_hooks(recipe, val_set, replica, device, loading, options, unreadable)
    work_dirs.check(work_dir, recipe_path, resuming=resume_from is not None)
    state.engine = build_engine(network, optimizer, config)
    work_dirs.lock(work_dir)
    launch.seed_everything(options.seed + distributed.rank(), options.deterministic)
    changed = []
    if resume_from is not None:
        _resume(state, resume_path)
        log.drop_rows(work_dir)
        changed = work_dirs.changed_keys(work_dir, recipe)
    distributed.barrier()
    if distributed.is_main():
        work_dirs.write(work_dir, recipe, recipe_path, config)
    work_dirs.check_shared(work_dir)
    sampler = MicroBatches(
        len(train_set),
        options.batch_size,
        config.accumulation,
        distributed.rank(),
        distributed.world_size(),
        options.seed,
        state.iteration,
        total,
        groups,
    )
    batches = training_batches(
        train_set, sampler, augment, options.seed, loading.workers, device, loading.timeout_s, unreadable
    )
    log.open(work_dir, state.timestamp)
    report = passed_over + report
    for note in _notes(recipe, options, train_set, val_set, network, teacher, resume_path, changed, report, total):
        log.info(note)
    with work_dirs.outcome_of(state):
        train(state, batches, teacher, criterion, schedule, stepper(state.engine, config, options.clip_norm))
    if state.stop_reason is not None:
        raise launch.Stopped(f"stopped after iteration {state.iteration}, {state.stop_reason}; go on with bin/resume")


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


def build_dataset(recipe: dict, split: str, as_evaluated: bool = False) -> Dataset:
    """The data set of one split; frames without ground truth stay in training when there is a teacher.

    as_evaluated: training frames, too, are cut as validation frames are.
    """
    left_out = (*_NOT_FOR_DATASETS, *(_TRAINING_CROPS if as_evaluated else ()))
    node = {key: value for key, value in recipe.get("data", {}).items() if key not in left_out}
    teacher = recipe.get("teacher") or {}
    frames = build(
        node,
        "tiekd.data",
        "data",
        split=split,
        max_depth=recipe["network"]["max_depth"],
        maps=teacher.get("maps"),
        needs_ground_truth=split == "val" or not teacher,
    )
    if getattr(frames, "maps", None) is not None:
        teacher_maps.check(frames.maps, recipe)
    return frames


def build_hooks(recipe, val_set, replica, device, loading, options, unreadable) -> tuple[list[Hook], TextLog]:
    """The hooks in their order. The log comes first, so that an iteration's own line stands before what follows it;
    evaluation before the checkpoint, so that a checkpoint holds the outcome of the evaluation at its iteration."""
    log = build({"name": "text_log", **recipe.get("log", {})}, "tiekd.hooks", "log")
    board = build(
        {"name": "tensorboard", **recipe.get("tensorboard", {})},
        "tiekd.hooks",
        "tensorboard",
        text_log=log,
        max_depth=recipe["network"]["max_depth"],
    )
    hooks: list[Hook] = [log, board, Preemption(), Guard(log, options.max_bad_iterations)]
    if unreadable is not None:
        hooks.append(UnreadableSamples(unreadable, log))
    if options.validate:
        evaluation = settings(recipe, "evaluation", EvaluationSettings)
        hooks.append(Evaluation(evaluation, val_set, replica, device, loading, [log, board], log.info))
    hooks += [build(node, "tiekd.hooks", "hooks") for node in recipe.get("hooks", [])]
    saving = {"name": "checkpoint", **recipe.get("checkpoint", {})}
    hooks.append(build(saving, "tiekd.hooks", "checkpoint", hooks=list(hooks), info=log.info))
    return hooks, log


def _resume_path(work_dir: Path, resume_from: str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what to say of newer ones that weren't taken. Collective.

    The main rank looks for it, so that all take the same.
    """
    if resume_from is None:
        return None, []
    if resume_from == "auto":
        found = None
        if distributed.is_main():
            try:
                if (work_dir / launch.RECORD).is_file() and not checkpoint.newest_first(work_dir / checkpoint.FOLDER):
                    found = None, ["The run that was here had saved nothing yet; it begins anew"]
                else:
                    found = checkpoint.find(work_dir)
            except CheckpointError as error:
                found = error
        found = distributed.broadcast_object(found)
        if isinstance(found, CheckpointError):
            raise found
        return found
    path = Path(resume_from)
    if not path.is_dir():
        raise CheckpointError(f"--resume-from {path}: no such checkpoint folder; give .../checkpoints/iter_N or auto")
    return path, []


def _resume(state: TrainState, path: Path | None) -> None:
    if path is not None:
        state.iteration, hook_states = checkpoint.load(state.engine, path)
        for key, hook in keyed(state.hooks).items():
            if key in hook_states:
                hook.load_state_dict(hook_states[key])
    if distributed.is_main():
        checkpoint.set_aside_newer(state.work_dir, state.iteration)


def _fix_teacher_checkpoint(recipe: dict, work_dir: Path, resuming: bool) -> None:
    """Names the teacher's file of weights in the recipe: the best of a work dir may be another one tomorrow.

    A run that goes on takes the file that it was started with.
    """
    teacher = recipe.get("teacher") or {}
    if "network" not in teacher or "maps" in teacher:
        return
    if resuming and "checkpoint" not in teacher and (work_dir / "config.yaml").is_file():
        started_with = load_recipe(work_dir / "config.yaml").get("teacher") or {}
        if started_with.get("recipe") == teacher.get("recipe") and "checkpoint" in started_with:
            teacher["checkpoint"] = started_with["checkpoint"]
    teacher["checkpoint"] = str(teacher_checkpoint(teacher).resolve())


def _load_weights(network, recipe: dict) -> list[str]:
    """Loads `load.checkpoint`, else what the encoder's `pretrained` says, into the network; returns what to log."""
    load = settings(recipe, "load", LoadSettings)
    if load.checkpoint is None:
        return [note for note in [pretrained.load(network)] if note]
    path = Path(load.checkpoint)
    if path.is_dir():  # a work dir, or a checkpoint in one
        path = path / checkpoint.STUDENT if (path / checkpoint.STUDENT).is_file() else checkpoint.find_weights(path)
    try:
        report = weights.load_into(network, weights.read_weights(path), ignore=load.ignore)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}, as in --set load.ignore=[head.*]") from None
    left_out = [*report.misfit, *report.missing]
    told = f"; left as initialised: {', '.join(left_out)}" if left_out else ""
    return [f"Loaded {len(report.matched)} tensors from {path}{told}"]


def loading_of(recipe: dict) -> Loading:
    """How the recipe's data is read, whatever the data set. Raises RecipeError."""
    node = {key: value for key, value in recipe["data"].items() if key in Loading.__dataclass_fields__}
    return settings({"data": node}, "data", Loading)


def _loading(recipe: dict) -> tuple[Augment, Loading]:
    loading = loading_of(recipe)
    augment = settings({"data.augment": recipe["data"].get("augment", {})}, "data.augment", Augment)
    if loading.on_error == "skip" and augment.sizes == "bucket":
        raise RecipeError(
            "data.on_error: skip can't go with data.augment.sizes=bucket, where all pictures' sizes must be known; set "
            "sizes=keep_aspect, or train on the split that bin/check_data.py cleans"
        )
    return augment, loading


def _notes(recipe, options, train_set, val_set, network, teacher, resume_path, changed, report, total) -> list[str]:
    """What the log says before training: sizes, counts, and everything a user should know about this run."""
    notes = [f"Training frames: {len(train_set)}" + _skipped(train_set)]
    if val_set is None:
        notes.append("Validation is off: no evaluation, and no best checkpoint will be saved")
    else:
        notes.append(f"Validation frames: {len(val_set)}" + _skipped(val_set))
    notes.append(f"Student: {_millions(network)} M parameters, trainable")
    if isinstance(teacher, FrozenTeacher):
        source = recipe["teacher"]["checkpoint"]
        notes.append(f"Teacher: {_millions(teacher.network)} M parameters, frozen, from {source}")
    elif getattr(train_set, "maps", None) is not None:
        notes.append(teacher_maps.describe(train_set.maps))
    lr_batch_size = recipe["optimizer"].get("lr_batch_size") or options.batch_size
    if lr_batch_size != options.batch_size:
        factor = lr_factor(options.batch_size, lr_batch_size, options.lr_scaling)
        notes.append(
            f"The learning rate is meant for a global batch of {lr_batch_size}, this run has {options.batch_size}: "
            f"train.lr_scaling {options.lr_scaling} multiplies it by {factor:.4g}"
        )
    notes += filter(None, [schedules.unfinished_warmup(recipe.get("schedule", {}), total)])
    if resume_path is not None:
        notes.append(f"Resumed from {resume_path}")
        if changed:
            notes.append(f"Not as it was started, so it won't go on as it would have; changed: {', '.join(changed)}")
    return notes + report


def _skipped(dataset: Dataset) -> str:
    skipped = getattr(dataset, "num_skipped", 0)
    return f" ({skipped} without ground truth skipped)" if skipped else ""


def _millions(network) -> str:
    count = sum(getattr(p, "ds_numel", p.numel()) for p in network.parameters())
    return f"{count / 1e6:.2f}"
