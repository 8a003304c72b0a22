"""Networks traced by torch.export, and .pt2 files of them, which torch alone loads and runs.

Left out: sizes left open where a network's arithmetic depends on them; tracing says so.
"""

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
    """The least height and width, in pixels, of a file that takes any: above the coarsest stride, or above 1, which a
    tracer takes for a constant, where the network sees another size than the picture's."""
    return max(network.encoder.strides) + 1 if resize.mode is None else 2


def trace(
    deployed: Deployed, size: tuple[int, int], dtype: torch.dtype, open_sizes: bool
) -> ExportedProgram:
    """One graph of torch's own operators, from pictures (1, 3, *size) of `dtype`, or of any batch and size from
    `least_side` on. Raises ExportError where the network can't be traced so."""
    # A batch or a size of 1 would be taken for a constant.
    image = torch.zeros(2 if open_sizes else 1, 3, *size, dtype=dtype)
    shapes = None
    if open_sizes:
        least = least_side(deployed.network, deployed.resize)
        shapes = (
            {0: Dim("batch", min=1), 2: Dim("height", min=least), 3: Dim("width", min=least)},
        )
    try:
        # Attention by its definition: fused kernels lay their results out in ways that other runtimes don't know.
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
    """A .pt2 with the facts beside the program."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where these sources lie is nobody's business
    torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})


def load(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The file as a function of pictures."""
    return torch.no_grad()(torch.export.load(path).module())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
