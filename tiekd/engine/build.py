"""Builds a DeepSpeed engine from a network, an optimizer and a resolved engine config.

The project's only call of deepspeed.initialize is here. Not covered: DeepSpeed's own optimizers and
schedulers; the training loop sets the learning rate at each iteration.
"""

from copy import deepcopy

import torch
from torch import nn

from tiekd.config import shipped
from tiekd.engine import execution, full_state, patches
from tiekd.engine.config import EngineConfig, clips_in_step, scales_in_step
from tiekd.errors import RecipeError
from tiekd.workdir.manifest import Files


def build_engine(network: nn.Module, optimizer: torch.optim.Optimizer, config: EngineConfig):
    """Builds the DeepSpeed engine, with the patches of engine/patches.py. Collective.

    Args:
        network: The student. The memory format of its convolutions and torch.compile are set in
            place (engine/execution.py).
        optimizer: A torch optimizer of the network's parameters.
        config: The engine config, in which every "auto" is replaced by a value.

    Returns:
        The deepspeed.DeepSpeedEngine. Its attribute `checkpoint_files`, which is added here, writes
        and reads the engine's checkpoint files.

    Raises:
        RecipeError: DeepSpeed refuses a value of the engine config.
    """
    import deepspeed
    from pydantic import ValidationError

    values = {key: value for key, value in config.values.items() if key != execution.SECTION}
    execution.prepare(network, config.values)
    if clips_in_step(config):
        # engine/step.py clips the gradient, so turn DeepSpeed's own clipping off.
        values["gradient_clipping"] = 0.0
    initial = None
    if scales_in_step(config):
        initial = {name: value.detach().clone() for name, value in network.state_dict().items()}
    patches.time_each_collective()
    patches.import_muon_uncompiled()
    working_ones = shipped.shown_folder(shipped.ENGINE_CONFIGS)
    try:
        # Report an error that DeepSpeed raises for a value of the engine config in one line, since
        # the value comes from the user.
        _read_by_deepspeed(values)
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']} (in {error.title})"
        raise RecipeError(f"engine config: {reason}; see {working_ones}") from None
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"engine config: DeepSpeed refuses it ({reason}); see {working_ones}"
        ) from None
    if initial is not None:
        # In fp16 without ZeRO, DeepSpeed takes an optimizer step while it builds the engine. This
        # step applies weight decay and advances Adam's step count, so restore the initial weights
        # and an empty optimizer state.
        full_state.restore(engine, initial, {})
    patches.save_through(engine, Files())
    patches.keep_on_at_lowest_loss_scale(engine)
    patches.time_whole_network(engine)
    return engine


def _read_by_deepspeed(values: dict) -> None:
    """Raises ValueError if DeepSpeed can't parse an engine config.

    Args:
        values: The engine config as DeepSpeed takes it, without the section "tiekd".
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(deepcopy(values))
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
