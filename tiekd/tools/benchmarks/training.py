"""Runs training steps of a recipe's student on images of noise, without DeepSpeed.

The benchmarks time such steps: forward, losses, backward, clipping and optimizer. Not covered:
data, hooks, several ranks.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

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
from tiekd.models.layers.relu6 import ReLU6
from tiekd.models.layers.upsampled import UpsampledConv
from tiekd.training import criterion as criteria
from tiekd.training.optimizer import OPTIMIZERS
from tiekd.training.settings import TrainSettings

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
CLIP_NORM = TrainSettings.clip_norm


class BatchShape(NamedTuple):
    """The size of a batch.

    Attributes:
        batch_size: number of images.
        height: height of the images, pixels.
        width: width of the images, pixels.
    """

    batch_size: int
    height: int
    width: int


class TrainingStep:
    """A network with its optimizer and a fixed batch of noise; each call runs a training step.

    Attributes:
        network: the student, in training mode.
        criterion: the recipe's losses.
        optimizer: the recipe's optimizer.
        batch: the batch of every step.
        teacher: function from the batch to the teacher's depth.
        device: the device of all tensors.
        dtype: dtype of autocast in the forward pass; None for no autocast.
        loss: loss of the last step, a 0-d tensor; None before the first step.
    """

    def __init__(
        self,
        recipe: dict,
        device: torch.device,
        shape: BatchShape,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        plain: bool = False,
        compiled: bool = False,
        teacher: Callable[[Batch], Tensor] | None = None,
    ):
        """Builds network, losses, optimizer and batch.

        Args:
            recipe: the recipe, whose network, losses and optimizer are used.
            device: the device of all tensors.
            shape: batch size and image size.
            dtype: dtype of autocast in the forward pass; None for no autocast.
            memory_format: memory format of the network and its features.
            plain: True to use the network without optimisations (`make_plain`), and an optimizer
                that loops over the parameters.
            compiled: True to compile encoder and decoder.
            teacher: function from a `Batch` to the teacher's depth, (B, 1, H, W) in metres; None to
                use the teacher map in the batch.
        """
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
        self.batch = noise(shape, recipe["network"]["max_depth"], device)
        self.teacher = teacher or (lambda batch: batch.teacher_depth)
        self.device = device
        self.dtype = dtype
        self.loss: Tensor | None = None

    def __call__(self) -> None:
        """Runs one training step from forward to optimizer, and stores its loss in `loss`."""
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
        """Returns the bytes held between steps: weights, buffers and the optimizer's moments."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def noise(shape: BatchShape, max_depth: float, device: torch.device) -> Batch:
    """Makes a batch of images of noise, with synthetic teacher maps and ground truth.

    Args:
        shape: batch size and image size.
        max_depth: largest depth of the teacher maps, metres.
        device: device of the tensors.

    Returns:
        A batch with normalised noise as images, dense and smooth teacher maps from 2 m to
        max_depth, and ground truth on a twentieth of the pixels.
    """
    generator = torch.Generator().manual_seed(1)
    batch_size, height, width = shape
    one_channel = batch_size, 1, height, width
    # Make smooth teacher maps: noise at 1/32 of the image's size, upsampled.
    coarse = torch.rand(
        batch_size, 1, max(2, height // 32), max(2, width // 32), generator=generator
    )
    maps = nn.functional.interpolate(
        coarse, size=(height, width), mode="bilinear", align_corners=True
    )
    teacher_depth = 2.0 + (max_depth - 2.0) * maps
    # Make ground truth for a twentieth of the pixels, about as sparse as that of a lidar.
    measured = torch.rand(one_channel, generator=generator) < 0.05
    batch = Batch(
        torch.randn(batch_size, 3, height, width, generator=generator),
        teacher_depth * measured,
        torch.ones(one_channel, dtype=torch.bool),
        teacher_depth,
        torch.eye(3).expand(batch_size, 3, 3),
        ["noise"] * batch_size,
    )
    return Batch(*(value.to(device) if isinstance(value, Tensor) else value for value in batch))


def device_of(name: str) -> torch.device:
    """Returns the torch device for the option --device.

    Args:
        name: the option's value, "cpu" or "cuda".

    Raises:
        LaunchError: there is no such device.
    """
    if name not in ("cpu", "cuda"):
        raise LaunchError(f"--device {name}: allowed: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise LaunchError("--device cuda: torch sees no GPU here; use cpu")
    return torch.device(name)


def make_plain(network: nn.Module) -> nn.Module:
    """Switches off a network's optimisations of time and memory in place, and returns the network.

    Afterwards it computes each operator as published. Its results differ from the optimised
    network's only by rounding.

    Args:
        network: a network as `build_network` returns it.
    """
    for module in network.modules():
        if isinstance(module, (UpsampledConv, TwoConvs, ConvNorm, ReLU6)):
            module.plain = True
        elif isinstance(module, Dpm):
            module.kernel = reference.dpm
    return network


def make_optimizer(node: dict, network: nn.Module, plain: bool) -> torch.optim.Optimizer:
    """Builds the recipe's optimizer for a network.

    All parameters are in one group, i.e. the recipe's parameter groups are ignored.

    Args:
        node: the recipe's section `optimizer`.
        network: the network, whose parameters are trained.
        plain: True for an optimizer that loops over the parameters, as published code does; False
            for torch's fused one.
    """
    arguments = {
        key: value for key, value in node.items() if key not in ("name", "groups", "lr_batch_size")
    }
    how = {"foreach": False, "fused": False} if plain else {"fused": True}
    return OPTIMIZERS[node["name"]](network.parameters(), **arguments, **how)
