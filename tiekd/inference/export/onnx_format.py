"""Writes exported programs as ONNX files, and runs such files with ONNX Runtime on the CPU.

torch's exporter (`dynamo=True`; the older one is deprecated) uses only standard operators, and
folds constants and norms. It records source locations at each operator, which this module removes;
it adds metadata for the file's users. Importing this module disables ONNX Runtime's telemetry,
which version 1.29 and later send at every start unless the environment variable
ORT_DISABLE_TELEMETRY is set before the import.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tiekd.errors import ExportError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
AXES = {0: "batch", 2: "height", 3: "width"}
_DTYPES = {
    "tensor(uint8)": torch.uint8,
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
}
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
LARGEST_BYTES = 2**31 - 2**24  # limit of protobuf on a file's size, minus space for the operators


class FileInput(NamedTuple):
    """An input of an exported file.

    Attributes:
        shape: The input's shape, a tuple, with None for an axis that may have any size.
        dtype: The input's dtype; None if it isn't uint8, float32 or float16.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype | None


def check_packages() -> None:
    """Checks that the packages that ONNX export needs, PACKAGES, are installed.

    Raises:
        ExportError: A package isn't installed; the message names it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--format onnx: needs {', '.join(missing)}, not installed here; pip install "
            f"{' '.join(missing)} (or tiekd[export]), or choose --format torch_export"
        )


def write(
    path: Path,
    program: ExportedProgram,
    names: tuple[list[str], list[str]],
    dynamic_sizes: bool,
    facts: dict[str, str],
) -> None:
    """Writes a self-contained ONNX file, i.e. one that contains the weights.

    Args:
        path: The file to write.
        program: The traced network.
        names: (inputs, outputs), the names of the inputs and those of the outputs, in order.
        dynamic_sizes: True if `program` has a dynamic batch size, height and width.
        facts: Metadata to write into the file, by name.

    Raises:
        ExportError: The weights exceed the 2 GB that one file can hold.
    """
    num_bytes = sum(
        tensor.numel() * tensor.element_size() for tensor in program.state_dict.values()
    )
    if num_bytes > LARGEST_BYTES:
        raise ExportError(
            f"--format onnx: {num_bytes / 1e9:.1f} GB don't fit in a file of 2 GB; try --half"
        )
    inputs, outputs = names
    exported = torch.onnx.export(
        program,
        input_names=inputs,
        output_names=outputs,
        # Name the axes; `program` defines which of them are dynamic. The focal lengths, if they are
        # a second input, have no names of their own: they share the batch axis with the image.
        dynamic_shapes=(AXES, {})[: len(inputs)] if dynamic_sizes else None,
        dynamo=True,
        verbose=False,
    )
    model = exported.model
    # Remove the source locations, which contain this machine's paths, and add the metadata.
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    model.producer_name = "tiekd"
    model.producer_version = facts.get("tiekd", "")
    model.metadata_props.clear()
    model.metadata_props.update(facts)
    exported.save(path, external_data=False)


def load(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """Loads an ONNX file as a function, which runs on the CPU with torch's number of threads.

    Args:
        path: The file, as `write` writes it.

    Returns:
        A function that takes the file's inputs as tensors, in the file's order, and returns the
        tuple of its outputs as CPU tensors.
    """
    return load_described(path)[0]


def load_described(
    path: Path,
) -> tuple[Callable[..., tuple[Tensor, ...]], list[FileInput], dict[str, str]]:
    """Loads an ONNX file as `load` does, and returns its inputs and metadata, too.

    Args:
        path: An ONNX file.

    Returns:
        (run, inputs, facts): the function that `load` returns; a list with a `FileInput` for each
        input, in the file's order; and the metadata in the file, a dict from name to text.
    """
    # Import the package here, because it is optional.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # only errors are logged
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    names = [each.name for each in session.get_inputs()]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, given))

    inputs = [
        # In `each.shape`, an axis that may have any size has its name instead of a number.
        FileInput(
            tuple(side if isinstance(side, int) else None for side in each.shape),
            _DTYPES.get(each.type),
        )
        for each in session.get_inputs()
    ]
    return run, inputs, dict(session.get_modelmeta().custom_metadata_map)
