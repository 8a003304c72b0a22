"""Traces networks by torch.export, and writes .pt2 files, which torch alone loads and runs.

Left out: open sizes if a network's arithmetic depends on them; tracing reports it.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from tiekd.data.resize import Resize
from tiekd.errors import ExportError, UserError
from tiekd.inference.export.deployed import Deployed
from tiekd.models.network import Network

FACTS = "tiekd.json"  # in a .pt2, as torch.export.load(path, extra_files={FACTS: ""}) gives it


def least_side(network: Network, resize: Resize) -> int:
    """Returns the least height and width in pixels of a file that takes any size.

    It is above the coarsest stride; or above 1, which a tracer takes for a constant, if the network
    sees another size than the image's.
    """
    return max(network.encoder.strides) + 1 if resize.mode is None else 2


def trace(
    deployed: Deployed, size: tuple[int, int], dtype: torch.dtype, open_sizes: bool
) -> ExportedProgram:
    """Traces a network to one graph of torch's own operators.

    Args:
        deployed: The network as it is exported.
        size: (height, width) of the images.
        dtype: Their dtype.
        open_sizes: Take any batch, and any size from `least_side` on.

    Returns:
        The graph, for images (1, 3, *size) unless sizes are open.

    Raises:
        ExportError: If the network can't be traced.
    """
    # A batch or a size of 1 would be taken for a constant.
    image = torch.zeros(2 if open_sizes else 1, 3, *size, dtype=dtype)
    shapes = None
    if open_sizes:
        least = least_side(deployed.network, deployed.resize)
        shapes = (
            {0: Dim("batch", min=1), 2: Dim("height", min=least), 3: Dim("width", min=least)},
        )
    try:
        # Attention by its definition: the memory layouts of fused kernels' results are unknown to
        # other runtimes.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.export.export(deployed, (image,), dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a tracer raises all kinds
        remedy = "its parts must be plain torch that decides nothing by values"
        if open_sizes:
            remedy = (
                "its arithmetic depends on the size; leave out --dynamic and export one file a size"
            )
        raise ExportError(
            f"this network can't be traced ({_first_line(error)}); {remedy}"
        ) from error


def write(path: Path, program: ExportedProgram, facts: dict[str, str]) -> None:
    """Writes a .pt2 with the metadata beside the program."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains paths on this machine
    # By way of memory: torch's own writer answers a full disk with a RuntimeError.
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})
    path.write_bytes(file.getbuffer())


def load(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Loads the file as a function of an image tensor."""
    return torch.no_grad()(torch.export.load(path).module())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
