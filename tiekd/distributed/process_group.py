"""Starts a rank: joins the process group, selects the device, sets threads and seeds.

torch is imported inside the functions: importing it takes two seconds, and programs that only read
a recipe don't need it.
"""

import os
import random
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from tiekd.distributed import limits
from tiekd.distributed.entrypoint import on_lost_machine
from tiekd.errors import LaunchError

if TYPE_CHECKING:
    import torch

_LIBRARIES_THREADS = 8  # threads of gloo's two process groups and of torch's store


def _threads(text: str) -> int:
    """Returns the number of threads that a value of OMP_NUM_THREADS asks for.

    Args:
        text: The value. It may be a list for nested parallel regions, such as "4,2", of which the
            first number is used.

    Raises:
        LaunchError: The value isn't a whole number from 1.
    """
    first = text.partition(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise LaunchError(f"OMP_NUM_THREADS: got {text!r:.80}; it must be a whole number from 1")
    return int(first)


def start_rank(timeout_minutes: float = 30.0) -> "torch.device":
    """Joins the process group of torch.distributed, and selects this rank's device.

    On a CPU each rank computes with as many threads as its share of the machine's cores, or with
    OMP_NUM_THREADS threads if that is set. The launchers and the other machines of the run are
    watched from this call on.

    Args:
        timeout_minutes: The minutes that a collective waits for other ranks before it fails.

    Returns:
        The device: the GPU with the number LOCAL_RANK, or the CPU if there is no GPU.

    Raises:
        LaunchError: The port of rank 0 is taken, no machine has the name in MASTER_ADDR, or a
            machine has more ranks than GPUs.
    """
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    from tiekd.distributed import launcher_watch, machine_watch
    from tiekd.distributed.comm import set_default_timeout

    launcher_watch.watch_launchers()
    timeout = timedelta(minutes=timeout_minutes)
    set_default_timeout(timeout)
    # Without a launcher this process is the only rank.
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    # Disable this DeepSpeed op, which every CPU rank would compile at its start. Only
    # inference_all_reduce needs it, which isn't used here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Select the device, and set the number of threads if it is a CPU.
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        _check_hidden_devices()
        share = max(1, len(os.sched_getaffinity(0)) // ranks_on_this_machine())
        torch.set_num_threads(_threads(os.environ.get("OMP_NUM_THREADS", str(share))))
        device = torch.device("cpu")
        backend = "gloo"
    else:
        there = accelerator.device_count()
        if local_rank >= there:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise LaunchError(
                f"{ranks_on_this_machine()} ranks were started here, one a device, but {there} are "
                f"visible (CUDA_VISIBLE_DEVICES={visible}); start {there} or less on a machine"
            )
        accelerator.set_device(local_rank)
        device = torch.device(accelerator.device_name(local_rank))
        backend = accelerator.communication_backend_name()
    # Join the process group. Check the limit of threads first, since gloo aborts the process if it
    # can't start its threads.
    limits.check_threads(_LIBRARIES_THREADS + torch.get_num_threads())
    try:
        deepspeed.init_distributed(
            backend, auto_mpi_discovery=False, verbose=False, timeout=timeout
        )
    except RuntimeError as error:
        # Check the name of rank 0's machine only after the failure: in a cluster, a name may become
        # known only after this rank has started.
        if not _is_known(os.environ["MASTER_ADDR"]):
            raise LaunchError(
                f"MASTER_ADDR={os.environ['MASTER_ADDR']}: no machine of that name; give the name "
                "or the address of rank 0's machine"
            ) from None
        if "EADDRINUSE" not in str(error) and "address already in use" not in str(error).lower():
            raise
        raise LaunchError(
            f"port {os.environ['MASTER_PORT']} is taken, by another job on this machine; "
            "start this one with another --master_port, for example 29501"
        ) from None
    machine_watch.watch_machines(on_lost_machine)
    return device


def _is_known(host: str) -> bool:
    """Returns True if the system can resolve the name of a machine.

    Args:
        host: The machine's name or address.
    """
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds the random generators of Python, NumPy and torch.

    Args:
        seed: Any integer from 0.
        deterministic: True to allow only algorithms whose results are the same bit for bit in every
            run.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _check_hidden_devices() -> None:
    """Raises LaunchError if CUDA_VISIBLE_DEVICES names a GPU that this machine doesn't have.

    In this case CUDA hides all GPUs, so without the check the run would use the CPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    named = visible.startswith(("GPU-", "MIG-"))
    if named and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise LaunchError(
            f"CUDA_VISIBLE_DEVICES={visible}: no GPU of that name is here (nvidia-smi -L names "
            'them); for a run on the CPU set CUDA_VISIBLE_DEVICES=""'
        )


def ranks_on_this_machine() -> int:
    """Returns the number of ranks on this machine, from the launcher's environment variable.

    DeepSpeed's launcher sets LOCAL_SIZE; torchrun and other launchers set LOCAL_WORLD_SIZE.
    """
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
