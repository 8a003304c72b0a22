"""Runs one training from a recipe: builds its parts, restores a checkpoint, calls the loop."""

from pathlib import Path

from tiekd.distributed import comm, entrypoint, process_group
from tiekd.engine import execution, profiling
from tiekd.engine.build import build_engine
from tiekd.engine.step import Step
from tiekd.kernels import layouts
from tiekd.training import input_changes, inputs, resume, startup_log
from tiekd.training.build import build_parts
from tiekd.training.loop import train
from tiekd.training.settings import Recipe
from tiekd.workdir import workdir


def run(
    recipe: dict,
    recipe_path: Path,
    engine_config: dict,
    resume_from: str | None,
    accept_changes: bool = False,
) -> None:
    """Trains as the recipe says, in `recipe["work_dir"]`. Collective.

    Args:
        recipe: As `load_recipe` returns it.
        recipe_path: Where the recipe came from, which says whose work dir it is.
        engine_config: As `read_engine_config` returns it.
        resume_from: A checkpoint's folder, "auto" for the newest whole one, or None to begin.
        accept_changes: Resumes although what is trained on or compared has changed.

    Raises:
        UserError: Something that the user gave is wrong, or the run was stopped.
    """
    sections = Recipe(recipe)
    options, work_dir, resuming = sections.train, sections.work_dir, resume_from is not None
    device = process_group.start_rank(options.timeout_minutes)

    # Where the run begins or resumes.
    if resuming:
        workdir.lock(work_dir, resuming=True)  # before looking: a run that ends may save once more
    resume_path, passed_over = resume.checkpoint_path(work_dir, resume_from)
    layout, laid_out = resume.set_layouts(work_dir, device, resume_path)
    inputs.check_readable_of(resume_path)
    started = inputs.of_checkpoint(resume_path) if comm.is_main() else None

    # All parts, and whether they may run here. Nothing is written yet.
    parts = build_parts(
        sections,
        engine_config,
        device,
        resuming=resuming,
        begins=resume_path is None,
        held_out=comm.broadcast_object(inputs.held_out(started, sections)),
    )
    state, log = parts.state, parts.log
    workdir.check(work_dir, recipe_path, resuming=resuming)
    now = None
    if comm.is_main():
        datasets = {"train": parts.train_set, "val": parts.val_set}
        per_epoch = state.iterations_per_epoch
        with_teacher = Recipe(state.recipe)  # whose teacher's file is known by now
        now = inputs.collect(with_teacher, recipe_path, parts.config, datasets, per_epoch, started)
    verdict = input_changes.judge(started, now, resume_path, accept_changes)
    state.engine = build_engine(parts.network, parts.optimizer, parts.config)

    # The work dir is this run's from here on; what a checkpoint holds is restored.
    workdir.lock(work_dir)
    process_group.seed_everything(options.seed + comm.rank(), options.deterministic)
    changed, ranks = [], startup_log.of_ranks(work_dir) if resuming else []
    if resuming:
        resume.restore(state, resume_path, log)
        changed = verdict.keys
        if changed is None:
            changed = workdir.changed_keys(work_dir, state.recipe)
        resume.forget_other_best(state, started, now, accepted=bool(verdict.refused))
    comm.barrier()

    # Records of the run, and the log's first lines.
    if comm.is_main():
        workdir.write(work_dir, state.recipe, recipe_path, parts.config.values)
        inputs.write(work_dir, now)
        if layout is not None:
            layouts.write(work_dir, layout)
    workdir.check_shared(work_dir)
    batches = parts.batches(state.total_iterations)
    log.open(work_dir, state.timestamp)
    told = startup_log.about(parts) + execution.about(parts.config.values, device) + laid_out
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
        told = f"stopped after iteration {state.iteration}, {state.stop_reason}"
        raise entrypoint.Stopped(f"{told}; go on with bin/resume")
