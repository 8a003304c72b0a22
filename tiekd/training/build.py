"""What a run is made of, from its recipe, between that and the loop.

Everything that can be wrong with a recipe is found here, before the first iteration and before anything is written.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tiekd.config.build import build, settings
from tiekd.config.recipe import is_outside
from tiekd.data import resize as resizes
from tiekd.data import trained_on
from tiekd.data.agreement import check_same
from tiekd.data.augment.augment import Augment
from tiekd.data.batch import Batch
from tiekd.data.build import build_dataset, loading_of
from tiekd.data.depth_values import check_range
from tiekd.data.loading.loader import Loading, Unreadable, training_batches
from tiekd.data.loading.sampler import MicroBatches, iterations_per_epoch, repeats, size_groups
from tiekd.data.resize import Resize
from tiekd.distributed import comm, process_group
from tiekd.engine.config import EngineConfig, resolve
from tiekd.errors import CheckpointError, RecipeError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.losses.dpm import DPM
from tiekd.models.build import build_network
from tiekd.models.weights import pretrained, state_dicts
from tiekd.teaching import build_teacher
from tiekd.training import criterion as criteria
from tiekd.training import resume, schedules
from tiekd.training.criterion import Criterion
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.hook import Hook
from tiekd.training.hooks.counting import PixelsCount
from tiekd.training.hooks.guard import Guard
from tiekd.training.hooks.preemption import Preemption
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.kept_memory_hook import KeptMemory
from tiekd.training.optimizer import build_optimizer
from tiekd.training.schedules import Schedule
from tiekd.training.settings import LoadSettings, TrainSettings
from tiekd.training.state import TrainState
from tiekd.training.unreadable_hook import UnreadableSamples
from tiekd.visualization.validation_frames import ShownFrames
from tiekd.workdir import checkpoints


class Parts(NamedTuple):
    """What a run is made of, all checked, before anything is written and without the engine; `state` lacks that."""

    options: TrainSettings
    config: EngineConfig
    device: torch.device
    network: nn.Module
    replica: nn.Module | None  # of the network, for evaluations
    criterion: Criterion
    teacher: Callable[[Batch], Tensor]
    train_set: Dataset
    val_set: Dataset | None
    augment: Augment
    resize: Resize
    loading: Loading
    groups: list[int] | None  # of the training frames, by size, where a batch holds one size
    unreadable: Unreadable | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    state: TrainState
    log: TextLog
    report: list[str]  # for the log

    def batches(self, end: int) -> Iterator[Batch]:
        """This rank's micro-batches from where the run stands up to iteration `end`."""
        sampler = MicroBatches(
            len(self.train_set),
            self.options.batch_size,
            self.config.accumulation,
            comm.rank(),
            comm.world_size(),
            self.options.seed,
            self.state.iteration,
            end,
            self.groups,
        )
        workers, timeout_s = self.loading.workers, self.loading.timeout_s
        return training_batches(
            self.train_set,
            sampler,
            self.augment,
            self.options.seed,
            workers,
            self.device,
            timeout_s,
            self.unreadable,
            self.resize,
        )


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
    process_group.seed_everything(options.seed, options.deterministic)
    config = resolve(engine_config, options.batch_size, options.clip_norm, comm.world_size())
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
    resume.fix_teacher_checkpoint(recipe, work_dir, resuming=resuming_one)
    teacher = build_teacher(recipe.get("teacher"), device)

    groups = size_groups(train_set, resize) if augment.sizes == "bucket" else None
    per_epoch = iterations_per_epoch(len(train_set), options.batch_size, groups)
    total = options.iterations or options.epochs * per_epoch
    report = [*check_range(train_set), *check_range(val_set)]
    report += _load_weights(network, recipe) if begins else []
    seen = None
    if comm.is_main():
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
        timestamp=comm.broadcast_object(datetime.now().strftime("%Y%m%d_%H%M%S")),
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
    log = build({"name": "text_log", **recipe.get("log", {})}, "tiekd.training.hooks", "log")
    evaluation, frames = settings(recipe, "evaluation", EvaluationSettings), None
    resize = resizes.of_data(recipe.get("data", {}))
    if options.validate:
        # Rank 0 alone asks, for validation frames: a teacher of the user's own may not be made for either.
        taught = bool(recipe.get("teacher")) and not is_outside(recipe["teacher"])
        shown = teacher if taught else None
        frames = ShownFrames(val_set, replica, shown, device, evaluation.crop, cap=evaluation.cap, resize=resize)
    board = build(
        {"name": "tensorboard", **recipe.get("tensorboard", {})},
        "tiekd.training.hooks",
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
            Evaluation(evaluation, val_set, replica, device, loading, log.info, sys.stderr, resize)
        )
    hooks += [build(node, "tiekd.training.hooks", "hooks") for node in recipe.get("hooks", [])]
    saving = {"name": "checkpoint", **recipe.get("checkpoint", {})}
    hooks.append(build(saving, "tiekd.training.hooks", "checkpoint", hooks=list(hooks), info=log.info))
    return hooks, log


def _load_weights(network, recipe: dict) -> list[str]:
    """Loads `load.checkpoint`, else what the encoder's `pretrained` says, into the network; returns what to log."""
    load = settings(recipe, "load", LoadSettings)
    if load.checkpoint is None:
        return [note for note in [pretrained.load(network)] if note]
    path = _weights_file(load.checkpoint)
    state = state_dicts.read_weights(path)
    try:
        report = state_dicts.load_into(network, state, ignore=load.ignore)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}, or leave them out, as in --set 'load.ignore=[head.*]'") from None
    left_out = [*report.misfit, *report.missing]
    told = f"; left as initialised: {', '.join(left_out)}" if left_out else ""
    return [f"Loaded {len(report.matched)} tensors from {path}{told}"]


def _weights_file(given: str) -> Path:
    """The file of weights that `load.checkpoint` means, which may be a work dir or a checkpoint in one."""
    path = Path(given)
    return checkpoints.find_weights(path) if path.is_dir() else path


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
