"""Finds the largest micro-batch that fits: `bin/train.py --dry-run --find-micro-batch`.

The global batch size and the world size stay fixed. The engine is built and runs one iteration with
micro-batches of one image, so that all memory that it holds during a run is allocated: weights,
gradients, optimizer state, buckets. Then a plain copy of the student runs forward and backward on
1, 2, ... images, the divisors of the batch size per rank. Such a try has no collectives (BatchNorm
doesn't synchronise either), so no rank waits for one that runs out of memory. After each try the
ranks exchange the result, and the rank with the least free memory decides. The copy's weights and
gradients are allocated in addition to the engine's, so the estimate is conservative.

A GPU raises an error when its memory is full. On a CPU the machine would swap, or the process would
be killed. Therefore a number of images is tried on a CPU only if its memory, extrapolated linearly
from smaller numbers, is within the budget.
"""

import gc
import time
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.distributed import allocator, comm, entrypoint, memory, process_group
from tiekd.errors import LaunchError
from tiekd.kernels.convolution import prepare_bf16
from tiekd.models.build import build_network
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.tools.dry_run import size, train_timed
from tiekd.tools.measure import Stopwatch
from tiekd.training.build import Parts, build_parts
from tiekd.training.settings import Recipe

_LOOKED_AT = 8  # number of images that are read; each candidate batch repeats the largest of them
_LEFT_FREE = 0.1  # fraction of the machine's memory that is reserved for other uses


class Try(NamedTuple):
    """A candidate micro-batch: the measurements of a forward and a backward pass on it.

    Attributes:
        images: images per rank.
        peak_bytes: the peak memory, the maximum over ranks; extrapolated from smaller micro-batches
            if the passes were not run.
        time_s: seconds of both passes, the maximum over the ranks that finished them. None if no
            rank did: the passes ran out of memory, or they were not run because the extrapolated
            memory exceeds the memory budget of a rank.
        fits: True if the memory of every rank suffices.
    """

    images: int
    peak_bytes: float
    time_s: float | None
    fits: bool


def find(recipe: dict, engine_config: dict, memory_gb: float | None) -> list[str]:
    """Finds the largest micro-batch that fits into the memory of every rank.

    Collective: all ranks must call it.

    Args:
        recipe: the recipe, with overrides applied.
        engine_config: the engine config, as read from its file.
        memory_gb: memory budget per rank in GB; None for all free memory of its GPU, or on a CPU
            for its share of the machine's free memory.

    Returns:
        The report's lines, the same on every rank.

    Raises:
        LaunchError: not even one image fits.
        UserError: any error that `training.run.run` raises before it trains.
    """
    sections = Recipe(recipe)
    options = sections.train
    device = process_group.start_rank(options.timeout_minutes)
    if memory_gb is not None and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, memory_gb * 1e9 / torch.cuda.mem_get_info(device)[1])
        )
    # Build the engine of the run and train a step on one image, so that the optimizer's state and
    # buffers are allocated.
    one_image = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": "auto"}
    parts = build_parts(sections, engine_config | one_image, device, resuming=False, begins=True)
    train_timed(parts, Stopwatch(device, 0, parts.state.accumulation, least=1))
    share = options.batch_size // comm.world_size()
    try_images = _trial_function(parts)
    # Use a memory budget on a CPU, where the process would be killed. A GPU raises
    # OutOfMemoryError.
    budget = _budget(device, memory_gb) if device.type == "cpu" else None
    tries = find_largest(
        [n for n in range(1, share + 1) if share % n == 0], try_images, device, budget
    )
    return _result_lines(parts, tries, share, budget)


def find_largest(
    candidates: list[int],
    try_images: Callable[[int], None],
    device: torch.device,
    budget: float | None,
) -> list[Try]:
    """Tries numbers of images, from small to large, until one doesn't fit. Collective.

    Args:
        candidates: numbers of images, in increasing order.
        try_images: function that runs forward and backward on a given number of images.
        device: this rank's device.
        budget: memory budget of this rank in bytes, on a device that raises no OutOfMemoryError;
            otherwise None.

    Returns:
        The tries in order. The last one that fits has the largest micro-batch.
    """
    tries: list[Try] = []
    for images in candidates:
        if device.type == "cpu":
            # Return cached free memory to the system; its reuse would hide how much more memory a
            # larger micro-batch needs.
            allocator.give_back()
        expected_bytes = _extrapolate_peak(tries, images, memory.held_bytes(device))
        mine = Try(images, expected_bytes, None, False)
        if all(comm.gather_objects(budget is None or expected_bytes <= budget)):
            mine = _try(images, try_images, device, budget)
        shares = comm.gather_objects(mine)
        tries.append(
            Try(
                images,
                max(share.peak_bytes for share in shares),
                max((share.time_s for share in shares if share.time_s is not None), default=None),
                all(share.fits for share in shares),
            )
        )
        if not tries[-1].fits:
            break
    return tries


def _extrapolate_peak(tries: list[Try], images: int, held: float) -> float:
    """Returns the extrapolated peak bytes of a forward and backward pass on some images.

    With two earlier tries the extrapolation is linear. With one earlier try, its memory above
    `held` is assumed to be proportional to the number of images. Without an earlier try, the result
    is `held`.

    Args:
        tries: the earlier tries, with increasing numbers of images.
        images: the number of images.
        held: bytes held before a pass.
    """
    if not tries:
        return held
    (fewer, less), (more, most) = ([(0, held)] + [(t.images, t.peak_bytes) for t in tries])[-2:]
    return most + max(0.0, most - less) / (more - fewer) * (images - more)


def _try(
    images: int, try_images: Callable[[int], None], device: torch.device, budget: float | None
) -> Try:
    """Runs forward and backward on a number of images, and measures time and memory.

    The images are tried twice, since the first run allocates and warms up.

    Args:
        images: the number of images.
        try_images: function that runs forward and backward on that many images.
        device: this rank's device.
        budget: memory budget of this rank in bytes; None on a GPU, which raises an error instead.

    Returns:
        The measurements of this rank; `fits` is False if memory ran out or the budget was exceeded.
    """
    memory.restart_peak(device)
    try:
        for _ in range(2):
            started = time.perf_counter()
            try_images(images)
            memory.wait(device)
            seconds = time.perf_counter() - started
        peak = memory.peak_bytes(device)
        result = Try(images, peak, seconds, budget is None or peak <= budget)
    except (MemoryError, RuntimeError) as error:
        # Recognise other errors that mean a lack of memory: libraries such as cuDNN may raise a
        # RuntimeError with a text of their own instead of OutOfMemoryError.
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not entrypoint.is_out_of_memory(error):
            raise
        result = Try(images, memory.peak_bytes(device), None, False)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def _trial_function(parts: Parts) -> Callable[[int], None]:
    """Returns a function that runs forward and backward on a given number of images.

    The function runs the teacher, a copy of the student, and the losses, but no optimizer step.

    Args:
        parts: the objects of the run, such as network and losses, with a built engine; the copy
            gets the engine's precision.
    """
    # Build a copy of the engine's network in the same precision; running the copy needs no
    # collectives.
    engine = parts.state.engine
    device = parts.device
    network = build_network(parts.recipe.network).to(device).train()
    network.memory_format = engine.module.memory_format
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.sync = False
    if engine.fp16_enabled() or engine.bfloat16_enabled():
        network.to(torch.float16 if engine.fp16_enabled() else torch.bfloat16)
    casts = parts.config.values.get("torch_autocast", {}).get("enabled", False)
    if device.type == "cpu" and (engine.bfloat16_enabled() or casts):
        prepare_bf16(network)  # as the engine does with its network
    # Choose the largest of a few images; each candidate micro-batch repeats it.
    batches = parts.batches(_LOOKED_AT)
    one = max(islice(batches, _LOOKED_AT), key=lambda batch: batch.image.numel())
    batches.close()

    def try_images(images: int) -> None:
        batch = Batch(*(_repeat(value, images) for value in one))
        if one.data_sets is not None:
            # If the recipe has several data sets, state the repeated image's data set for every
            # image.
            batch = batch._replace(data_sets=one.data_sets * images)
        learned, wanted = parts.targets(batch, parts.teacher(batch))
        with torch.autocast(device.type, torch.bfloat16, enabled=casts):
            prediction = network(
                batch.image, parts.criterion.divergence_target(wanted), batch.counted
            )
        parts.criterion(prediction, learned, wanted)["loss"].backward()

    return try_images


def _repeat(value: Tensor | list | None, times: int) -> Tensor | list | None:
    if isinstance(value, Tensor):
        return value.expand(times, *value.shape[1:]).contiguous()
    return value * times if isinstance(value, list) else value


def _budget(device: torch.device, memory_gb: float | None) -> float:
    if memory_gb is not None:
        return memory_gb * 1e9
    free = min(comm.gather_objects(memory.free_bytes(device)))
    return (
        memory.held_bytes(device) + (1 - _LEFT_FREE) * free / process_group.ranks_on_this_machine()
    )


def _result_lines(parts: Parts, tries: list[Try], share: int, budget: float | None) -> list[str]:
    ranks = comm.world_size()
    lines = ["Micro-batch   accumulation   memory of a rank   time an image"]
    for images, peak, seconds, fits in tries:
        end = "does not fit" if not fits else f"{seconds / images:.4f} s"
        lines.append(f"{images:11d}   {share // images:12d}   {size(peak):>16}   {end}")
    if budget is not None:
        lines.append(f"A rank may hold {size(min(comm.gather_objects(budget)))}")
    # Report the largest micro-batch that fits. If none fits, the first try, of one image, shows the
    # memory that is needed.
    largest = max((t.images for t in tries if t.fits), default=None)
    if largest is None:
        allowed = "" if budget is None else f" of the {size(budget)} that it may"
        held = size(tries[0].peak_bytes)
        raise LaunchError(
            f"not even one image fits, a rank holds {held}{allowed}; make data.augment.crop or the "
            "network smaller"
        )
    # Warn if the student has BatchNorm: it computes statistics per micro-batch, so the micro-batch
    # size affects results.
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in parts.network.modules()):
        lines.append(
            "The student has BatchNorm, whose statistics are of all ranks' micro-batches together "
            f"({largest * ranks} images with the largest): another micro-batch trains to other "
            "weights"
        )
    batch_size = parts.recipe.train.batch_size
    return [
        *lines,
        f"The largest that fits, for a global batch of {batch_size} on {ranks} "
        "ranks, in engine config:",
        f'  "train_micro_batch_size_per_gpu": {largest},',
        f'  "gradient_accumulation_steps": {share // largest}',
    ]
