"""Sets how the student's convolutions run: their memory format, and torch.compile.

Both are set in the engine config, in a section that is not passed to DeepSpeed. They are not in the
recipe, since they change neither what is learned nor what is stored: weights keep their layout and
names at every ZeRO stage.

    "tiekd": {"memory_format": "auto", "compile": false}

`channels_last` is the memory format for tensor cores, and for oneDNN on CPUs. The image is
converted to this format, and the features of all layers then have it, too. "auto" means
channels_last in half precision and contiguous in fp32. In fp32 on a CPU channels_last would save a
few percent of the time. But norms compute the statistics of channels-last features with a hundred
times the rounding error (7e-5 of a variance), so that results on one rank and on several would no
longer agree. In fp32 on a GPU channels_last has not been measured.

Two formats on CPUs are not set here but taken from the table in tiekd/kernels/layouts.py: the
memory format of large features in the decoder DenseDepth, which has no norms; and the dtype in
which CPUs without bf16 arithmetic compute bf16 convolutions.

`compile` compiles encoder, neck and decoder, each on its own; the head's kernel is not compiled. It
costs a minute at the first iteration, at the first images of another size, and at the first
TensorBoard image, whose batch has another size and is computed in eval mode. Not covered: compiling
under ZeRO-3, which gathers weights by hooks inside the network; and DeepSpeed's own `compile`.
"""

import shutil
from dataclasses import dataclass

import torch
from torch import nn

from tiekd.config.schema import check_keys, check_value
from tiekd.errors import LaunchError, RecipeError
from tiekd.kernels import layouts
from tiekd.kernels.convolution import prepare_bf16

SECTION = "tiekd"
FORMATS = ("auto", "channels_last", "contiguous")
_HALF = ("fp16", "bf16", "torch_autocast")


@dataclass(frozen=True)
class Execution:
    """The section "tiekd" of the engine config: how the student's convolutions run.

    Attributes:
        memory_format: One of FORMATS; "auto" is channels_last in half precision, else contiguous.
        compile: True to compile encoder, neck and decoder with torch.compile.
    """

    memory_format: str = "auto"
    compile: bool = False


def of_engine_config(config: dict) -> Execution:
    """Parses and checks the section "tiekd" of an engine config.

    Args:
        config: The engine config, a dict with DeepSpeed's keys and optionally this section.

    Returns:
        An `Execution`; with its defaults if there is no such section.

    Raises:
        RecipeError: A key is unknown or a value is not allowed.
        LaunchError: `compile` is set, but this machine has no C++ compiler.
    """
    node = config.get(SECTION, {})
    fields = Execution.__dataclass_fields__
    check_keys(node, list(fields), f"engine config: {SECTION}")
    for key, value in node.items():
        check_value(value, fields[key].type, f"engine config: {SECTION}.{key}")
    execution = Execution(**node)
    # The type of each value was checked above. Check the value itself.
    if execution.memory_format not in FORMATS:
        raise RecipeError(
            f"engine config: {SECTION}.memory_format: got {execution.memory_format!r}; allowed: "
            f"{', '.join(FORMATS)}"
        )
    if execution.compile:
        if config.get("zero_optimization", {}).get("stage", 0) == 3:
            raise RecipeError(
                f"engine config: {SECTION}.compile can't be combined with ZeRO stage 3; leave one "
                "of them out"
            )
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise LaunchError(
                f"engine config: {SECTION}.compile needs a C++ compiler, and there is none on PATH"
            )
    return execution


def memory_format(execution: Execution, in_half: bool) -> torch.memory_format:
    """Returns the memory format of the network's images and features as a torch.memory_format.

    Args:
        execution: The section "tiekd" of the engine config.
        in_half: True if the convolutions run in bf16 or fp16.
    """
    chosen = execution.memory_format
    if chosen == "auto":
        chosen = "channels_last" if in_half else "contiguous"
    return torch.channels_last if chosen == "channels_last" else torch.contiguous_format


def prepare(network: nn.Module, config: dict) -> None:
    """Sets the memory format, the method of bf16 convolutions and torch.compile, in place.

    The names and values in the network's state dict don't change.

    Args:
        network: The student.
        config: The engine config, in which every "auto" that stands for a recipe's value is
            replaced.
    """
    execution = of_engine_config(config)
    in_half = any(config.get(kind, {}).get("enabled", False) for kind in _HALF)
    network.memory_format = memory_format(execution, in_half)
    if _in_bf16(config):
        prepare_bf16(network)
    if execution.compile:
        compile_parts(network)


def log_messages(config: dict, device: torch.device) -> list[str]:
    """Returns messages for the log about convolutions that don't run in the configured precision.

    Args:
        config: The engine config, a dict.
        device: This rank's device.

    Returns:
        One message if the config asks for bf16 and this CPU computes bf16 convolutions in fp32;
        else an empty list.
    """
    chosen = layouts.setting(layouts.ANY, layouts.BF16)
    if device.type != "cpu" or not _in_bf16(config) or chosen == layouts.NATIVE:
        return []
    if layouts.of_isa(layouts.isa())[f"{layouts.ANY}, {layouts.BF16}"] == layouts.NATIVE:
        return ["bf16 convolutions are computed in fp32, as the run was started (layouts.json)"]
    return [
        f"bf16 convolutions are computed in fp32: this CPU ({layouts.isa()}) has no bf16 "
        "arithmetic, so bf16 saves memory and no time; ds_configs/fp32.json is faster"
    ]


def _in_bf16(config: dict) -> bool:
    return any(config.get(kind, {}).get("enabled", False) for kind in ("bf16", "torch_autocast"))


def compile_parts(network: nn.Module) -> None:
    """Sets up torch.compile for the encoder, neck and decoder of a network, in place.

    Each of the three is compiled when it is called for the first time. The names of their
    parameters don't change.

    Args:
        network: The student.
    """
    for part in (network.encoder, network.neck, network.decoder):
        if part is not None:
            part.compile()
