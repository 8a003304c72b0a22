"""SHA-256 of what decides a teacher's maps: weights, and settings that change its output."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

_CHUNK = 1 << 24  # bytes


def of_network(network: nn.Module, *settings: Mapping) -> str:
    """Returns the digest of a network's parameters and buffers with their names.

    Args:
        network: The network.
        settings: Mappings of plain values that change its output, such as its config.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for node in settings:
        digest.update(json.dumps(node, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def of_files(*files: Path) -> str:
    """Returns the digest of the files' bytes, in the order that they are given."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
