"""The one place that calls deepspeed.initialize: network, optimizer and resolved engine config to an engine.

Left out: DeepSpeed's own optimizers and schedulers (the schedule is a function of the iteration, applied by the loop).
"""

from copy import deepcopy

import torch
from torch import nn

from tiekd.engine import execution, full_state, nonfinite, profiling
from tiekd.engine.config import EngineConfig, clips_here, scales_here
from tiekd.engine.step import searches_loss_scale
from tiekd.errors import RecipeError
from tiekd.workdir import manifest


def build_engine(network: nn.Module, optimizer: torch.optim.Optimizer, config: EngineConfig):
    """The DeepSpeed engine; `checkpoint_files` is what it saves and loads with.

    Raises RecipeError when DeepSpeed refuses a value of the engine config.
    """
    import deepspeed
    from pydantic import ValidationError

    values = {key: value for key, value in config.values.items() if key != execution.SECTION}
    execution.prepare(network, config.values)
    if clips_here(config):
        values["gradient_clipping"] = 0.0
    initial = {name: t.detach().clone() for name, t in network.state_dict().items()} if scales_here(config) else None
    profiling.time_each_collective()
    try:
        _read_by_deepspeed(values)
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecipeError(f"engine config: {key}: {first['msg']} (in {error.title}); see ds_configs/") from None
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"engine config: DeepSpeed can't take it ({reason}); see ds_configs/") from None
    engine.checkpoint_files = manifest.Files().take_over(engine)
    if scales_here(config):
        # There, DeepSpeed takes an optimizer step of its own at the start: the weights decay, and Adam's correction of
        # its first steps is one too late.
        full_state.restore(engine, initial, {})
        # DeepSpeed 0.19 divides the gradients of a torch optimizer at stage 0 by the loss scale, but never multiplies
        # the loss with it: without this, training stands still and says nothing.
        backward = engine.backward
        engine.backward = lambda loss: backward(loss * engine.optimizer.loss_scale_config.cur_scale)
    if searches_loss_scale(engine) and hasattr(engine.optimizer, "loss_scaler"):
        # It would end the run with a traceback; training/hooks/guard.py ends it with what is to be known.
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    nonfinite.spoil_gradients_of_bad_losses(engine)
    profiling.time_whole_network(engine)
    return engine


def _read_by_deepspeed(values: dict) -> None:
    """Lets DeepSpeed read a config; what it would die of there becomes a ValueError, unless it is one."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(deepcopy(values))
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
