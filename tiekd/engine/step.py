"""Runs one micro-batch on a DeepSpeed engine: forward, backward, and the optimizer step.

A loss or gradient that isn't finite makes all ranks skip the step, and running statistics keep
their last finite values (engine/nonfinite.py). Cost: no host sync. Not covered: the learning rate,
which the loop sets, and saving (engine/checkpoint.py).
"""

import torch
from torch import Tensor, nn

from tiekd.data.target import Target
from tiekd.engine import full_state, nonfinite
from tiekd.engine.config import EngineConfig, clips_in_step, scales_in_step


class Step:
    """Runs the forward and the backward pass of one micro-batch at a time, and the optimizer step.

    Construct a Step after the weights are loaded: it copies BatchNorm's running statistics, to
    restore them if they become NaN or infinite.

    Attributes:
        engine: The DeepSpeed engine.
    """

    def __init__(self, engine, config: EngineConfig, clip_norm: float):
        """Wraps an engine that `build_engine` returned.

        Args:
            engine: The DeepSpeed engine.
            config: The engine config with which the engine was built.
            clip_norm: The maximum L2 norm of the gradient over all parameters; 0 for no clipping.
        """
        self.engine = engine
        self._poison = nonfinite.GradientPoison(engine.module)
        self._statistics = nonfinite.RunningStatistics(engine.module)
        # Without ZeRO, DeepSpeed 0.19 divides the gradients by fp16's loss scale but never
        # multiplies the loss by it. So `backward` multiplies it; otherwise training would silently
        # make no progress.
        self._scales_loss = scales_in_step(config)
        # In fp32 without ZeRO, DeepSpeed clips the gradient but doesn't return its norm. So this
        # class clips it and computes the norm.
        self._clipped = _trainable_parameters(engine.module) if clips_in_step(config) else None
        self._clip_norm = clip_norm or float("inf")
        self._num_skipped = torch.zeros((), device=self._clipped[0].device) if self._clipped else 0

    def forward(
        self,
        image: Tensor,
        target_depth: Tensor | Target | None = None,
        counted: Tensor | None = None,
    ):
        """Runs the network in the engine's precision.

        Args:
            image: (B, 3, H, W) float32, ImageNet-normalised.
            target_depth: The depth from which a DPM head computes the divergence of its Prediction:
                (B, 1, H, W) float32, metres, 0 where not valid; or a `Target`, i.e. the depths of
                several teachers, or depths with sigmas. None if no loss term needs the divergence.
            counted: (B, 1, H, W) bool, True for the pixels over which BatchNorm computes its
                statistics; None for all pixels.

        Returns:
            The network's `Prediction`: depth (B, 1, H, W); with a DPM head and a target depth also
            the divergence, (B, 1, H, W); and the depth bins' centres, if the head predicts bins.
        """
        return self.engine(image, target_depth, counted)

    def backward(self, loss: Tensor) -> Tensor | float | None:
        """Computes the gradients of a micro-batch, and adds them to those of the iteration.

        After the iteration's last micro-batch the gradient is also clipped, and the optimizer takes
        its step.

        Args:
            loss: 0-d float32, the mean over the images of this rank's micro-batch.

        Returns:
            After the iteration's last micro-batch: the L2 norm, before clipping, of the gradient
            that was averaged over all ranks; a number or a 0-d tensor. None after other
            micro-batches, or if DeepSpeed reports no norm.
        """
        self._poison.add_where_not_finite(loss)
        self.engine.backward(loss * self._optimizer_loss_scale() if self._scales_loss else loss)
        self._statistics.keep_finite()
        return self._step() if self._clipped is None else self._clip_and_step()

    @property
    def skipped(self) -> Tensor | bool:
        """True if all ranks skipped the last optimizer step because its gradient was not finite.

        The value is a bool, or a 0-d tensor on the device (0 for False).
        """
        if self._clipped is not None:
            return self.engine.optimizer.found_inf
        return not self.engine.was_step_applied()

    @property
    def num_skipped(self) -> int:
        """The number of optimizer steps that the engine has skipped so far. One host sync."""
        return self.engine.skipped_steps + int(self._num_skipped)

    @property
    def loss_scale(self) -> float | None:
        """The factor by which the next loss is multiplied in fp16; None in bf16 and fp32."""
        return (
            full_state.counters(self.engine)["loss_scale"] if self.engine.fp16_enabled() else None
        )

    @property
    def searches_loss_scale(self) -> bool:
        """True if training is in fp16, and its loss scale adapts itself and can still be lowered.

        Then a skipped step may only mean that the loss scale was too large, although the loss
        itself was finite.
        """
        searches = self.engine.fp16_enabled() and self.engine.dynamic_loss_scale()
        return searches and self.loss_scale > 1

    def _optimizer_loss_scale(self) -> float:
        return self.engine.optimizer.loss_scale_config.cur_scale

    def _step(self) -> Tensor | float | None:
        # Without ZeRO in fp16, DeepSpeed returns the norm of the scaled gradient, so divide the
        # norm by the loss scale.
        scale = self._optimizer_loss_scale() if self._scales_loss else 1.0
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return norm if norm is None else norm / scale

    def _clip_and_step(self) -> Tensor | None:
        """Clips the gradient and takes the optimizer step, if this micro-batch ends the iteration.

        It is called after each micro-batch. The gradient is clipped as DeepSpeed does it, by the L2
        norm over all parameters. If the norm isn't finite, the fused optimizer skips the step on
        the device, without a host sync.

        Returns:
            The norm before clipping, 0-d; None before the iteration's last micro-batch.
        """
        norm = None
        if self.engine.is_gradient_accumulation_boundary():
            norm = nn.utils.clip_grad_norm_(self._clipped, self._clip_norm)
            self.engine.optimizer.found_inf = (~torch.isfinite(norm)).float()
            self._num_skipped.add_(self.engine.optimizer.found_inf)
        self.engine.step()
        return norm


def _trainable_parameters(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
