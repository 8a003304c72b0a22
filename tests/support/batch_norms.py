"""Runs training steps of a BatchNorm on the images of one rank, or of all ranks together."""

import torch
from torch import nn

SHAPES = {"equal": ((2, 3, 5, 7), (2, 3, 5, 7)), "unequal": ((1, 3, 5, 7), (3, 3, 4, 2))}


def images(case):
    """Returns the images of each rank, (B, 3, H, W).

    Their means and deviations differ between ranks, so averaging the ranks' statistics is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator) * (2 + r) + 3 + 2 * r
        for r, shape in enumerate(SHAPES[case])
    ]


def norm(cls, dtype=torch.float32, **options):
    module = cls(3, **options)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        module.bias.copy_(torch.tensor([0.25, 0.0, -0.5]))
    return module.to(dtype)


def step(module, xs):
    """Runs two training steps of a module from `OnOne` or `OnRank` on a list of images.

    Returns the outputs, gradients of a weighted sum of the outputs, and running statistics.
    """
    for _ in range(2):
        module.zero_grad()
        xs = [x.detach().requires_grad_() for x in xs]
        ys = module(xs)
        sum((y.float() * torch.linspace(-1, 2, y.numel()).view_as(y)).sum() for y in ys).backward()
    return {
        "outputs": [y.detach() for y in ys],
        "input_grads": [x.grad for x in xs],
        "weight_grad": module.norm.weight.grad,
        "bias_grad": module.norm.bias.grad,
        "running_mean": module.norm.running_mean,
        "running_var": module.norm.running_var,
        "batches": module.norm.num_batches_tracked,
    }


class OnOne(nn.Module):
    """Applies a norm to the pixels of all images together; the images may differ in shape."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, xs):
        rows = [x.permute(1, 0, 2, 3).reshape(3, -1) for x in xs]
        parts = (
            self.norm(torch.cat(rows, 1)[None, :, None])
            .reshape(3, -1)
            .split([r.shape[1] for r in rows], 1)
        )
        return [
            p.view(3, x.shape[0], *x.shape[2:]).transpose(0, 1)
            for p, x in zip(parts, xs, strict=True)
        ]


class OnRank(OnOne):
    """Applies a norm to each image tensor separately, as a rank does with its own images."""

    def forward(self, xs):
        return [self.norm(x) for x in xs]
