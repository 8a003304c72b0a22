"""Computes a SHA-256 digest of a teacher's weights and settings, which determine its output."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

_CHUNK = 1 << 24  # bytes


def of_network(network: nn.Module, *settings: Mapping) -> str:
    """Returns the SHA-256 digest of a network's parameters and buffers, their names, and settings.

    Args:
        network: The network.
        settings: Mappings of plain values that affect the network's output, such as its config.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for node in settings:
        digest.update(json.dumps(node, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def of_settings(settings: Mapping) -> str:
    """Returns the SHA-256 of settings alone, for a teacher without weights; 64 hexadecimal digits.

    Args:
        settings: A mapping of plain values.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def of_files(*files: Path) -> str:
    """Returns the SHA-256 digest of the joined contents of files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
