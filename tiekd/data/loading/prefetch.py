"""Copies batches to the device; on CUDA prefetches the next batch while the current one is used.

Costs the memory of one more batch on the device. An error in prefetching a batch is raised when
that batch is requested. Not covered: prefetching on a CPU, where nothing could overlap.
"""

from collections.abc import Callable, Iterator

import torch

from tiekd.data.batch import Batch, WorkerBatch
from tiekd.errors import UserError


def on_device(batches: Iterator[WorkerBatch], device: torch.device) -> Iterator[Batch]:
    """Returns an iterator over the batches in order, converted to `Batch`es on the device.

    On CUDA, the next batch is copied while the caller uses the current one.

    Args:
        batches: The batches on the CPU.
        device: The device.
    """
    if device.type != "cuda":
        return (batch.to(device) for batch in batches)
    stream = torch.cuda.Stream(device)

    def start(batch: WorkerBatch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return batch.to(device), stream.record_event()

    # Wait until a started batch is copied: the caller's current CUDA stream waits, not the host.
    def finish(started: tuple[Batch, torch.cuda.Event]) -> Batch:
        batch, copied = started
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in batch:
            if isinstance(tensor, torch.Tensor):
                # Tell the allocator that this stream uses the tensor. The tensor was allocated on
                # the copying stream, which must not reuse its memory before this stream is done
                # with it.
                tensor.record_stream(current)
        return batch

    return one_ahead(batches, start, finish)


def one_ahead(items: Iterator, start: Callable, finish: Callable) -> Iterator:
    """Yields `finish(start(item))` for each item; starts the next item before yielding this one.

    Args:
        items: The items; reading one may raise a UserError.
        start: Function of an item that begins work on it, such as an asynchronous copy, without
            waiting for the work.
        finish: Function that is called with the result of `start`, waits for the work and returns
            its result.

    Raises:
        UserError: The error that `items` raised, once all items before it are yielded.
    """
    started = []
    problem = None
    while problem is None:
        try:
            started.append(start(next(items)))
        # Keep the error for later: the item that was started before must be yielded first.
        except (StopIteration, UserError) as error:
            problem = error
        if len(started) > (problem is None):
            yield finish(started.pop(0))
    if isinstance(problem, UserError):
        raise problem
