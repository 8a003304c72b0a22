"""Shares a machine among the runs of an experiment that run at the same time (`--jobs N`).

There are N slots, and one run at a time in each. A slot has its own GPUs, of those that
CUDA_VISIBLE_DEVICES lists. On a machine without a GPU it has its share of the CPU threads, unless
OMP_NUM_THREADS is set. Not covered: several machines.
"""

import os
from collections.abc import Mapping, Sequence

import torch

from tiekd.distributed.visible_devices import HIDDEN
from tiekd.errors import LaunchError

_SEVERAL_MACHINES = ("--hostfile=", "--num_nodes=")
_NUM_GPUS = "--num_gpus="


def variables_of_slots(
    num_slots: int, launcher: Sequence[str], environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """Returns the environment variables that differ between the slots, a dict for each slot.

    Args:
        num_slots: The number N of runs at the same time.
        launcher: The options of DeepSpeed's launcher in the specification.
        environment: The environment variables of this process.

    Raises:
        LaunchError: The runs are on several machines, or there aren't enough GPUs for N runs.
    """
    if num_slots == 1:
        return [{}]
    if any(option.startswith(_SEVERAL_MACHINES) for option in launcher):
        raise LaunchError(
            f"--jobs {num_slots}: runs on several machines can't share them; leave --jobs out"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").strip(" ,")
    if visible in HIDDEN:
        if "CUDA_VISIBLE_DEVICES" not in environment and torch.cuda.device_count():
            raise LaunchError(
                f"--jobs {num_slots}: all runs would take the same GPU; list those to share, such "
                "as CUDA_VISIBLE_DEVICES=0,1"
            )
        threads = max(1, len(os.sched_getaffinity(0)) // num_slots)
        threads = environment.get("OMP_NUM_THREADS", str(threads))
        return [{"OMP_NUM_THREADS": threads}] * num_slots
    devices = visible.split(",")
    of_launcher = [option for option in launcher if option.startswith(_NUM_GPUS)]
    each = int(of_launcher[0].removeprefix(_NUM_GPUS)) if of_launcher else 1
    if len(devices) < num_slots * each:
        raise LaunchError(
            f"--jobs {num_slots}: needs {num_slots * each} GPUs, {each} for each run, and "
            f"CUDA_VISIBLE_DEVICES={visible} lists {len(devices)}; give fewer jobs or more GPUs"
        )
    groups = [devices[slot * each : (slot + 1) * each] for slot in range(num_slots)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
