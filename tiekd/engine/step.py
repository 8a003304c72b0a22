"""Runs one micro-batch on a DeepSpeed engine: forward, backward, and the optimizer step.

A loss or gradient that isn't finite makes all ranks skip the step, and running statistics keep
their last finite values (engine/nonfinite.py). Cost: no host sync. Left out: the learning rate,
which the loop sets, and saving (engine/checkpoint.py).
"""

import torch
from torch import Tensor, nn

from tiekd.engine import full_state, nonfinite
from tiekd.engine.config import EngineConfig, clips_here, scales_here


class Step:
    """Runs forward, backward and the optimizer step of one micro-batch at a time.

    Construct it after the weights are loaded, because it copies the norms' running statistics as
    the first finite ones.
    """

    def __init__(self, engine, config: EngineConfig, clip_norm: float):
        """Wraps an engine that `build_engine` returned.

        Args:
            engine: The DeepSpeed engine.
            config: The resolved engine config that the engine was built with.
            clip_norm: Maximum L2 norm of the gradient over all parameters; 0: no clipping.
        """
        self.engine = engine
        self._poison = nonfinite.GradientPoison(engine.module)
        self._statistics = nonfinite.RunningStatistics(engine.module)
        # At stage 0 DeepSpeed 0.19 divides a torch optimizer's gradients by the loss scale but
        # never multiplies the loss by it. Without the multiplication in `backward`, training would
        # silently make no progress.
        self._scales = scales_here(config)
        # At stage 0 without a loss scale DeepSpeed clips but doesn't return the norm, so the
        # gradient is clipped here.
        self._clipped = _trained(engine.module) if clips_here(config) else None
        self._clip_norm = clip_norm or float("inf")
        self._num_skipped = torch.zeros((), device=self._clipped[0].device) if self._clipped else 0

    def forward(
        self, image: Tensor, target_depth: Tensor | None = None, counted: Tensor | None = None
    ):
        """Runs the network in the engine's precision.

        Args:
            image: (B, 3, H, W) float32, ImageNet-normalised.
            target_depth: (B, 1, H, W) float32, metres, 0 where not valid: the divergence's
                target; None if no loss term reads the divergence.
            counted: (B, 1, H, W) bool, mask of the pixels in the norms' statistics; None: all.

        Returns:
            The network's Prediction.
        """
        return self.engine(image, target_depth, counted)

    def backward(self, loss: Tensor) -> Tensor | float | None:
        """Adds a micro-batch's gradients; after the iteration's last one also clips and steps.

        Args:
            loss: 0-d float32, the mean over this rank's images.

        Returns:
            The L2 norm of the averaged gradient of all ranks before clipping; None before the
            iteration's last micro-batch.
        """
        self._poison.add_where_not_finite(loss)
        self.engine.backward(loss * self._scale_here() if self._scales else loss)
        self._statistics.keep_finite()
        return self._step() if self._clipped is None else self._clip_and_step()

    @property
    def skipped(self) -> Tensor | bool:
        """True if all ranks skipped the last optimizer step; maybe a 0-d tensor on the device."""
        if self._clipped is not None:
            return self.engine.optimizer.found_inf
        return not self.engine.was_step_applied()

    @property
    def num_skipped(self) -> int:
        """The number of optimizer steps that this engine has skipped. One host sync."""
        return self.engine.skipped_steps + int(self._num_skipped)

    @property
    def loss_scale(self) -> float | None:
        """The factor by which fp16 multiplies the next loss; None in bf16 and fp32."""
        return (
            full_state.counters(self.engine)["loss_scale"] if self.engine.fp16_enabled() else None
        )

    @property
    def searches_loss_scale(self) -> bool:
        """True if fp16 adapts the loss scale, so that a step may be skipped for its size alone."""
        searches = self.engine.fp16_enabled() and self.engine.dynamic_loss_scale()
        return searches and self.loss_scale > 1

    def _scale_here(self) -> float:
        return self.engine.optimizer.loss_scale_config.cur_scale

    def _step(self) -> Tensor | float | None:
        # At stage 0 DeepSpeed returns the norm of the scaled gradient: divide by the loss scale.
        scale = self._scale_here() if self._scales else 1.0
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return norm if norm is None else norm / scale

    def _clip_and_step(self) -> Tensor | None:
        """Clips the gradient and takes the optimizer step; returns the norm before clipping.

        The formula is DeepSpeed's. If the norm isn't finite, the fused optimizer skips the step on
        the device, without a host sync.
        """
        norm = None
        if self.engine.is_gradient_accumulation_boundary():
            norm = nn.utils.clip_grad_norm_(self._clipped, self._clip_norm)
            self.engine.optimizer.found_inf = (~torch.isfinite(norm)).float()
            self._num_skipped.add_(self.engine.optimizer.found_inf)
        self.engine.step()
        return norm


def _trained(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
