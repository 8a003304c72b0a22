"""What ends a micro-batch, and what an engine says of its steps: skipped ones, and the loss scale."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tiekd.engine import full_state, nonfinite
from tiekd.engine.config import EngineConfig, clips_here, scales_here


def stepper(engine, config: EngineConfig, clip_norm: float) -> Callable[[], Tensor | float | None]:
    """The function that ends a micro-batch: `engine.step()`, which returns the pre-clip gradient norm at the boundary.

    In stage 0 without a loss scale DeepSpeed clips but tells no norm, so clipping happens here, with the same
    formula; a norm that isn't finite makes the fused optimizer skip the step on the device, without a host sync.
    """
    statistics = nonfinite.RunningStatistics(engine.module)
    step = _clip_and_step(engine, clip_norm) if clips_here(config) else _engine_step(engine, config)

    def end_micro_batch():
        statistics.keep_finite()
        return step()

    return end_micro_batch


def step_skipped(engine) -> Tensor | bool:
    """Whether the last optimizer step was skipped, on all ranks, for a loss or gradient that was not finite; a tensor
    is on the device, so that nobody waits."""
    return engine.optimizer.found_inf if hasattr(engine, "skipped_on_device") else not engine.was_step_applied()


def skipped_steps(engine) -> int:
    """How many optimizer steps were skipped so far for gradients that were not finite. One host sync."""
    return engine.skipped_steps + int(getattr(engine, "skipped_on_device", 0))


def loss_scale(engine) -> float | None:
    """What the next loss is multiplied with in fp16; None in the other precisions."""
    return full_state.counters(engine)["loss_scale"] if engine.fp16_enabled() else None


def searches_loss_scale(engine) -> bool:
    """Whether a skipped step may only say that the loss scale was too large: it is halved then, down to 1."""
    return engine.fp16_enabled() and engine.dynamic_loss_scale() and loss_scale(engine) > 1


def _engine_step(engine, config: EngineConfig) -> Callable[[], Tensor | float | None]:
    def engine_step():
        # At stage 0 the norm is told with the loss scale of the step still in it.
        scale = engine.optimizer.loss_scale_config.cur_scale if scales_here(config) else 1.0
        engine.step()
        norm = engine.get_global_grad_norm()
        return norm if norm is None else norm / scale

    return engine_step


def _clip_and_step(engine, clip_norm: float) -> Callable[[], Tensor | None]:
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    skipped = torch.zeros((), device=parameters[0].device)
    engine.skipped_on_device = skipped

    def clip_and_step():
        norm = None
        if engine.is_gradient_accumulation_boundary():
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm or float("inf"))
            engine.optimizer.found_inf = (~torch.isfinite(norm)).float()
            skipped.add_(engine.optimizer.found_inf)
        engine.step()
        return norm

    return clip_and_step
