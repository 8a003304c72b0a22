"""Describes the hardware and software of a run, for its log and its work dir.

Not covered: environment variables, which may hold secrets.
"""

import os
import platform
import sys
from importlib import metadata

import torch

from tiekd.distributed import allocator
from tiekd.kernels import layouts


def environment() -> dict[str, str]:
    """Returns the names of CPU and GPUs and the versions of software, a dict from label to text.

    The labels, such as "GPU" and "PyTorch", are those with which the log shows the texts.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    processor = platform.processor() or platform.machine()
    values = {
        "sys.platform": f"{sys.platform} ({platform.release()})",
        "Python": sys.version.split()[0],
        "CPU": f"{processor}, {len(os.sched_getaffinity(0))} cores",
        "CPU instructions": layouts.isa(),
        "GPU": ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "none",
        "CUDA runtime": str(torch.version.cuda or "none"),
        "cuDNN": str(torch.backends.cudnn.version() or "none"),
        "PyTorch": torch.__version__,
        "allocator": allocator.description(),
    }
    # Read the versions from the metadata of the installed packages, since importing the packages
    # takes seconds.
    for package in ("torchvision", "deepspeed", "numpy", "triton", "tiekd"):
        try:
            values[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            values[package] = "not installed"
    return values
