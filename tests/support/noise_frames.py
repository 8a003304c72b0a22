"""A dataset of noise, and a network that isn't mirror-symmetric, for tests of evaluation."""

import torch
from torch import nn

from tiekd.data.sample import Sample
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings
from tiekd.models.network import Prediction

CPU = torch.device("cpu")


class Frames(torch.utils.data.Dataset):
    """Seven frames of noise with ground truth of 1 to 90 m; frame 3 has no ground truth."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 12, 20), generator=generator, dtype=torch.uint8)
        depth = torch.rand(1, 12, 20, generator=generator) * 89 + 1
        depth[torch.rand(1, 12, 20, generator=generator) < index / 10] = 0
        return Sample(
            image,
            depth * (index != 3),
            torch.ones(1, 12, 20, dtype=torch.bool),
            None,
            torch.eye(3),
            str(index),
        )


def protocol(**settings) -> EvaluationProtocol:
    """Returns a protocol that scores all pixels between 1 mm and 80 m, with other `settings`."""
    return EvaluationProtocol(EvaluationSettings(**{"crop": "none"} | settings), 1e-3, 80.0)


class Slanted(nn.Module):
    """Predicts grey plus a ramp from left to right, which isn't mirror-symmetric."""

    def forward(self, image):
        return Prediction(
            20 + 5 * image.mean(1, keepdim=True) + torch.arange(float(image.shape[-1]))
        )
