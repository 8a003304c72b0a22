"""Starting and ending a process: the rank's environment, and one line instead of a traceback.

Works under `deepspeed`, under any launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, and as
plain `python` (one rank on a free port).
"""

import os
import random
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch

from tiekd.errors import LaunchError, UserError

USER_ERROR_CODE = 2
_LOST_PEER = re.compile(r"Connection (closed|reset)|Broken pipe|Socket Timeout|NCCL.*(abort|remote)|recv.*failed", re.I)
_LAUNCHER_REACTS_S = 20.0
_SAME_ERROR_ELSEWHERE_S = 4.0


def run(main: Callable[[], None]) -> int:
    """Runs a program and returns its exit code: 0, or 2 after a user's mistake, told in one line on stderr.

    A mistake that every rank finds is told by the first rank of a machine: the others wait until the launcher has ended
    them. A rank that loses another one waits in the same way, so that the cause is the only thing to be read.
    """
    try:
        main()
        return 0
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            time.sleep(_SAME_ERROR_ELSEWHERE_S)
        return _report(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and _LOST_PEER.search(str(error)):
            time.sleep(_LAUNCHER_REACTS_S)
            return _report(
                LaunchError(f"rank {os.environ['RANK']} lost another rank; its own message says why; then bin/resume")
            )
        raise


def start_rank(timeout_minutes: float = 30.0) -> torch.device:
    """Joins the process group and returns this rank's device; sets the threads of a CPU rank to its share of cores.

    Raises LaunchError when the port is taken.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_SIZE", 1))))
        device, backend = torch.device("cpu"), "gloo"
    else:
        accelerator.set_device(local_rank)
        device, backend = torch.device(accelerator.device_name(local_rank)), accelerator.communication_backend_name()
    try:
        deepspeed.init_distributed(
            backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(minutes=timeout_minutes)
        )
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error) and "address already in use" not in str(error).lower():
            raise
        raise LaunchError(
            f"port {os.environ['MASTER_PORT']} is taken, by another job on this machine; "
            "start this one with another --master_port, for example 29501"
        ) from None
    return device


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, numpy and torch; with `deterministic`, only algorithms that repeat bit for bit are allowed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _report(error: UserError) -> int:
    if os.environ.get("TIEKD_DEBUG") == "1":
        traceback.print_exc()
    sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
    sys.stderr.flush()
    return USER_ERROR_CODE


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
