"""A trained network as a function from pictures to metres, for people who only want to use it.

    student = tiekd.load_student("work_dirs/tiekd_light_bts_kitti/best_abs_rel.pth")
    depth = student("street.jpg")          # (H, W) float32 metres, on the CPU

Everything around the network is in it: reading, the normalisation, the readout, the size. Costs what the network's
forward costs; distributions over depth bins are read in strips (tiekd/models/readout.py), never whole.
Left out: flip averaging, and half precision.
"""

from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tiekd import outside, paths
from tiekd.config import load_recipe
from tiekd.data.depth_io import as_photo, read_photo
from tiekd.data.transforms import colour_table, look_up
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError
from tiekd.kernels.target import bin_centres
from tiekd.models import readout as readouts
from tiekd.models import weights
from tiekd.models.factory import build_network
from tiekd.models.network import Network
from tiekd.working_size import on_image_grid, resized_map, resized_picture, working_size


class Reading(NamedTuple):
    """depth: (B, 1, H, W) float32, metres; confidence: likewise, the probability that depth lies near the likeliest
    bin (readout.py), None where it was not asked for."""

    depth: Tensor
    confidence: Tensor | None = None


class Student:
    """A network in eval mode on one device: picture -> metres.

    readout: what depth is read out of a DPM head's distribution: mean, as trained and evaluated; mode; or local, the
    mean near the mode, which leaves fewer points in mid-air at edges. Other heads have the mean only (RecipeError).
    size: (height, width) in which each picture is fitted by one factor before the network sees it, None for its own
    size; the depth comes back at the picture's.
    """

    def __init__(
        self, network: Network, device: torch.device | str, readout: str = "mean", size: tuple[int, int] | None = None
    ):
        check_readout(network, readout)
        self.network = network.to(device).eval()
        self.device, self.readout, self.size = torch.device(device), readout, size
        self._table = colour_table()[None].to(self.device)

    @property
    def smooth(self) -> bool:
        """Whether depth may be interpolated between pixels; for mode and local it would put points into mid-air."""
        return self.readout == "mean"

    def __call__(self, image: str | PathLike | Image.Image | np.ndarray | Tensor) -> Tensor:
        """image: a file, a Pillow picture, (H, W, 3) uint8 RGB, or a (3, H, W) or (B, 3, H, W) uint8 RGB tensor.

        Returns (H, W), for a batch (B, H, W), float32 metres between the network's min_depth and max_depth, on the CPU.
        Raises DataError for a file that is no picture and for anything else.
        """
        pixels = as_pixels(image)
        batch = pixels if pixels.dim() == 4 else pixels[None]
        own = tuple(batch.shape[2:])
        depth = self.read(resized_picture(batch, working_size(*own, self.size))).depth
        depth = resized_map(depth.cpu(), own, self.smooth)[:, 0]
        return depth if pixels.dim() == 4 else depth[0]

    @torch.no_grad()
    def read(self, pixels: Tensor, with_confidence: bool = False) -> Reading:
        """The depth of (B, 3, H, W) uint8 RGB pictures at their size, on the student's device.

        with_confidence needs a DPM head (RecipeError).
        """
        if with_confidence:
            check_readout(self.network, "local", "confidence")
        image = look_up(pixels.to(self.device).contiguous(), self._table.expand(len(pixels), -1, -1))
        network, size = self.network, tuple(image.shape[2:])
        if self.smooth and not with_confidence:
            return Reading(network(image).depth)
        features, head = network.features(image), network.head
        if self.smooth:
            depth = head(features, size).depth
            confidence = readouts.in_strips(readouts.confidence, features, head.probabilities)
        else:
            both = readouts.in_strips(self._depth_and_confidence, features, head.probabilities)
            depth, confidence = both.split(1, dim=1)
        depth = on_image_grid(depth.clamp(network.min_depth, network.max_depth), size, self.smooth)
        return Reading(depth, on_image_grid(confidence, size, True) if with_confidence else None)

    def _depth_and_confidence(self, probabilities: Tensor) -> Tensor:
        depth = readouts.read_out(probabilities, bin_centres(self.network.head.edges), self.readout)
        return torch.cat([depth, readouts.confidence(probabilities)], dim=1)


def load_student(
    checkpoint: str | PathLike,
    recipe: str | PathLike | None = None,
    device: torch.device | str = "cpu",
    readout: str = "mean",
    size: tuple[int, int] | None = None,
) -> Student:
    """A checkpoint as a function from a picture to metres: `load_student(checkpoint)(image)`; see `Student`.

    checkpoint: weights of ours (best_*.pth, a checkpoint's student.pth), which say their network themselves; a work
    dir, meaning its best, else its latest; or a published file, which needs `recipe`, the YAML file of its network.
    So do weights whose network has parts outside tiekd: a file alone must not choose which modules are imported.
    readout, size: see Student. Raises CheckpointError and RecipeError.
    """
    path = Path(paths.expanded(fspath(checkpoint)))
    if path.is_dir():
        from tiekd.checkpoint import find_weights

        path = find_weights(path)
    state = weights.read_checkpoint(path)
    node = load_recipe(recipe).get("network") if recipe is not None else state.get("network")
    if not isinstance(node, dict):
        raise CheckpointError(
            f"{path}: doesn't say its network; give the recipe of it, as in load_student(..., recipe=)"
        )
    foreign = next(outside.names_in(node), None) if recipe is None else None
    if foreign is not None:
        raise CheckpointError(
            f"{path}: its network has a part of a module outside tiekd, {foreign!r:.80}, which would be run; if you "
            "trust it, give the recipe of the network, as in load_student(..., recipe=)"
        )
    network = build_network(node)
    try:
        weights.load_into(network, weights.named_tensors(state))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Student(network, device, readout, size)


def check_readout(network: Network, readout: str, option: str = "readout") -> None:
    """Raises RecipeError for a readout that there isn't, or that the network's head can't give."""
    if readout not in readouts.READOUTS:
        raise RecipeError(f"readout: got {readout!r}; allowed: {', '.join(readouts.READOUTS)}")
    if readout != "mean" and not hasattr(network.head, "probabilities"):
        got = "asked for" if option == "confidence" else f"got {readout!r}"
        allowed = "leave it out" if option == "confidence" else "allowed: mean"
        raise RecipeError(
            f"{option}: {got}, but this network's head ({type(network.head).__name__}) gives no distribution over "
            f"fixed depth bins, a dpm head does; {allowed}"
        )


def as_pixels(image: str | PathLike | Image.Image | np.ndarray | Tensor) -> Tensor:
    """A picture in any of the forms that `Student` takes as (3, H, W), a batch as (B, 3, H, W), uint8 RGB."""
    if isinstance(image, str | PathLike):
        return read_photo(Path(paths.expanded(fspath(image))))
    if isinstance(image, Image.Image):
        return as_photo(image, "the picture")
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    elif isinstance(image, Tensor):
        if image.dtype == torch.uint8 and image.dim() in (3, 4) and image.shape[-3] == 3 and image.numel():
            return image.cpu()
    got = f"{image.dtype} of shape {tuple(image.shape)}" if hasattr(image, "dtype") else type(image).__name__
    raise DataError(
        f"an image must be a file, a Pillow picture, an array (H, W, 3) uint8 or a tensor (3, H, W) or (B, 3, H, W) "
        f"uint8, got {got}"
    )


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None: the GPU where there is one, else the CPU. Raises LaunchError for one that isn't
    there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LaunchError(
            f"--device {name}: there is no such device ({reason}); allowed: cpu, cuda, cuda:0 ..."
        ) from None
