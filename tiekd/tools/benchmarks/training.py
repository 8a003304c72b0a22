"""One training step of a recipe's student on made-up pictures, without DeepSpeed: forward, losses, backward, clipping,
optimizer. What the benchmarks time; it costs what a step costs. Left out: data, hooks, ranks.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from tiekd.data.batch import Batch
from tiekd.engine.execution import compile_parts
from tiekd.errors import LaunchError
from tiekd.kernels import reference
from tiekd.kernels.convolution import prepare_bf16
from tiekd.models.build import build_network
from tiekd.models.decoders.densedepth import TwoConvs
from tiekd.models.encoders.mobilenet_v2 import ConvNorm
from tiekd.models.heads.dpm import Dpm
from tiekd.models.layers.upsampled import UpsampledConv
from tiekd.training import criterion as criteria
from tiekd.training.optimizer import OPTIMIZERS
from tiekd.training.settings import TrainSettings

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
CLIP_NORM = TrainSettings.clip_norm


class TrainingStep:
    """A call is one step on a fixed batch of noise; `loss` is the last one's, a 0-d tensor.

    recipe: its network, losses and optimizer are taken. dtype: of the autocast around forward, None for none.
    plain: the network by `make_plain`, and torch's loop over parameters as the optimizer. teacher: batch -> depth; None
    takes the batch's map.
    """

    def __init__(
        self,
        recipe: dict,
        device: torch.device,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        plain: bool = False,
        compiled: bool = False,
        teacher: Callable[[Batch], Tensor] | None = None,
    ):
        torch.manual_seed(0)
        self.network = build_network(recipe["network"]).to(device).train()
        self.network.memory_format = memory_format
        if plain:
            make_plain(self.network)
        elif dtype == torch.bfloat16:
            prepare_bf16(self.network)
        if compiled:
            compile_parts(self.network)
        self.criterion = criteria.build(recipe["losses"], has_teacher=True).to(device)
        self.optimizer = make_optimizer(recipe["optimizer"], self.network, plain)
        self.batch = noise(batch_size, height, width, recipe["network"]["max_depth"], device)
        self.teacher = teacher or (lambda batch: batch.teacher_depth)
        self.device, self.dtype = device, dtype
        self.loss: Tensor | None = None

    def __call__(self) -> None:
        batch = self.batch
        teacher_depth = self.teacher(batch)
        target = self.criterion.divergence_target(teacher_depth)
        with nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype):
            prediction = self.network(batch.image, target)
        loss = self.criterion(prediction, batch, teacher_depth)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = loss.detach()

    def state_bytes(self) -> int:
        """What is held between steps: weights, buffers and the optimizer's moments."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        tensors += [
            v
            for state in self.optimizer.state.values()
            for v in state.values()
            if isinstance(v, Tensor)
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def noise(
    batch_size: int, height: int, width: int, max_depth: float, device: torch.device
) -> Batch:
    """Normalised noise as pictures; teacher maps dense and smooth, from 2 m on; ground truth on a twentieth of it."""
    generator = torch.Generator().manual_seed(1)
    shape = batch_size, 1, height, width
    coarse = torch.rand(
        batch_size, 1, max(2, height // 32), max(2, width // 32), generator=generator
    )
    maps = nn.functional.interpolate(
        coarse, size=(height, width), mode="bilinear", align_corners=True
    )
    teacher_depth = 2.0 + (max_depth - 2.0) * maps
    measured = torch.rand(shape, generator=generator) < 0.05
    batch = Batch(
        torch.randn(batch_size, 3, height, width, generator=generator),
        teacher_depth * measured,
        torch.ones(shape, dtype=torch.bool),
        teacher_depth,
        torch.eye(3).expand(batch_size, 3, 3),
        ["noise"] * batch_size,
    )
    return Batch(*(value.to(device) if isinstance(value, Tensor) else value for value in batch))


def device_of(name: str) -> torch.device:
    """LaunchError where there is no such device."""
    if name not in ("cpu", "cuda"):
        raise LaunchError(f"--device {name}: allowed: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise LaunchError("--device cuda: torch sees no GPU here; use cpu")
    return torch.device(name)


def make_plain(network: nn.Module) -> nn.Module:
    """Has the published students' parts computed as they are defined, operator by operator: the same numbers but for
    rounding, without what we do for time and memory. In place; returns it."""
    for module in network.modules():
        if isinstance(module, (UpsampledConv, TwoConvs, ConvNorm)):
            module.plain = True
        elif isinstance(module, Dpm):
            module.kernel = reference.dpm
    return network


def make_optimizer(node: dict, network: nn.Module, plain: bool) -> torch.optim.Optimizer:
    """The recipe's kind with its arguments; the plain one is torch's loop over parameters, as in the published code."""
    arguments = {
        key: value for key, value in node.items() if key not in ("name", "groups", "lr_batch_size")
    }
    how = {"foreach": False, "fused": False} if plain else {"fused": True}
    return OPTIMIZERS[node["name"]](network.parameters(), **arguments, **how)
