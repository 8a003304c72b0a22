"""Batches on the device, on CUDA one ahead: the next one is copied and finished while the current one is computed with.

Costs the memory of one more batch on the device. What goes wrong with the next batch is raised when it is asked for.
Left out: anything of it on a CPU, where there is nothing to overlap.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from tiekd.errors import UserError


class Movable(Protocol):
    """What can be brought to a device: `batch` holds its tensors."""

    batch: tuple

    def to(self, device: torch.device) -> "Movable": ...


def on_device(items: Iterator[Movable], device: torch.device) -> Iterator[Movable]:
    """The items in their order, on the device."""
    if device.type != "cuda":
        return (item.to(device) for item in items)
    stream = torch.cuda.Stream(device)

    def start(item: Movable) -> tuple[Movable, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return item.to(device), stream.record_event()

    def finish(started: tuple[Movable, torch.cuda.Event]) -> Movable:
        item, copied = started
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in item.batch:
            if isinstance(tensor, torch.Tensor):
                # It was allocated on the other stream, which must not reuse it too soon.
                tensor.record_stream(current)
        return item

    return one_ahead(items, start, finish)


def one_ahead(items: Iterator, start: Callable, finish: Callable) -> Iterator:
    """`finish(start(item))` of each item; the next one is started before the one before it is given out."""
    started = []
    problem = None
    while problem is None:
        try:
            started.append(start(next(items)))
        except (StopIteration, UserError) as error:
            problem = error
        if len(started) > (problem is None):
            yield finish(started.pop(0))
    if isinstance(problem, UserError):
        raise problem
