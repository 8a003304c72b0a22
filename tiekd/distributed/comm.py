"""Functions for rank, world size and collectives, which also work without a process group.

Without a process group, a process is the only rank.
"""

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
    """Returns this process's rank, from 0.

    Before the process group exists, it is the environment variable RANK, which launchers set, or 0
    without that variable.
    """
    return dist.get_rank() if _is_initialised() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Returns the number of ranks; 1 without a process group."""
    return dist.get_world_size() if _is_initialised() else 1


def is_main() -> bool:
    """Returns True on rank 0, the only rank that writes files and logs.

    Use it to skip writes on other ranks, never to skip a collective, which all ranks must call.
    """
    return rank() == 0


def barrier() -> None:
    """Waits until every rank has called this function. Collective."""
    if world_size() > 1:
        dist.barrier()


def mean_over_ranks(values: dict[str, Tensor | float]) -> dict[str, float]:
    """Averages scalars over all ranks, with one collective and one host sync for the whole dict.

    Collective.

    Args:
        values: This rank's numbers or 0-d tensors by name; the same names, in the same order, on
            every rank.

    Returns:
        A dict of the means by name, floats, the same on every rank.
    """
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
    """Returns the maximum of a number over all ranks, on every rank. Collective.

    Args:
        value: This rank's number.
    """
    return max(gather_objects(value))


def gather_objects(value) -> list:
    """Gathers a small Python object from every rank. Collective.

    Args:
        value: This rank's object, which must be picklable.

    Returns:
        The objects of all ranks, in the order of the ranks; the same list on every rank.
    """
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value):
    """Returns an object of rank 0 on every rank. Collective.

    Args:
        value: On rank 0 any picklable Python object; on other ranks it is ignored.
    """
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def set_default_timeout(timeout: timedelta) -> None:
    """Sets the timeout of all process groups created after this call, including DeepSpeed's.

    Args:
        timeout: The time that a collective waits for other ranks before it fails.
    """
    # Torch gives each new group the default timeout of its backend, not that of the first group, so
    # set the defaults.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout


def missing_ranks(wait_s: float) -> list[int]:
    """Returns the ranks that don't respond after a collective has failed.

    Every rank that is alive has to call this function. It reports through the key-value store of
    torch.distributed, since the process groups may be broken. Under most launchers rank 0 holds the
    store. So if the store can't be reached, rank 0 is missing.

    Args:
        wait_s: The number of seconds that each rank waits for the reports of the others.

    Returns:
        The numbers of the ranks that have not reported, in order; empty if there is no process
        group.
    """
    if not _is_initialised():
        return []
    present: set[int] = set()
    asking = threading.Thread(target=_collect_present_ranks, args=(present, wait_s), daemon=True)
    asking.start()
    asking.join(wait_s + 1)  # A call to the store may hang.
    return sorted(set(range(world_size())) - present) if present else [0]


def _collect_present_ranks(present: set[int], wait_s: float) -> None:
    store = distributed_c10d._get_default_store()
    end = time.monotonic() + wait_s
    # A call to the store raises RuntimeError if the rank that hosts the store has ended.
    with contextlib.suppress(RuntimeError):
        store.set(f"tiekd/here/{rank()}", "1")
        while len(present) < world_size() and time.monotonic() < end:
            present.update(
                other for other in range(world_size()) if store.check([f"tiekd/here/{other}"])
            )
            time.sleep(0.2)


def _device_of_collectives() -> torch.device:
    """Returns the device for the tensors of collectives: a GPU for NCCL, the CPU for gloo."""
    on_cpu = world_size() == 1 or dist.get_backend() == "gloo"
    return torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())


def _is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
