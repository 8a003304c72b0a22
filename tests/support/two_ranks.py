"""Runs a function on several gloo ranks, each in a new process, for tests of collectives."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(work: Callable, folder: Path, *arguments, world_size: int = 2) -> list:
    """Calls `work(rank, *arguments)` on every rank, and returns the results in rank order.

    `work` must be a function at the top level of a module, so that it can be pickled.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Use a fork server, which imports torch once. Each spawned process would import it, and
    # forking this process isn't safe, since it has threads.
    multiprocessing.set_forkserver_preload(["tiekd.evaluation.evaluate", "pytest"])
    arguments = (world_size, port, str(folder), work, arguments)
    mp.start_processes(_rank, arguments, nprocs=world_size, start_method="forkserver")
    return [
        torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(world_size)
    ]


def _rank(
    rank: int, world_size: int, port: int, folder: str, work: Callable, arguments: tuple
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.save(work(rank, *arguments), Path(folder) / f"rank_{rank}.pt")
    dist.destroy_process_group()
