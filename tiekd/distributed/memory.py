"""What a rank holds: of its accelerator's memory as torch's allocator counts it, or, on a CPU, as a process (Linux).

A process's figure has everything in it, the libraries too; data workers are processes of their own and not in it.
"""

from pathlib import Path

import torch

_PROCESS, _MACHINE = Path("/proc/self/status"), Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


def held_bytes(device: torch.device) -> int:
    """Now."""
    return (
        torch.cuda.memory_allocated(device) if device.type == "cuda" else _field(_PROCESS, "VmRSS")
    )


def peak_bytes(device: torch.device) -> int:
    """At most since the start, or since `restart_peak`."""
    return (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else _field(_PROCESS, "VmHWM")
    )


def restart_peak(device: torch.device) -> None:
    """Lets the peak begin anew at what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def wait(device: torch.device) -> None:
    """Until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """What could still be held: of the device, or of the machine without swapping, as the container allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_field(_MACHINE, "MemAvailable"), *_free_in_container()])


def _free_in_container() -> list[int]:
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
