"""Gathers and restores an engine's unsharded fp32 weights and optimizer moments, by parameter name.

DeepSpeed's own files can only be loaded on the same number of ranks and at the same ZeRO stage.
With this module a run can resume on another number of ranks or at another stage, and every
checkpoint has plain weights. Cost: one collective per tensor, and host memory on rank 0 for one
copy of everything. Not covered: DeepSpeed's offload to NVMe.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tiekd.distributed import comm
from tiekd.engine import patches

# Attributes of a DeepSpeed engine: the numbers of optimizer steps, samples and skipped steps.
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
# Attributes of DeepSpeed's ZeRO optimizers that contain flat groups. A flat group is an fp32 tensor
# with this rank's share of the values of a parameter group, one after the other. The torch
# optimizer updates these tensors.
_FLAT_GROUPS = (
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
    "fp32_groups_flat_partition",
)


def weights(engine) -> dict[str, Tensor]:
    """Gathers the student's weights and buffers on rank 0. Collective.

    Args:
        engine: The DeepSpeed engine.

    Returns:
        On rank 0 a dict from each name in the network to an unsharded tensor on the CPU. Tensors
        are fp32, except for buffers of integers, which keep their dtype. In half precision the
        weights are the optimizer's fp32 master weights. On other ranks an empty dict.
    """
    masters = _masters(engine)
    values = {}
    for name, parameter in engine.module.named_parameters():
        whole = masters[name] if masters else _whole(parameter)
        if comm.is_main():
            values[name] = whole.detach().float().cpu().clone().view(_shape(parameter))
    if comm.is_main():
        for name, buffer in engine.module.state_dict().items():
            if name not in values:
                values[name] = (
                    (buffer.float() if buffer.is_floating_point() else buffer).cpu().clone()
                )
    return values


def moments(engine) -> dict[str, dict[str, Tensor]]:
    """Gathers the optimizer's state on rank 0. Collective.

    Args:
        engine: The DeepSpeed engine.

    Returns:
        On rank 0 a dict from each parameter's name to its state, which is a dict such as
        `{"exp_avg": ..., "step": ...}`. Tensors are on the CPU. Those of the parameter's shape are
        fp32; other values, such as `step`, have the type that the optimizer uses. On other ranks,
        and before the first step, an empty dict.
    """
    state = _torch_optimizer(engine).state
    masters = _masters(engine)
    values = {}
    # Without ZeRO, read the torch optimizer's state of each parameter.
    if masters:
        values = {name: dict(state[master]) for name, master in masters.items() if master in state}
    elif state:
        # Under ZeRO the optimizer has one state per flat group, i.e. per tensor with this rank's
        # values of a parameter group. Use DeepSpeed's functions to get the unsharded state of each
        # parameter.
        patches.link_all_moments(engine)
        flat = next(tensor for tensor in _flat_groups(engine) if tensor in state)
        like_weights = [key for key, value in state[flat].items() if _is_like(value, flat)]
        others = {key: value for key, value in state[flat].items() if key not in like_weights}
        for name, parameter in engine.module.named_parameters():
            values[name] = {key: _whole(parameter, key) for key in like_weights} | others
            if not comm.is_main():
                values.clear()
    if not comm.is_main():
        return {}
    shapes = {name: _shape(parameter) for name, parameter in engine.module.named_parameters()}
    return {
        name: {key: _copy(value, shapes[name]) for key, value in kept.items()}
        for name, kept in values.items()
    }


def restore(engine, values: dict[str, Tensor], saved_moments: dict[str, dict[str, Tensor]]) -> None:
    """Sets an engine's weights and optimizer state, at any ZeRO stage. Collective.

    Args:
        engine: The DeepSpeed engine.
        values: The weights and buffers by name, as `weights` returned them on rank 0, the same on
            every rank.
        saved_moments: The optimizer's state by parameter name, as `moments` returned it on rank 0,
            the same on every rank. If empty, the optimizer is reset to its state before the first
            step.
    """
    _set_module(engine, values)
    masters, state = _masters(engine), _torch_optimizer(engine).state
    state.clear()
    if masters:
        # Without ZeRO, set each parameter's fp32 weight and optimizer state directly.
        set_optimizer_tensors(engine, values)
        for name, master in masters.items():
            if name in saved_moments:
                state[master] = {
                    key: _copy(value, master.shape) for key, value in saved_moments[name].items()
                }
        return
    if saved_moments:
        # Under ZeRO, create zero moments for each flat group, i.e. for the tensor with this rank's
        # values of a parameter group. The loop below copies each parameter's moments into them.
        some = next(iter(saved_moments))
        shape = values[some].shape
        for flat in _flat_groups(engine):
            state[flat] = {
                key: torch.zeros_like(flat)
                if value.shape == shape and value.ndim
                else value.clone()
                for key, value in saved_moments[some].items()
            }
        if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            engine.optimizer._lazy_init_hp_params_optimizer_state()
    set_optimizer_tensors(engine, values)
    for name, parameter in engine.module.named_parameters():
        for key, value in saved_moments.get(name, {}).items():
            if value.ndim and value.shape == values[name].shape:
                _set_whole(parameter, value, key)


def optimizer_tensors(engine) -> list[Tensor]:
    """Returns a list of the fp32 tensors of this rank that the torch optimizer updates.

    Without ZeRO they are all parameters, or in half precision their fp32 master copies. Under ZeRO
    each is the flat tensor with this rank's share of a parameter group.

    Args:
        engine: The DeepSpeed engine.
    """
    masters = _masters(engine)
    return list(_flat_groups(engine)) if masters is None else list(masters.values())


def set_optimizer_tensors(engine, values: dict[str, Tensor]) -> None:
    """Sets the values of the tensors that `optimizer_tensors` returns. Collective.

    The half-precision copies of parameters, and those that ZeRO has gathered for the forward pass,
    are not changed.

    Args:
        engine: The DeepSpeed engine.
        values: Unsharded fp32 tensors by parameter name, the same on every rank.
    """
    masters = _masters(engine)
    if masters is not None:
        for name, master in masters.items():
            master.data.copy_(values[name])
        return
    for name, parameter in engine.module.named_parameters():
        _set_whole(parameter, values[name])


def counters(engine) -> dict[str, float]:
    """Returns the counters of a DeepSpeed engine, and its loss scale.

    Args:
        engine: The DeepSpeed engine.

    Returns:
        A dict with `global_steps`, `global_samples` and `skipped_steps`, the numbers of optimizer
        steps, of samples and of skipped steps; and `loss_scale`, which is 1 in bf16 and fp32.
    """
    values = {name: getattr(engine, name) for name in _COUNTERS}
    scaler = _scaler(engine)
    return values | {"loss_scale": 1.0 if scaler is None else float(scaler.cur_scale)}


def set_counters(engine, values: dict[str, float]) -> None:
    """Restores the counters and the loss scale of a DeepSpeed engine.

    Args:
        engine: The engine; changed in place.
        values: The dict that `counters` returned. If its `loss_scale` is 1, the saved run had no
            loss scaling, and the engine keeps the initial scale of its config.
    """
    for name in _COUNTERS:
        setattr(engine, name, values[name])
    scaler = _scaler(engine)
    if scaler is not None and values["loss_scale"] != 1:
        scaler.cur_scale = values["loss_scale"]


def _scaler(engine):
    if not engine.fp16_enabled():
        return None
    return getattr(engine.optimizer, "loss_scaler", None) or engine.optimizer.loss_scale_config


def _set_module(engine, values: dict[str, Tensor]) -> None:
    """Copies weights and buffers into the network of a DeepSpeed engine. Collective.

    Under ZeRO-3, where each rank has only a part of the parameters, they are gathered for the copy.

    Args:
        engine: The engine.
        values: The weights and buffers by name, the same on every rank.
    """
    from deepspeed.runtime.zero import GatheredParameters

    parameters = dict(engine.module.named_parameters())
    kept = engine.module.state_dict()
    buffers = {name: tensor for name, tensor in engine.module.named_buffers() if name in kept}
    sharded = [p for p in parameters.values() if hasattr(p, "ds_id")]
    with GatheredParameters(sharded, modifier_rank=0, enabled=bool(sharded)), torch.no_grad():
        for name, tensor in {**parameters, **buffers}.items():
            tensor.copy_(values[name])


def _masters(engine) -> dict[str, Tensor] | None:
    """Returns the fp32 tensors that the torch optimizer updates, by parameter name.

    They are the parameters themselves, or in half precision their fp32 master copies.

    Args:
        engine: The DeepSpeed engine.

    Returns:
        A dict from each parameter's name to its tensor; None under ZeRO, where the optimizer has
        one tensor for each parameter group and none for a single parameter.
    """
    if engine.zero_optimization_stage() > 0 or any(
        hasattr(engine.optimizer, name) for name in _FLAT_GROUPS
    ):
        return None
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if not hasattr(engine.optimizer, "fp32_groups"):
        return {name: parameter for parameter, name in names.items()}
    halves, masters = engine.optimizer.fp16_groups, engine.optimizer.fp32_groups
    pairs = (zip(*groups, strict=True) for groups in zip(halves, masters, strict=True))
    return {names[half]: master for pair in pairs for half, master in pair}


def _torch_optimizer(engine) -> torch.optim.Optimizer:
    return (
        engine.optimizer
        if isinstance(engine.optimizer, torch.optim.Optimizer)
        else engine.optimizer.optimizer
    )


def _flat_groups(engine) -> Iterator[Tensor]:
    name = next(name for name in _FLAT_GROUPS if hasattr(engine.optimizer, name))
    return iter(getattr(engine.optimizer, name))


def _whole(parameter: Tensor, key: str | None = None) -> Tensor:
    """Returns a ZeRO engine's parameter, or one of its moments, unsharded and in fp32. Collective.

    Args:
        parameter: A parameter of the network.
        key: The moment's name in the optimizer's state, such as `exp_avg`; None to get the
            parameter.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    return (
        safe_get_full_optimizer_state(parameter, key)
        if key
        else safe_get_full_fp32_param(parameter)
    )


def _set_whole(parameter: Tensor, value: Tensor, key: str | None = None) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if hasattr(parameter, "ds_id"):
        # DeepSpeed's own function that sets an unsharded value doesn't handle the padding of the
        # last rank's shard. So pad the value here, and set each rank's shard.
        size = parameter.ds_tensor.numel()
        flat = F.pad(value.flatten(), (0, size * comm.world_size() - value.numel()))
        value = flat[comm.rank() * size :][:size]
        setters = safe_set_local_fp32_param, safe_set_local_optimizer_state
    else:
        setters = safe_set_full_fp32_param, safe_set_full_optimizer_state
    if key:
        setters[1](parameter, value, key)
    else:
        setters[0](parameter, value)


def _shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _is_like(value, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape


def _copy(value, shape: torch.Size):
    """Returns a copy, on the CPU, of a value from an optimizer's state.

    Args:
        value: The value. If it isn't a tensor, it is returned unchanged.
        shape: The shape to which the copy is reshaped; not used for a 0-d tensor, such as `step`.
    """
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu().clone()
    return value.view(shape) if value.ndim else value
