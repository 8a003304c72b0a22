"""Runs a function on gloo ranks in processes of their own, for tests of what ranks do together."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(work: Callable, folder: Path, *arguments, world_size: int = 2) -> list:
    """Returns what `work(rank, *arguments)` returned on every rank.

    `work` must be a module's own function.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A fork server imports torch once; spawned processes would do it each, and a fork would inherit
    # our threads.
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
