"""One training run from a recipe: has the parts built, then calls the loop."""

from pathlib import Path

from tiekd.config.build import settings
from tiekd.distributed import comm, entrypoint, process_group
from tiekd.engine import execution, profiling
from tiekd.engine.build import build_engine
from tiekd.engine.step import Step
from tiekd.kernels import layouts
from tiekd.training import input_changes, inputs, resume, startup_log
from tiekd.training.build import build_parts
from tiekd.training.loop import train
from tiekd.training.settings import TrainSettings
from tiekd.workdir import workdir


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
    device = process_group.start_rank(options.timeout_minutes)
    if resuming_one:
        workdir.lock(work_dir, resuming=True)  # before looking: a run that is about to end may save once more
    resume_path, passed_over = resume.checkpoint_path(work_dir, resume_from)
    layout, laid_out = resume.take_layouts(work_dir, device, resume_path)
    started = inputs.of_checkpoint(resume_path) if comm.is_main() else None
    held_out = comm.broadcast_object(inputs.held_out(started, recipe))
    begins = resume_path is None
    parts = build_parts(recipe, engine_config, options, device, resuming_one, begins, held_out)
    state, log = parts.state, parts.log
    workdir.check(work_dir, recipe_path, resuming=resuming_one)
    now = None
    if comm.is_main():
        datasets = {"train": parts.train_set, "val": parts.val_set}
        per_epoch = state.iterations_per_epoch
        now = inputs.collect(recipe, recipe_path, parts.config, datasets, per_epoch, started)
    verdict = input_changes.judge(started, now, resume_path, accept_changes)
    state.engine = build_engine(parts.network, parts.optimizer, parts.config)
    workdir.lock(work_dir)
    process_group.seed_everything(options.seed + comm.rank(), options.deterministic)
    changed, ranks = [], startup_log.of_ranks(work_dir) if resuming_one else []
    if resuming_one:
        resume.restore(state, resume_path, log)
        changed = workdir.changed_keys(work_dir, recipe) if verdict.keys is None else verdict.keys
        resume.forget_other_best(state, started, now, accepted=bool(verdict.refused))
    comm.barrier()
    if comm.is_main():
        workdir.write(work_dir, recipe, recipe_path, parts.config.values)
        inputs.write(work_dir, now)
        if layout is not None:
            layouts.write(work_dir, layout)
    workdir.check_shared(work_dir)
    batches = parts.batches(state.total_iterations)
    log.open(work_dir, state.timestamp)
    told = startup_log.about(
        recipe, options, parts.train_set, parts.val_set, parts.network, parts.teacher, state.total_iterations
    )
    told += execution.about(parts.config.values, device) + laid_out
    told += startup_log.of_resuming(resume_path, changed, verdict)
    for note in ranks + told + passed_over + parts.report:
        log.info(note)
    if comm.is_main():
        input_changes.note_epochs(log, started, now, state.iteration)
    with workdir.outcome_of(state):
        state.step = Step(state.engine, parts.config, options.clip_norm)
        train(state, batches, parts.teacher, parts.criterion, parts.schedule)
    profiling.print_collectives(state.engine)
    if state.stop_reason is not None:
        told = f"stopped after iteration {state.iteration}, {state.stop_reason}; go on with bin/resume"
        raise entrypoint.Stopped(told)
