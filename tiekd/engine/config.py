"""Reads, checks and resolves the engine config: a JSON file of DeepSpeed settings.

The engine config determines how a step is computed, e.g. its precision and ZeRO stage. Values that
the recipe determines, such as the batch size, may be "auto" in the file and are then filled in. A
value that contradicts the recipe is refused.
"""

import difflib
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from tiekd import paths
from tiekd.config import shipped
from tiekd.config.schema import check_keys, check_value
from tiekd.engine import execution
from tiekd.errors import LaunchError, RecipeError, UserError
from tiekd.files import check_readable

_DEFAULT = shipped.folder(shipped.ENGINE_CONFIGS) / "fp32.json"

# The keys that DeepSpeed 0.19 accepts, by the type of their values: text, booleans, mappings and
# whole numbers. They are checked in this module, because DeepSpeed ignores unknown top-level keys,
# and raises obscure errors for values of wrong types.
_WORDS = (
    "communication_data_type seq_parallel_communication_data_type gradient_allreduce_op log_level"
)
_SWITCHES = (
    "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer prescale_gradients "
    "disable_allgather disable_python_gc "
    "dump_state wall_clock_breakdown memory_breakdown"
)
_MAPPINGS = (
    "zero_optimization fp16 bf16 torch_autocast data_types flops_profiler comms_logger "
    "activation_checkpointing aio "
    "compile timers weight_quantization " + execution.SECTION
)
_COUNTS = (
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps steps_per_print"
)
ENGINE_KEYS = {
    **dict.fromkeys(_COUNTS.split(), int),
    **dict.fromkeys(["gradient_clipping", "gradient_predivide_factor"], float),
    **dict.fromkeys(_MAPPINGS.split(), dict),
    **dict.fromkeys(_SWITCHES.split(), bool),
    **dict.fromkeys(_WORDS.split(), str),
}
# The allowed keys inside those mappings in which DeepSpeed 0.19 ignores unknown keys. In all other
# mappings it refuses them itself.
_NESTED_KEYS = {
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed "
    "output_file",
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "activation_checkpointing": "partition_activations number_checkpoints profile "
    "contiguous_memory_optimization synchronize_checkpoint_boundary cpu_checkpointing",
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "timers": "throughput",
    "torch_autocast": "enabled dtype lower_precision_safe_modules",
}
_FROM_RECIPE = (*_COUNTS.split()[:3], "gradient_clipping")  # Keys whose value may be "auto".


@dataclass(frozen=True)
class EngineConfig:
    """An engine config in which every "auto" is replaced by a value.

    Attributes:
        values: The whole config: DeepSpeed's keys, and the section "tiekd" (engine/execution.py).
        batch_size_per_gpu: Images in a micro-batch of one rank.
        accumulation: Micro-batches per iteration on each rank.
    """

    values: dict
    batch_size_per_gpu: int
    accumulation: int

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return self.values.get("zero_optimization", {}).get("stage", 0)


def read_engine_config(path: str | Path | None) -> dict:
    """Reads an engine config, and expands a leading `~` in its strings.

    Args:
        path: The JSON file, or the name of an engine config that comes with tiekd, such as `fp16`;
            None for ds_configs/fp32.json.

    Returns:
        The content of the file as a dict; values may still be "auto".

    Raises:
        LaunchError: The file can't be read or is not a JSON object.
    """
    path = shipped.find(shipped.ENGINE_CONFIGS, path or _DEFAULT)
    working_ones = shipped.shown_folder(shipped.ENGINE_CONFIGS)
    check_readable(path, "engine config", LaunchError, "--deepspeed_config ")
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_json_object)
    except UserError:
        raise
    except FileNotFoundError:
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.json"))) or "none"
        ours = ", ".join(shipped.names(shipped.ENGINE_CONFIGS))
        raise LaunchError(
            f"--deepspeed_config {path}: no such file; .json files there: {there}; those of tiekd: "
            f"{ours}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise LaunchError(
            f"--deepspeed_config {path}: not JSON ({error}); see {working_ones} for working ones"
        ) from None
    if not isinstance(config, dict):
        raise LaunchError(
            f"--deepspeed_config {path}: must be a JSON object; see {working_ones} for working ones"
        )
    return config


def _json_object(pairs: list[tuple[str, object]]) -> dict:
    """Converts a JSON object to a dict; passed to `json.loads` as `object_pairs_hook`.

    A leading `~` in a string is expanded to the home folder.

    Args:
        pairs: (key, value) of each entry of the object, in their order.

    Raises:
        ValueError: A key occurs twice.
    """
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        is_text = isinstance(value, str)
        found[key] = paths.expanded(value, f"engine config: {key}: ") if is_text else value
    return found


def resolve(config: dict, batch_size: int, clip_norm: float, world_size: int) -> EngineConfig:
    """Replaces every "auto" in an engine config by the recipe's value, and checks all other values.

    Args:
        config: The engine config, as `read_engine_config` returns it.
        batch_size: The global batch size, i.e. images per iteration over all ranks.
        clip_norm: The maximum L2 norm of the gradient; 0 for no clipping.
        world_size: The number of ranks.

    Returns:
        The engine config without "auto".

    Raises:
        RecipeError: A key is unknown, a value contradicts the recipe, or the global batch can't be
            split evenly over ranks and micro-batches.
        LaunchError: The device doesn't support the precision that the config asks for.
    """
    # Check keys and types, since DeepSpeed ignores unknown keys.
    for key, value in config.items():
        if key in ("optimizer", "scheduler"):
            raise RecipeError(
                f"engine config: {key!r} belongs to the recipe (optimizer, schedule); remove it "
                "here"
            )
        if key not in ENGINE_KEYS:
            near = difflib.get_close_matches(key, ENGINE_KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(ENGINE_KEYS)}"
            if key == "zenflow":
                hint = "DeepSpeed ignores it here; move it into zero_optimization, or remove it"
            raise RecipeError(f"engine config: unknown key {key!r}; {hint}")
        if not (key in _FROM_RECIPE and value == "auto"):
            check_value(value, ENGINE_KEYS[key], f"engine config: {key}")
        if key in _NESTED_KEYS:
            check_keys(value, _NESTED_KEYS[key].split(), f"engine config: {key}")
        if key in ("steps_per_print", "gradient_predivide_factor") and not 0 < value < math.inf:
            raise RecipeError(f"engine config: {key} is {value}; it must be above 0")
    # Refuse a batch size or clipping norm that differs from the recipe's; "auto" stands for the
    # recipe's value.
    _check_agreement(config, "train_batch_size", batch_size, "train.batch_size")
    _check_agreement(config, "gradient_clipping", clip_norm, "train.clip_norm")
    per_gpu, accumulation = _split_batch(config, batch_size, world_size)
    # Fill in the recipe's values, turn off DeepSpeed's own progress lines, and allow any torch
    # optimizer under ZeRO.
    values = {"steps_per_print": 10**9, "zero_allow_untested_optimizer": True, **config}
    values |= {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": per_gpu,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_norm,
    }
    _check_precision(values)
    execution.of_engine_config(values)
    return EngineConfig(values, per_gpu, accumulation)


def reset_recipe_values(config: dict, world_size: int, batch_size_changed: bool) -> dict:
    """Returns an earlier start's engine config with "auto" for values that this start may change.

    A run starts for the first time, and again with every resume. The batch size and the clipping
    norm always become "auto". The micro-batch size and the number of micro-batches do so only if
    they no longer fit.

    Args:
        config: The resolved engine config of an earlier start, `EngineConfig.values`; it isn't
            changed.
        world_size: The number of ranks in this start.
        batch_size_changed: True if the recipe's global batch size has changed.

    Returns:
        A new engine config, to be passed to `resolve` with the changed recipe.
    """
    of_recipe = {"train_batch_size", "gradient_clipping"}
    split = [
        config.get(key) for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    ]
    # Keep the micro-batch size and the number of micro-batches if their product, times the number
    # of ranks, is still the global batch size.
    fits = None not in split and split[0] * split[1] * world_size == config.get("train_batch_size")
    if batch_size_changed or not fits:
        of_recipe |= {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    return config | dict.fromkeys(of_recipe, "auto")


def clips_in_step(config: EngineConfig) -> bool:
    """Returns True if engine/step.py, not DeepSpeed, has to clip the gradient.

    This is the case in fp32 without ZeRO.

    Args:
        config: The engine config.
    """
    in_half = any(config.values.get(kind, {}).get("enabled") for kind in ("fp16", "bf16"))
    return config.zero_stage == 0 and not in_half


def scales_in_step(config: EngineConfig) -> bool:
    """Returns True if engine/step.py has to multiply the loss by the loss scale.

    This is the case in fp16 without ZeRO. In all other cases DeepSpeed does it, or there is no loss
    scale.

    Args:
        config: The engine config.
    """
    return config.zero_stage == 0 and bool(config.values.get("fp16", {}).get("enabled"))


def _check_agreement(config: dict, key: str, recipe_value: float, recipe_key: str) -> None:
    value = config.get(key, "auto")
    if value not in ("auto", recipe_value):
        raise RecipeError(
            f"engine config: {key} is {value}, but the recipe's {recipe_key} is {recipe_value}; "
            f'write "auto" in the JSON, or --set {shlex.quote(f"{recipe_key}={value}")}'
        )


def _split_batch(config: dict, batch_size: int, world_size: int) -> tuple[int, int]:
    """Splits the global batch over ranks and micro-batches.

    Args:
        config: The engine config. Its micro-batch size and its accumulation, i.e. the number of
            micro-batches per iteration, may be "auto".
        batch_size: The global batch size, i.e. images per iteration over all ranks.
        world_size: The number of ranks.

    Returns:
        (images, accumulation): the number of images in a rank's micro-batch; and the number of
        micro-batches per iteration on each rank.

    Raises:
        RecipeError: The global batch can't be split evenly.
    """
    per_gpu = config.get("train_micro_batch_size_per_gpu", "auto")
    accumulation = config.get("gradient_accumulation_steps", "auto")
    for key, value in (
        ("train_micro_batch_size_per_gpu", per_gpu),
        ("gradient_accumulation_steps", accumulation),
    ):
        if value != "auto" and value < 1:
            raise RecipeError(
                f'engine config: {key} is {value!r}; it must be a whole number from 1, or "auto"'
            )
    # If one of micro-batch size and accumulation is "auto", it is the global batch size divided by
    # the other and by the number of ranks. If both are, accumulation is 1.
    if accumulation == "auto":
        accumulation = (
            1 if per_gpu == "auto" else max(1, round(batch_size / (per_gpu * world_size)))
        )
    if per_gpu == "auto":
        per_gpu = max(1, round(batch_size / (accumulation * world_size)))
    if per_gpu * accumulation * world_size == batch_size:
        return per_gpu, accumulation
    step = accumulation * world_size
    if config.get("train_micro_batch_size_per_gpu", "auto") != "auto":
        step *= per_gpu
    # For the error message, find the nearest global batch sizes that can be split evenly over these
    # ranks, and the numbers of ranks over which the given batch size can be split evenly.
    lower = batch_size // step * step
    fits = ", ".join(str(size) for size in (lower, lower + step) if size)
    ranks = [n for n in range(1, batch_size + 1) if batch_size % (n * step // world_size) == 0]
    ranks = ", ".join(map(str, ranks)) or "none"
    raise RecipeError(
        f"train.batch_size {batch_size} can't be split over {world_size} ranks with accumulation "
        f"{accumulation}"
        f"{'' if step == accumulation * world_size else f' and {per_gpu} images a rank'}; nearest "
        "global batches that "
        f"fit: {fits}; numbers of ranks that fit: {ranks}"
    )


def _check_precision(values: dict) -> None:
    from deepspeed.accelerator import get_accelerator

    fp16, autocast = values.get("fp16", {}), values.get("torch_autocast", {})
    device = get_accelerator().device_name()
    if fp16.get("enabled") and not get_accelerator().is_fp16_supported():
        raise LaunchError(
            f"fp16 is not supported on this device ({device}); use ds_configs/fp32.json or "
            "bf16_autocast"
        )
    if fp16.get("auto_cast"):
        raise RecipeError(
            "engine config: fp16.auto_cast also halves the teacher's depth; remove it"
        )
    if autocast.get("enabled") and "bf" not in str(autocast.get("dtype", "")):
        raise RecipeError(
            f"engine config: torch_autocast.dtype is {autocast.get('dtype')!r}; only bfloat16 "
            "trains rightly with "
            "DeepSpeed 0.19 (in fp16 it clips gradients that still carry the loss scale); for fp16 "
            "use fp16.enabled"
        )
    if values.get("data_types", {}).get("buffer_dtype") not in (None, "fp32"):
        raise RecipeError(
            "engine config: data_types.buffer_dtype would halve BatchNorm statistics; remove it"
        )
