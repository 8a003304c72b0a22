"""Batches on the device; on CUDA the next batch is prefetched while the current one is used.

Costs the memory of one more batch on the device. An error of the next batch is raised when that
batch is asked for. Left out: prefetching on a CPU, where nothing could overlap.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from tiekd.errors import UserError


class Movable(Protocol):
    """An item that can be copied to a device; its `batch` holds the tensors."""

    batch: tuple

    def to(self, device: torch.device) -> "Movable":
        """Returns the item on the device."""
        ...


def on_device(items: Iterator[Movable], device: torch.device) -> Iterator[Movable]:
    """Yields the items in their order, on the device."""
    if device.type != "cuda":
        return (item.to(device) for item in items)
    stream = torch.cuda.Stream(device)

    def start(item: Movable) -> tuple[Movable, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return item.to(device), stream.record_event()

    # The consumer's stream waits for the copy.
    def finish(started: tuple[Movable, torch.cuda.Event]) -> Movable:
        item, copied = started
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in item.batch:
            if isinstance(tensor, torch.Tensor):
                # The tensor was allocated on the copying stream, which must not reuse its memory
                # before this stream is done with it.
                tensor.record_stream(current)
        return item

    return one_ahead(items, start, finish)


def one_ahead(items: Iterator, start: Callable, finish: Callable) -> Iterator:
    """Yields `finish(start(item))` of each item; starts the next item before yielding."""
    started = []
    problem = None
    while problem is None:
        try:
            started.append(start(next(items)))
        # The item that was started before the error is still yielded.
        except (StopIteration, UserError) as error:
            problem = error
        if len(started) > (problem is None):
            yield finish(started.pop(0))
    if isinstance(problem, UserError):
        raise problem
