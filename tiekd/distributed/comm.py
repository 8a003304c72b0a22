"""Ranks, and one-call reductions over them."""

import contextlib
import os
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d


def rank() -> int:
    """This process's number among all ranks; before the process group exists, what the launcher said (else 0)."""
    return dist.get_rank() if _is_initialised() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if _is_initialised() else 1


def is_main() -> bool:
    """True on the rank that writes files and pictures. Wrap a write with it, never a collective."""
    return rank() == 0


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def mean_over_ranks(values: dict[str, Tensor | float]) -> dict[str, float]:
    """Means of scalars over all ranks: one collective and one host sync for the whole dict (same keys everywhere)."""
    if not values:
        return {}
    device = next(
        (v.device for v in values.values() if isinstance(v, Tensor)), _device_of_collectives()
    )
    stacked = torch.stack(
        [torch.as_tensor(v, dtype=torch.float64, device=device).detach() for v in values.values()]
    )
    if world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= world_size()
    return dict(zip(values, stacked.tolist(), strict=True))


def max_over_ranks(value: float) -> float:
    """The largest of a number over all ranks."""
    return max(gather_objects(value))


def gather_objects(value) -> list:
    """One small Python value of every rank, in rank order, on every rank. Collective."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value):
    """Rank 0's value on every rank. Collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def set_default_timeout(timeout: timedelta) -> None:
    """Process groups that are made from now on, DeepSpeed's own too, wait so long where nothing else is said."""
    # torch gives a new group a constant, whatever the first group was started with.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout


def missing_ranks(wait_s: float) -> list[int]:
    """After a collective that failed: the ranks that don't say within `wait_s` seconds that they have met that, too.

    Goes through the store, since groups may be broken. It lives in rank 0 under most launchers: where nobody answers,
    that is the one. Empty where the ranks never came together.
    """
    if not _is_initialised():
        return []
    here: set[int] = set()
    asking = threading.Thread(target=_ask_who_is_here, args=(here, wait_s), daemon=True)
    asking.start()
    asking.join(wait_s + 1)  # a store that hangs has no answer
    return sorted(set(range(world_size())) - here) if here else [0]


def _ask_who_is_here(here: set[int], wait_s: float) -> None:
    store = distributed_c10d._get_default_store()
    end = time.monotonic() + wait_s
    with contextlib.suppress(RuntimeError):  # the store has gone
        store.set(f"tiekd/here/{rank()}", "1")
        while len(here) < world_size() and time.monotonic() < end:
            here.update(
                other for other in range(world_size()) if store.check([f"tiekd/here/{other}"])
            )
            time.sleep(0.2)


def _device_of_collectives() -> torch.device:
    """Where numbers that are on no device go for a reduction: NCCL and its like don't take them from the CPU."""
    on_cpu = world_size() == 1 or dist.get_backend() == "gloo"
    return torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())


def _is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
