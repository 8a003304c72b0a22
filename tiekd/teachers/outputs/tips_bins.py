"""The sigma of a TIPSv2 depth model of transformers, from its distribution over depth bins.

The model's depth is the mean over its bins, with weights relu(logit) + min_depth. The summand
min_depth adds the same amount to every bin: a pedestal that is independent of the image and widens
each distribution. Sigma is computed without it; the depth, which transformers computes, contains
it. The logits are read by a hook where the model computes its depth from them. Cost: the logits of
the model's last call stay in memory until sigma is read from them, a few image rows at a time.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tiekd.models.readout import in_strips
from tiekd.models.spread import half_width


class TipsBins:
    """Reads the sigma of each pixel from the last call of a TIPSv2 depth model.

    Attributes:
        edges: (K + 1,), edges of the depth bins, metres. The model states their centres.

    Args:
        model: a `Tipsv2DptForDepthEstimation`.
    """

    def __init__(self, model: nn.Module):
        centres = model.bin_regressor.bin_centers.float()
        half = (centres[1] - centres[0]) / 2
        self.edges = torch.cat((centres - half, centres[-1:] + half))
        self._logits: Tensor | None = None
        model.bin_regressor.register_forward_pre_hook(self._keep)

    def sigma(self, size: tuple[int, int]) -> Tensor:
        """Returns the sigmas of the depth distributions of the model's last call.

        Args:
            size: (H, W) of the result. The sigmas are resized to it as transformers resizes depth.

        Returns:
            (B, 1, H, W) float32, metres.
        """
        logits, self._logits = self._logits, None
        assert logits is not None, "the model wasn't called"
        edges = self.edges.to(logits.device)
        sigma = in_strips(lambda each: half_width(each, edges), logits, without_pedestal)
        return interpolate(sigma, size=size, mode="bilinear", align_corners=False)

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._logits = inputs[0]


def without_pedestal(logits: Tensor) -> Tensor:
    """Returns the distributions over the depth bins, without the constant that every bin has.

    Args:
        logits: (B, K, h, w).

    Returns:
        (B, K, h, w) float32, summing to 1 over K; uniform where no logit is above 0, since the
        model's depth is then that of the pedestal alone.
    """
    mass = logits.float().relu()
    total = mass.sum(1, keepdim=True)
    return torch.where(total > 0, mass / total, 1 / mass.shape[1])
