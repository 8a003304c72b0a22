"""Measures the memory of a rank.

On a GPU this is the memory that torch has allocated; on a CPU it is the memory of the process,
including libraries (Linux only). Data workers are separate processes and are not included.
"""

from pathlib import Path

import torch

_PROCESS = Path("/proc/self/status")
_MACHINE = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


def held_bytes(device: torch.device) -> int:
    """Returns the number of bytes of memory that this rank uses now.

    Args:
        device: The rank's device. On a GPU the memory is what torch has allocated on it; on a CPU
            it is the resident memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _field(_PROCESS, "VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Returns the largest number of bytes that this rank has used at one time.

    Only the time since the start of the process, or since the last call of `restart_peak`, is
    considered.

    Args:
        device: The rank's device, as for `held_bytes`.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _field(_PROCESS, "VmHWM")


def restart_peak(device: torch.device) -> None:
    """Makes `peak_bytes` return the largest memory use from now on.

    Args:
        device: The rank's device, as for `held_bytes`.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Writing 5 to this file resets the process's peak resident memory (VmHWM); see proc(5).
        Path("/proc/self/clear_refs").write_text("5")


def wait(device: torch.device) -> None:
    """Waits until a GPU has finished its queued kernels; returns immediately on a CPU.

    Args:
        device: The GPU or CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Returns the number of bytes that can still be allocated on a device.

    On a GPU this is the device's free memory. On a CPU it is the machine's available memory without
    swap, or the rest of the container's limit if that is less.

    Args:
        device: The GPU or CPU.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_field(_MACHINE, "MemAvailable"), *_free_in_container()])


def _free_in_container() -> list[int]:
    """Returns the number of free bytes under each memory limit of the container.

    Returns:
        At most two numbers: the free bytes under the limit of cgroup v2, and under that of v1. A
        limit that doesn't exist has no number.
    """
    free = []
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        folder = _CGROUPS / "memory" if "bytes" in limit else _CGROUPS
        try:
            values = [(folder / name).read_text().strip() for name in (limit, used)]
        except OSError:
            continue
        if values[0] != "max":
            free.append(max(0, int(values[0]) - int(values[1])))
    return free


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}; memory is measured on Linux only")
