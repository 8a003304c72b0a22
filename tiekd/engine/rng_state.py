"""Saves and restores the states of this process's random generators: Python, NumPy, torch, CUDA."""

import random

import numpy as np
import torch


def states() -> dict:
    """Returns the states of the random generators of Python, NumPy, torch and the current GPU.

    Returns:
        A dict with the keys "python", "numpy", "torch" and, with a GPU, "cuda". It has only plain
        values and tensors, so that torch.load can read it with `weights_only`.
    """
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    values = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        values["cuda"] = torch.cuda.get_rng_state()
    return values


def restore(saved: dict) -> None:
    """Restores the states of the random generators.

    Args:
        saved: The dict that `states` returned. A GPU's state is ignored if this process has no GPU.
    """
    torch.set_rng_state(saved["torch"])
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])
