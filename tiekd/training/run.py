"""Runs one training run: builds its parts from a recipe, restores a checkpoint, calls the loop."""

from pathlib import Path

from tiekd import console
from tiekd.data.mixed import sets_in
from tiekd.distributed import comm, entrypoint, process_group
from tiekd.engine import execution, profiling
from tiekd.engine.build import build_engine
from tiekd.engine.step import Step
from tiekd.kernels import layouts
from tiekd.training import input_changes, inputs, resume, startup_log, teacher_audit
from tiekd.training.build import build_parts, teachers_by_set
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
    """Runs the training that a recipe describes, in the folder `recipe["work_dir"]`. Collective.

    Args:
        recipe: The recipe, as `load_recipe` returns it.
        recipe_path: The recipe's file, which must be the one with which the run in the work dir was
            started.
        engine_config: The engine config, as `read_engine_config` returns it.
        resume_from: The folder of the checkpoint to resume from, "auto" for the newest intact
            checkpoint in the work dir, or None for a new run.
        accept_changes: True to resume even if the training or validation data have changed since
            the run was started.

    Raises:
        UserError: The recipe, the engine config or a file is wrong, or the run was stopped.
    """
    entrypoint.result_is_elsewhere()
    sections = Recipe(recipe)
    options, work_dir, resuming = sections.train, sections.work_dir, resume_from is not None
    device = process_group.start_rank(options.timeout_minutes)

    # Choose the checkpoint to resume from. Lock the work dir first, since another process of the
    # run that is about to end may still save a checkpoint.
    if resuming:
        workdir.lock(work_dir, resuming=True)
    resume_path, passed_over = resume.checkpoint_path(work_dir, resume_from)
    layout, laid_out = resume.set_layouts(work_dir, device, resume_path)
    started = resume.inputs_at_start(resume_path)

    # Build all parts and check that the run may use this work dir. Nothing has been written so far.
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
        # Record the inputs of the recipe in `state`, since only that one names the file of the
        # teacher's weights.
        with_teacher = Recipe(state.recipe)
        now = inputs.collect(
            with_teacher,
            recipe_path,
            parts.config,
            datasets,
            per_epoch,
            started,
            state.teachers,
        )
    audited = []
    if resume_path is None:
        audited = teacher_audit.audit_sets(
            sections.data_sets,
            teachers_by_set(parts.teacher),
            dict(sets_in(parts.train_set)),
            max_depth_m=sections.max_depth_m,
            device=device,
            resize=sections.resize,
        )
    verdict = input_changes.compare_or_refuse(started, now, resume_path, accept_changes)
    state.engine = build_engine(parts.network, parts.optimizer, parts.config)

    # Lock the work dir until this process ends, and restore the checkpoint.
    workdir.lock(work_dir)
    process_group.seed_everything(options.seed + comm.rank(), options.deterministic)
    changed, ranks = [], startup_log.rank_warning(work_dir) if resuming else []
    if resuming:
        resume.restore(state, resume_path, log)
        changed = verdict.keys
        if changed is None:
            changed = workdir.changed_keys(work_dir, state.recipe)
        resume.forget_other_best(state, started, now, accepted=bool(verdict.refused))
    comm.barrier()

    # Write the records of the run and the first lines of its log.
    if comm.is_main():
        workdir.write(work_dir, state.recipe, recipe_path, parts.config.values)
        inputs.write(work_dir, now)
        if layout is not None:
            layouts.write(work_dir, layout)
    workdir.check_shared(work_dir)
    batches = parts.batches(state.total_iterations)
    log.open(work_dir, state.timestamp)
    told = (
        startup_log.first_lines(parts)
        + execution.log_messages(parts.config.values, device)
        + laid_out
    )
    told += startup_log.resume_lines(resume_path, changed, verdict)
    for note in ranks + told + passed_over + parts.report + audited:
        log.info(note)
    if comm.is_main():
        input_changes.log_epoch_change(log, started, now, state.iteration)

    with workdir.outcome_of(state):
        state.step = Step(state.engine, parts.config, options.clip_norm)
        train(state, batches, parts.teacher, parts.criterion, parts.schedule, parts.targets)
    profiling.print_collectives(state.engine)
    if state.stop_reason is not None and not state.stopped_early:
        told = f"stopped after iteration {state.iteration}, {state.stop_reason}"
        raise entrypoint.Stopped(f"{told}; continue with {console.command('resume')}")
