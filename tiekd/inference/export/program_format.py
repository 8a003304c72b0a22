"""Traces networks with torch.export, and writes .pt2 files, which torch loads without tiekd.

Not covered: dynamic sizes for a network whose arithmetic depends on the image's size; tracing such
a network raises an error.
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
from tiekd.inference.export.onnx_format import FileInput
from tiekd.models.network import Network

# Name of the entry in a .pt2 file that holds the metadata: torch.export.load(path,
# extra_files={FACTS: ""}) reads it.
FACTS = "tiekd.json"


def least_side(network: Network, resize: Resize) -> int:
    """Returns the minimum side, in pixels, of the images that a file for any image size accepts.

    If the network sees images at their own size, the minimum is the encoder's largest stride + 1.
    If it sees them resized, the minimum is 2, since the tracer would treat a size of 1 as a
    constant.

    Args:
        network: The network.
        resize: How the file resizes images for the network; OWN_SIZE if it doesn't.
    """
    return max(network.encoder.strides) + 1 if resize.mode is None else 2


def trace(
    deployed: Deployed,
    size: tuple[int, int],
    dtype: torch.dtype,
    dynamic_sizes: bool,
    has_focal: bool = False,
) -> ExportedProgram:
    """Traces a network to one graph of torch's own operators.

    Args:
        deployed: The module to trace.
        size: (height, width) of the images in pixels.
        dtype: dtype of the images, uint8 or float32.
        dynamic_sizes: True for a dynamic batch size, height and width; the minimum height and width
            are those of `least_side`.
        has_focal: True for a second input, the focal length of each image.

    Returns:
        The graph, an `ExportedProgram`; its input is (1, 3, *size), or (B, 3, H, W) with
        `dynamic_sizes`.

    Raises:
        ExportError: The network can't be traced.
    """
    # Trace with a batch size of 2 for dynamic shapes, because the tracer would treat a dimension of
    # 1 as a constant.
    image = torch.zeros(2 if dynamic_sizes else 1, 3, *size, dtype=dtype)
    inputs = (image, torch.ones(len(image))) if has_focal else (image,)
    shapes = None
    if dynamic_sizes:
        least = least_side(deployed.network, deployed.resize)
        batch = Dim("batch", min=1)
        shapes = (
            {0: batch, 2: Dim("height", min=least), 3: Dim("width", min=least)},
            {0: batch},
        )[: len(inputs)]
    try:
        # Trace attention as plain matmul and softmax, since other runtimes don't know the memory
        # layout that fused attention kernels return.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.export.export(deployed, inputs, dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - tracing raises many types of exceptions
        remedy = "its parts must be plain torch that decides nothing by values"
        if dynamic_sizes:
            remedy = (
                "its arithmetic depends on the size; leave out --dynamic and export one file a size"
            )
        raise ExportError(
            f"this network can't be traced ({_first_line(error)}); {remedy}"
        ) from error


def write(path: Path, program: ExportedProgram, facts: dict[str, str]) -> None:
    """Writes a traced network as a .pt2 file.

    Args:
        path: The file to write.
        program: The traced network.
        facts: Metadata by name, written as JSON to the entry FACTS within the file.
    """
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the stack trace contains this machine's paths
    # Serialise in memory first: if the disk is full, torch's own writer raises a RuntimeError
    # instead of an OSError.
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})
    path.write_bytes(file.getbuffer())


def load(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """Loads a .pt2 file as a function.

    Args:
        path: The file, as `write` writes it.

    Returns:
        A function that takes the program's inputs as tensors, in order, and returns the tuple of
        its outputs.
    """
    return load_described(path)[0]


def load_described(
    path: Path,
) -> tuple[Callable[..., tuple[Tensor, ...]], list[FileInput], dict[str, str]]:
    """Loads a .pt2 file as `load` does, and returns its inputs and metadata, too.

    Args:
        path: A file of torch.export.

    Returns:
        (run, inputs, facts): the function that `load` returns; a list with a `FileInput` for each
        input that is a tensor, in order; and the metadata that tiekd wrote into the file, a dict
        from name to text, empty for a file of another program.
    """
    extra = {FACTS: ""}
    program = torch.export.load(path, extra_files=extra)
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = [
        # In `values[name].shape`, an axis that may have any size has a symbol instead of an int.
        FileInput(
            tuple(side if type(side) is int else None for side in values[name].shape),
            values[name].dtype,
        )
        for name in names
        if isinstance(values.get(name), Tensor)
    ]
    facts = json.loads(extra[FACTS]) if extra[FACTS] else {}
    return torch.no_grad()(program.module()), inputs, facts


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
