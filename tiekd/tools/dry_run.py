"""Measures the time, memory and disk space that a run will need: `bin/train.py --dry-run`.

It builds everything that the run builds, so that it raises the same errors. It trains until the
median time per iteration is known (3 s, 5 to 50 iterations; up to a minute if they are slow),
evaluates a few validation frames, and serialises a checkpoint without writing it. Therefore times
and peak memory are those of the run. It writes nothing, reads no checkpoint of the run, and works
while another process uses the work dir.

Not covered: the time to save checkpoints, and TensorBoard's images.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import Dataset

from tiekd.data import decoded_cache
from tiekd.data.mixed import sets_in
from tiekd.distributed import comm, memory, process_group
from tiekd.engine import checkpoint, patches
from tiekd.engine.build import build_engine
from tiekd.engine.step import Step
from tiekd.errors import LaunchError
from tiekd.evaluation.evaluate import evaluate
from tiekd.models.flip import predict
from tiekd.tools.measure import Stopwatch
from tiekd.training import startup_log
from tiekd.training.build import Parts, build_parts
from tiekd.training.evaluation_hook import Evaluation, ValidationSet
from tiekd.training.hooks import tensorboard
from tiekd.training.hooks.checkpoint import Checkpoint
from tiekd.training.hooks.ema import Ema
from tiekd.training.kept_memory_hook import KeptMemory
from tiekd.training.loop import train
from tiekd.training.settings import Recipe
from tiekd.workdir import checkpoints, manifest, workdir
from tiekd.workdir.environment import environment

_MOST_ITERATIONS = 200  # upper bound of iterations; the stopwatch ends training much earlier
_EVALUATED = 4  # number of batches per rank on which an evaluation is timed
_SLOW_S = 20.0  # seconds; if a batch of an evaluation takes longer, only one batch is timed


def dry_run(recipe: dict, recipe_path: Path, engine_config: dict) -> list[str]:
    """Measures the time, memory and disk space that a run will need.

    Collective: all ranks must call it.

    Args:
        recipe: the recipe, with overrides applied.
        recipe_path: the recipe's file.
        engine_config: the engine config, as read from its file.

    Returns:
        The report's lines, the same on every rank.

    Raises:
        UserError: any error that `training.run.run` raises before it trains.
    """
    # Build everything that the run builds.
    sections = Recipe(recipe)
    options = sections.train
    device = process_group.start_rank(options.timeout_minutes)
    parts = build_parts(sections, engine_config, device, resuming=False, begins=True)
    state = parts.state
    refusal = _refusal(state.work_dir, recipe_path)
    if comm.is_main():
        tensorboard.writer_class()  # imported as the run does, so that its memory is included
    # Measure iterations, an evaluation, a checkpoint and the peak of memory.
    machine = environment()
    watch = Stopwatch(device, sections.loading.workers, state.accumulation)
    train_timed(parts, watch)
    evaluations = _evaluations(parts)
    evaluation_s = _evaluation_s(parts)
    weights_bytes, checkpoint_bytes = _checkpoint_bytes(parts)
    peaks = comm.gather_objects(memory.peak_bytes(device))

    # Format the report.
    seconds, data_s = watch.median_s()
    least_s, most_s = watch.range_s()
    total = state.total_iterations
    told = startup_log.first_lines(parts)
    told += parts.report + [
        line
        for dataset in (parts.train_set, parts.val_set)
        for _, frames in sets_in(dataset)
        for line in decoded_cache.describe(frames)
    ]
    told += [
        f"Measured on: {machine['CPU' if device.type == 'cpu' else 'GPU']}, PyTorch "
        f"{machine['PyTorch']}",
        f"Global batch: {options.batch_size} = {parts.config.batch_size_per_gpu} a rank x "
        f"{state.accumulation} accumulated x {comm.world_size()} ranks",
        f"Iterations: {state.iterations_per_epoch} an epoch, {total} in all",
        f"Time per iteration: {seconds:.3f} s ({least_s:.3f} to {most_s:.3f}), of which "
        f"{data_s:.3f} s waiting for data",
    ]
    if evaluations:
        told.append(f"Evaluations: {evaluations} of {_duration(evaluation_s)} each")
    where = "of a rank's process"
    if device.type != "cpu":
        where = f"on a device of {size(_device_bytes(device))}"
    told += [
        f"ETA: {_duration(total * seconds + evaluations * evaluation_s)} for training and "
        "evaluations",
        f"Peak memory: {size(max(peaks))} {where}",
    ]
    told += _disk(parts, weights_bytes, checkpoint_bytes)
    return told + ([f"A run would be refused here now: {refusal}"] if refusal else [])


def train_timed(parts: Parts, watch: Stopwatch) -> None:
    """Builds the engine and trains until enough iterations are timed. Collective.

    Args:
        parts: the objects of the run, such as datasets, network and hooks. Its `state` gets the
            engine and the moving average of the weights.
        watch: the hook that times iterations and stops the training.
    """
    state = parts.state
    options = parts.recipe.train
    state.engine = build_engine(parts.network, parts.optimizer, parts.config)
    process_group.seed_everything(options.seed + comm.rank(), options.deterministic)
    state.step = Step(state.engine, parts.config, options.clip_norm)
    batches = parts.batches(_MOST_ITERATIONS)
    # Keep the moving average of the weights among the hooks, because it takes memory, and adds a
    # second file of weights to checkpoints.
    averages = [hook for hook in state.hooks if isinstance(hook, Ema)]
    hooks = [KeptMemory(), *averages, watch]
    timed_state = replace(state, hooks=hooks, total_iterations=_MOST_ITERATIONS)
    train(timed_state, batches, parts.teacher, parts.criterion, parts.schedule, parts.targets)
    state.average = timed_state.average
    batches.close()


def size(num_bytes: float) -> str:
    """Returns a number of bytes as text, such as "1.25 GB" or "31.0 MB".

    Args:
        num_bytes: the number of bytes; a MB is 1e6, a GB 1e9.
    """
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


class _First(Dataset):
    """The first samples of a dataset, as a dataset.

    Args:
        dataset: the whole dataset.
        count: number of samples to keep; all are kept if there are fewer.
    """

    def __init__(self, dataset: Dataset, count: int):
        self.dataset = dataset
        self.count = min(count, len(dataset))
        if hasattr(dataset, "image_sizes"):
            self.image_sizes = lambda: dataset.image_sizes()[: self.count]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.dataset[index]


class _Sizes(manifest.Files):
    """Measures the sizes of a checkpoint's files, DeepSpeed's included, without writing them."""

    def save(self, state_dict, path: str | Path) -> None:
        """Serialises a file of a checkpoint and records the file's size.

        Args:
            state_dict: the content: bytes, or an object that `torch.save` accepts.
            path: the path that the file would have.
        """
        counter = _Counter()
        if isinstance(state_dict, bytes):
            counter.write(state_dict)
        else:
            torch.save(state_dict, counter)
        self.written[Path(path).name] = [counter.size, ""]

    def make_folder(self, path: str | Path, exist_ok: bool = False) -> None:
        """Does nothing, since no file is written.

        Args:
            path: the folder that a checkpoint would have.
            exist_ok: not used.
        """
        pass


class _Counter:
    """A file object that counts the bytes written to it, in `size`, and stores nothing."""

    size = 0

    def write(self, data) -> int:
        """Adds the number of bytes in `data` to `size`, and returns this number.

        Args:
            data: the bytes that would be written.
        """
        written = len(memoryview(data).cast("B"))
        self.size += written
        return written

    def flush(self) -> None:
        """Does nothing, since nothing is buffered."""
        pass


def _refusal(work_dir: Path, recipe_path: Path) -> str | None:
    try:
        workdir.check(work_dir, recipe_path, resuming=False)
    except LaunchError as problem:
        return str(problem)
    return None


def _evaluations(parts: Parts) -> int:
    """Returns the number of evaluations in the run.

    Args:
        parts: the objects of the run, such as datasets, network and hooks.
    """
    hooks = [hook for hook in parts.state.hooks if isinstance(hook, Evaluation)]
    return sum(
        len(list(_due_iterations(parts, hook.settings.interval, hook.settings.by)))
        for hook in hooks
    )


def _evaluation_s(parts: Parts) -> float:
    """Returns the estimated seconds of one evaluation; 0 if the run doesn't validate. Collective.

    The estimate is extrapolated from the times of one batch and of a few batches per rank.

    Args:
        parts: the objects of the run, such as datasets, network and hooks.
    """
    hook = next((hook for hook in parts.state.hooks if isinstance(hook, Evaluation)), None)
    if hook is None:
        return 0.0
    return sum(_seconds_of_set(parts, hook, validated) for validated in hook.validation_sets)


def _seconds_of_set(parts: Parts, hook: Evaluation, validated: ValidationSet) -> float:
    """Returns the estimated seconds of the evaluation of one data set. Collective.

    Args:
        parts: the objects of the run, such as datasets, network and hooks.
        hook: the hook that evaluates.
        validated: the data set.
    """
    at_once = validated.settings.batch_size * comm.world_size()
    predictor = partial(predict, hook.replica.eval(), flip=hook.settings.flip)

    def seconds(batches: int) -> float:
        started = time.perf_counter()
        evaluate(
            predictor,
            _First(validated.dataset, batches * at_once),
            hook.protocol_of(validated),
            parts.device,
            loading=hook.loading,
            resize=hook.resize,
        )
        memory.wait(parts.device)
        return comm.max_over_ranks(time.perf_counter() - started)

    # Time one batch and then several, to separate the launch of the data workers, once per
    # evaluation, from the time per batch. If one batch alone is slow, don't time several.
    seconds(1)  # warm up before timing
    one = seconds(1)
    batches = -(-len(validated.dataset) // at_once)
    some = min(_EVALUATED, batches)
    if some == 1 or one > _SLOW_S:
        return one * batches
    return one + max(0.0, seconds(some) - one) / (some - 1) * (batches - 1)


def _checkpoint_bytes(parts: Parts) -> tuple[int, int]:
    """Returns the sizes in bytes of the student's weights file and of a checkpoint. Collective.

    The checkpoint's size includes the files of all ranks.

    Args:
        parts: the objects of the run, such as network and hooks, with a built engine.
    """
    engine = parts.state.engine
    patches.save_through(engine, _Sizes())
    folder = parts.state.work_dir / checkpoints.FOLDER / "iter_0"
    record = parts.state.training_record
    what = 0, {}, parts.state.recipe, parts.state.average
    checkpoint.write_files(engine, folder, *what, **record)
    shares = comm.gather_objects(engine.checkpoint_files.written)
    total = sum(size for share in shares for size, _ in share.values())
    return shares[0][checkpoints.STUDENT][0], total


def _disk(parts: Parts, weights_bytes: int, checkpoint_bytes: int) -> list[str]:
    """Returns report lines about the peak disk usage of checkpoints and best weights.

    The peak is reached while a checkpoint is written and the ones to keep still exist.

    Args:
        parts: the objects of the run, such as datasets, network and hooks.
        weights_bytes: size of the student's weights file.
        checkpoint_bytes: size of a checkpoint, all ranks together.
    """
    saver = next(
        (hook for hook in reversed(parts.state.hooks) if isinstance(hook, Checkpoint)), None
    )
    if saver is None:
        return [f"Disk: {size(checkpoint_bytes)} a checkpoint; the recipe's own hook says how many"]
    # Count the checkpoints that are on the disk at the same time at most: those that are kept, and
    # the one being written.
    saved = list(_due_iterations(parts, saver.interval, saver.by))
    for_good = []
    if saver.keep_every:
        period = parts.state.period(saver.keep_every, saver.by)
        for_good = [i for i in saved[: -saver.keep_last] if i % period == 0]
    kept = min(len(saved), saver.keep_last) + len(for_good)
    at_most = min(len(saved), kept + 1) * checkpoint_bytes
    if parts.recipe.train.validate:
        at_most += 2 * weights_bytes
    # Use the disk of the closest existing parent folder, because the work dir may not exist yet.
    there = parts.state.work_dir.absolute()
    there = next(folder for folder in (there, *there.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    lines = [
        f"Disk: {size(checkpoint_bytes)} a checkpoint, {len(saved)} are saved, {kept} stay; with "
        f"the best weights up to {size(at_most)}, of {size(free)} that are free at {there}"
    ]
    if at_most > free:
        lines.append(
            "WARNING: the checkpoints don't fit on the disk; make room, or set a smaller "
            "checkpoint.keep_last"
        )
    return lines


def _due_iterations(parts: Parts, interval: int, by: str) -> Iterator[int]:
    """Yields the iterations at which a periodic action is due; the run's last one is included.

    Args:
        parts: the objects of the run, such as datasets, network and hooks.
        interval: number of epochs or iterations between two actions.
        by: the unit of `interval`, "epoch" or "iteration".
    """
    total = parts.state.total_iterations
    period = parts.state.period(interval, by)
    yield from range(period, total + 1, period)
    if total % period:
        yield total


def _device_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[1]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
