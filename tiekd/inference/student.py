"""A trained network as a function from images to depth in metres, for users who only predict.

    student = tiekd.load_student("work_dirs/tiekd_light_bts_kitti/best_abs_rel.pth")
    depth = student("street.jpg")          # (H, W) float32 metres, on the CPU
    depth, confidence, sigma = student("street.jpg", confidence=True)

The function includes the steps around the network: reading the file; resizing the image to the
working resolution, i.e. the size at which the weights were trained (tiekd/data/resize.py);
normalising it; and the readout, i.e. computing one depth from a pixel's distribution over depth
bins. The cost is that of the network's forward pass at that resolution. Distributions over depth
bins are computed for some image rows at a time (tiekd/models/readout.py), so that they are never in
memory as a whole. A network with `network.canonical_focal` needs each image's focal length:
`student(image, focal=F)`. tiekd/models/confidence.py defines confidence and sigma; depth is the
same bit for bit with and without them. Not covered: flip averaging, and half precision.
"""

import math
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tiekd import paths
from tiekd.config import external
from tiekd.config.recipe import load_recipe
from tiekd.data import focal as focals
from tiekd.data import least_size
from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.cameras.calibration import Camera
from tiekd.data.image_io import as_photo, read_photo
from tiekd.data.resize import LARGEST, OWN_SIZE, Resize, at_own_size, network_input, resize_of
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError
from tiekd.kernels.target import bin_centres
from tiekd.models import canonical, confidence
from tiekd.models import readout as readouts
from tiekd.models.build import build_network
from tiekd.models.confidence import Calibration
from tiekd.models.network import Network
from tiekd.models.weights import state_dicts


class Reading(NamedTuple):
    """Depth, confidence and sigma that a student predicts.

    Attributes:
        depth: (B, 1, H, W) float32, metres.
        confidence: (B, 1, H, W) float32, 0 to 1, the probability that the true depth is within 10 %
            of `depth` (`models.confidence.RELATIVE_TOLERANCE`); None if it wasn't requested.
        sigma: (B, 1, H, W) float32, metres, above 0, the root of the expected squared error of
            `depth`; None if it wasn't requested.
    """

    depth: Tensor
    confidence: Tensor | None = None
    sigma: Tensor | None = None

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Reading":
        """Returns a `Reading` with a function applied to depth, confidence and sigma.

        Args:
            function: A function from a tensor to a tensor. It isn't called for confidence and sigma
                if they are None.
        """
        return Reading(*(None if values is None else function(values) for values in self))


class Student:
    """Predicts depth in metres from images, with a network in eval mode on one device.

    Args:
        network: The network. It is moved to the device and set to eval mode.
        device: The device to run on.
        readout: How depth is read from a DPM head's distribution over depth bins: "mean", as
            trained and evaluated; "mode", the likeliest bin's centre; or "local", the mean over the
            bins near the mode, which puts fewer points into mid-air at object edges. Other heads
            support "mean" only.
        resize: How each image is resized for the network. Depth is returned at the image's own
            size.
        calibration: The temperature by which the logits are divided before confidence and sigma are
            computed, as bin/calibrate.py has written it to the weights file; None for weights that
            aren't calibrated, whose temperature is 1.

    Raises:
        RecipeError: If the head doesn't support the readout.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device | str,
        readout: str = "mean",
        resize: Resize = OWN_SIZE,
        calibration: Calibration | None = None,
    ):
        check_readout(network, readout)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.readout = readout
        self.resize = resize
        self.calibration = calibration
        self._table = colour_table()[None].to(self.device)

    @property
    def temperature(self) -> float:
        """The temperature: the number by which logits are divided to get confidence and sigma.

        It is 1 if the weights aren't calibrated.
        """
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def smooth(self) -> bool:
        """True if depth may be interpolated between pixels, as for the readout "mean".

        For the readouts "mode" and "local", i.e. the depth at or near the likeliest depth bin,
        interpolation across an object edge would put points into mid-air.
        """
        return self.readout == "mean"

    def __call__(
        self,
        image: str | PathLike | Image.Image | np.ndarray | Tensor,
        focal: float | Sequence[float] | None = None,
        confidence: bool = False,
    ) -> Tensor | Reading:
        """Predicts the depth of an image.

        Args:
            image: The path of an image file, a Pillow image, an (H, W, 3) uint8 RGB array, or a
                (3, H, W) or (B, 3, H, W) uint8 RGB tensor.
            focal: Focal length in pixels of `image` at its own size, (fx + fy) / 2. For a batch,
                one number for all images or a sequence of B numbers. A network with
                `canonical_focal` needs it; for any other it must be None.
            confidence: True to return confidence and sigma, too. Needs a DPM head.

        Returns:
            (H, W), or (B, H, W) for a batch; float32 metres between the network's min_depth and
            max_depth, on the CPU. With `confidence` a `Reading`, whose depth, confidence and sigma
            have that shape.

        Raises:
            DataError: If the file can't be read as an image, or `image` is none of the above.
            RecipeError: If confidence is requested of a network without a DPM head; or if the
                focal length is missing, not a number above 0, or given although the network needs
                none.
        """
        pixels = as_pixels(image)
        name = str(fspath(image)) if isinstance(image, str | PathLike) else "the image"
        batch = pixels if pixels.dim() == 4 else pixels[None]
        size = tuple(pixels.shape[-2:])
        small = self.working_image(batch, name)
        reading = self.predict_resized(small, confidence, self._focals_of_resized(focal, batch))
        reading = self.at_own_size(reading, size).mapped(lambda values: values[:, 0])
        if pixels.dim() == 3:
            reading = reading.mapped(lambda values: values[0])
        return reading if confidence else reading.depth

    def predict(
        self,
        pixels: Tensor,
        with_confidence: bool = False,
        focal: float | Sequence[float] | None = None,
    ) -> Reading:
        """Predicts the depth of images at their own size.

        Args:
            pixels: (B, 3, H, W) uint8 RGB.
            with_confidence: True to return confidence and sigma, too. Needs a DPM head.
            focal: Focal length in pixels of the images at their own size, one for all or one for
                each; for a network with `canonical_focal`.

        Returns:
            A `Reading` with depth, confidence and sigma, each (B, 1, H, W), on the CPU. Confidence
            and sigma are None unless requested.

        Raises:
            RecipeError: If confidence is requested of a network without a DPM head; or if the
                focal length is missing, not a number above 0, or given although the network needs
                none.
        """
        small = self.working_image(pixels)
        reading = self.predict_resized(
            small, with_confidence, self._focals_of_resized(focal, pixels)
        )
        return self.at_own_size(reading, tuple(pixels.shape[2:]))

    def working_image(self, pixels: Tensor, name: str = "the image") -> Tensor:
        """Resizes images to the size at which the network runs, and pads them if `resize` says so.

        Args:
            pixels: (..., 3, H, W) uint8 RGB at the images' own size.
            name: The image's file, for the error message.

        Returns:
            (..., 3, h, w) uint8, the images at this size, the working resolution.

        Raises:
            DataError: The working resolution is larger than is allowed, or smaller than the network
                can take.
        """
        least = least_size.least_side(self.network)
        found = least_size.fault(self.resize, tuple(pixels.shape[-2:]), least, name)
        if found is not None:
            raise DataError(f"{found}; give another size", "size")
        return network_input(pixels, self.resize, name)

    def at_own_size(self, reading: Reading, size: tuple[int, int]) -> Reading:
        """Resizes depth, confidence and sigma from the network's input to the images' own size.

        Depth is interpolated bilinearly if `smooth` is True, otherwise the nearest value is taken.
        Confidence and sigma are always interpolated.

        Args:
            reading: The maps at the working resolution, i.e. at the size of the network's input, of
                images of one size.
            size: (height, width) of the images in pixels.

        Returns:
            A `Reading` with the maps at `size`, on the CPU.
        """
        depth = at_own_size(reading.depth.cpu(), self.resize, size, self.smooth)
        certainty = reading[1:]
        if reading.confidence is not None:
            certainty = (
                at_own_size(each.cpu(), self.resize, size, smooth=True) for each in certainty
            )
        return Reading(depth, *certainty)

    @property
    def needs_focal(self) -> bool:
        """True if the network needs each image's focal length, because it has a canonical camera.

        Such a network predicts depth for one focal length, and converts it to that of the image.
        """
        return getattr(self.network, "canonical", None) is not None

    @torch.no_grad()
    def predict_resized(
        self,
        pixels: Tensor,
        with_confidence: bool = False,
        focal: Sequence[float] | None = None,
    ) -> Reading:
        """Predicts the depth of images that are already resized for the network.

        Args:
            pixels: (B, 3, h, w) uint8 RGB, as `working_image` returns it.
            with_confidence: True to return confidence and sigma, too. Needs a DPM head.
            focal: B focal lengths in pixels of `pixels` (tiekd/data/focal.py), for a network with a
                canonical camera.

        Returns:
            A `Reading` with depth, confidence and sigma, each (B, 1, h, w), on the device.
            Confidence and sigma are None unless requested.

        Raises:
            RecipeError: If confidence is requested of a network without a DPM head.
        """
        if with_confidence:
            check_readout(self.network, "local", "confidence")
        network = self.network
        image = self._normalised(pixels)
        size = tuple(image.shape[2:])
        if focal is not None:
            focal = torch.tensor(focal, dtype=torch.float32, device=self.device)
        # If only the mean depth is wanted, run the network's forward pass, which returns it. Other
        # readouts, and confidence, need the distribution over the depth bins.
        if self.smooth and not with_confidence:
            given = {} if focal is None else {"focal": focal}
            return Reading(network(image, **given).depth)
        features = network.features(image)
        head = network.head
        if self.smooth:
            depth = head(features, size).depth
        else:
            depth = readouts.in_strips(self._depth, features, head.probabilities)
        depth = network.in_metres(depth, focal)
        on_image = self._on_image(depth, features, size, self.smooth)
        if not with_confidence:
            return Reading(on_image)
        given = (features, depth, size, self.temperature, focal)
        return Reading(on_image, *confidence.of_features(network, *given))

    @torch.no_grad()
    def margins(self, pixels: Tensor) -> Tensor:
        """Returns each pixel's difference in probability between its two likeliest depth bins.

        Where the difference is near 0, rounding decides which bin the readouts "mode" and "local"
        choose. If the head's output has a lower resolution than the image, each image pixel takes
        the value of one output pixel. With learned upsampling, weights choose this output pixel;
        the result is then the smaller of the difference in probability and the difference between
        the two largest weights. Needs a DPM head.

        Args:
            pixels: (B, 3, H, W) uint8 RGB at the images' own size.

        Returns:
            (B, 1, H, W) float32, 0 to 1, on the CPU.
        """
        image = self._normalised(self.working_image(pixels))
        features = self.network.features(image)
        margin = readouts.in_strips(readouts.margin, features, self.network.head.probabilities)
        size = tuple(image.shape[2:])
        margin = self._on_image(margin, features, size, smooth=False)
        # With learned upsampling, weights choose the output pixel from which an image pixel takes
        # its depth. Rounding can decide this choice, too, so take the smaller of both differences.
        upsampling = getattr(self.network.head, "upsampling", None)
        if upsampling is not None:
            of_cells = upsampling.margins(features)[:, :, : size[0], : size[1]]
            margin = torch.minimum(margin, of_cells)
        return at_own_size(margin.cpu(), self.resize, tuple(pixels.shape[2:]), smooth=False)

    @torch.no_grad()
    def tie_weight(self, pixels: Tensor, tie: float) -> Tensor:
        """Returns the weight with which ties contribute to each pixel's confidence and sigma.

        Confidence and sigma are interpolated between pixels of the head's output. An output pixel
        is a tie if its two likeliest bins are about equally likely. Needs a DPM head.

        Args:
            pixels: (B, 3, H, W) uint8 RGB at the images' own size.
            tie: Two bins are about equally likely if their probabilities differ by less than this.

        Returns:
            (B, 1, H, W) float32 on the CPU, the sum of the ties' interpolation weights, 0 to 1.
        """
        image = self._normalised(self.working_image(pixels))
        features = self.network.features(image)
        margin = readouts.in_strips(readouts.margin, features, self.network.head.probabilities)
        tied = (margin < tie).float()
        share = self._on_image(tied, features, tuple(image.shape[2:]), smooth=True)
        return at_own_size(share.cpu(), self.resize, tuple(pixels.shape[2:]), smooth=True)

    def _on_image(
        self, values: Tensor, features: Tensor, size: tuple[int, int], smooth: bool
    ) -> Tensor:
        """Resizes a map of one value per pixel of the head's output to the network's input.

        Args:
            values: (B, 1, h, w), the map, e.g. depths in metres.
            features: (B, C, h, w), the head's input.
            size: (H, W) of the network's input image.
            smooth: True if values may be interpolated or blended.

        Returns:
            (B, 1, H, W).
        """
        values = self.network.upsampled(values, features, size, smooth)
        return readouts.resize_to_image(values, size, smooth)

    def _focals_of_resized(
        self, focal: float | Sequence[float] | None, pixels: Tensor
    ) -> list[float] | None:
        """Converts focal lengths in pixels of the images to pixels of the resized images.

        Images are resized to the size at which the network runs (`Student.resize`).

        Args:
            focal: Focal length in pixels of `pixels`, one for all images or one for each.
            pixels: (B, 3, H, W), the images at their own size.

        Returns:
            B focal lengths in pixels of the resized images; None for a network without canonical
            camera.

        Raises:
            RecipeError: The focal length is missing, not a number above 0, or given although the
                network needs none.
        """
        cameras = self._cameras(focal, len(pixels))
        if cameras is None:
            return None
        size = tuple(pixels.shape[-2:])
        return [focals.of_camera(camera, size, self.resize) for camera in cameras]

    def _cameras(self, focal: float | Sequence[float] | None, count: int) -> list[Camera] | None:
        """Returns one camera per image; None for a network without canonical camera.

        Args:
            focal: Focal length in pixels of the images at their own size, one for all images or one
                for each; None if it isn't given.
            count: Number of images.

        Returns:
            `count` `Camera` objects, which have the focal length alone.

        Raises:
            RecipeError: The focal length is missing, not a number above 0, or given although the
                network needs none.
        """
        if not self.needs_focal:
            if focal is not None:
                raise RecipeError(
                    f"focal: got {focal!r:.80}, but this network was trained without "
                    "network.canonical_focal and doesn't use it; leave it out"
                )
            return None
        if focal is None:
            raise RecipeError(
                "focal: this network was trained with network.canonical_focal and needs the focal "
                "length of each image, in pixels of the image at its own size; give focal=F"
            )
        values = torch.as_tensor(focal).flatten().tolist() if _is_numbers(focal) else []
        values = values * count if len(values) == 1 else values
        if len(values) != count or not all(0 < value < math.inf for value in values):
            raise RecipeError(
                f"focal: got {focal!r:.80}; it must be a number of pixels above 0, or {count} of "
                "them, one an image"
            )
        return [Camera(float(value), float(value)) for value in values]

    def _normalised(self, pixels: Tensor) -> Tensor:
        return look_up(pixels.to(self.device).contiguous(), self._table.expand(len(pixels), -1, -1))

    def _depth(self, probabilities: Tensor) -> Tensor:
        return readouts.read_out(probabilities, bin_centres(self.network.head.edges), self.readout)


def load_student(
    checkpoint: str | PathLike,
    recipe: str | PathLike | None = None,
    device: torch.device | str = "cpu",
    readout: str = "mean",
    size: tuple[int, int] | str | None = None,
) -> Student:
    """Loads a student, a function from an image to metres: `load_student(checkpoint)(image)`.

    Args:
        checkpoint: One of: a weights file written by tiekd (best_*.pth, or a checkpoint's
            student.pth), which contains the description of its network; a work dir, of which the
            best weights are loaded, or the latest if there are no best ones; a published weights
            file, which needs `recipe`.
        recipe: The YAML file that describes the network. It is also required if the network has
            components of modules outside tiekd, because a weights file alone must not decide which
            modules are imported.
        device: The device to run on.
        readout: How depth is read from a DPM head's distribution over depth bins: "mean", "mode" or
            "local" (see `Student`).
        size: The working resolution, i.e. the size to which images are resized for the network.
            None uses the size at which the weights were trained, which tiekd's weights files
            contain; if it isn't known, the recipe's; and else the images' own size. (height, width)
            in pixels scales each image, with its aspect ratio kept, to fit into it. "full" keeps
            each image's own size.

    Returns:
        A `Student`, whose call returns depth in metres.

    Raises:
        CheckpointError: If the file is not a checkpoint, doesn't match its network, needs `recipe`,
            or has an invalid temperature.
        RecipeError: If `recipe`, `readout` or `size` is invalid.
    """
    path = Path(paths.expanded(fspath(checkpoint)))
    if path.is_dir():
        from tiekd.workdir.checkpoints import find_weights

        path = find_weights(path)
    # Take the description of the network from the recipe if one is given, otherwise from the file.
    state = state_dicts.read_checkpoint(path)
    loaded = load_recipe(recipe) if recipe is not None else None
    node = state.get("network") if loaded is None else loaded.get("network")
    if not isinstance(node, dict):
        raise CheckpointError(
            f"{path}: doesn't say its network; give the recipe of it, as in load_student(..., "
            "recipe=)"
        )
    # Refuse components of modules outside tiekd unless a recipe is given, because loading them
    # would import these modules.
    foreign = next(external.names_in(node), None) if recipe is None else None
    if foreign is not None:
        raise CheckpointError(
            f"{path}: its network has a part of a module outside tiekd, {foreign!r:.80}, which "
            "would be run; if you trust it, give the recipe of the network, as in "
            "load_student(..., recipe=)"
        )
    # Build the network and load its tensors.
    if loaded is not None:
        node = canonical.with_stored_factors(node, state, path)
    network = build_network(node)
    try:
        state_dicts.load_into(network, state_dicts.named_tensors(state))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    resize = resize_of(state, loaded) if size is None else _fit_in(size)
    return Student(network, device, readout, resize, confidence.of_content(state, path))


def _is_numbers(value: object) -> bool:
    """Returns True if `value` is a number, tensor or array, or a list or tuple of these.

    True and False are not treated as numbers.

    Args:
        value: Any object.
    """
    values = value if isinstance(value, list | tuple) else [value]
    kinds = (int, float, np.number, np.ndarray, Tensor)
    return all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)


def _fit_in(size: tuple[int, int] | str) -> Resize:
    if isinstance(size, str) and size == "full":
        return OWN_SIZE
    sides = tuple(size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= LARGEST for side in sides):
        raise RecipeError(
            f'size: got {size!r:.80}; it must be (height, width) in pixels up to {LARGEST}, "full" '
            "or None"
        )
    return Resize(height=sides[0], width=sides[1], mode="fit")


def check_readout(network: Network, readout: str, option: str = "readout") -> None:
    """Raises RecipeError if the readout is unknown, or if the network's head doesn't support it.

    Args:
        network: The network.
        readout: The name of the readout, i.e. of a way to read depth from the distribution over
            depth bins: "mean", "mode" or "local".
        option: The name of the option, for the error message.
    """
    if readout not in readouts.READOUTS:
        raise RecipeError(f"readout: got {readout!r}; allowed: {', '.join(readouts.READOUTS)}")
    if readout != "mean" and not hasattr(network.head, "probabilities"):
        got = "asked for" if option == "confidence" else f"got {readout!r}"
        allowed = "leave it out" if option == "confidence" else "allowed: mean"
        raise RecipeError(
            f"{option}: {got}, but this network's head ({type(network.head).__name__}) gives no "
            f"distribution over fixed depth bins, a dpm head does; {allowed}"
        )


def as_pixels(image: str | PathLike | Image.Image | np.ndarray | Tensor) -> Tensor:
    """Converts an image in any form that `Student` accepts to a uint8 RGB tensor on the CPU.

    Args:
        image: The path of an image file, a Pillow image, an array or a tensor, as for
            `Student.__call__`.

    Returns:
        (3, H, W), or (B, 3, H, W) for a batch.

    Raises:
        DataError: The file can't be read as an image, or `image` has another type, dtype or shape.
    """
    if isinstance(image, str | PathLike):
        return read_photo(Path(paths.expanded(fspath(image))))
    if isinstance(image, Image.Image):
        return as_photo(image, "the image")
    # Convert an array or tensor of the right shape and dtype; any other one falls through to the
    # error below.
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            # Copy an array that can't be written to, such as np.asarray of a Pillow image: PyTorch
            # warns of it.
            array = image if image.flags.writeable else image.copy()
            return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    elif (
        isinstance(image, Tensor)
        and image.dtype == torch.uint8
        and image.dim() in (3, 4)
        and image.shape[-3] == 3
        and image.numel()
    ):
        return image.cpu()
    got = (
        f"{image.dtype} of shape {tuple(image.shape)}"
        if hasattr(image, "dtype")
        else type(image).__name__
    )
    raise DataError(
        "an image must be a file, a Pillow image, an array (H, W, 3) uint8 or a tensor (3, H, W) "
        f"or (B, 3, H, W) uint8, got {got}"
    )


def pick_device(name: str | None) -> torch.device:
    """Returns the device with the given name; for None the GPU if there is one, else the CPU.

    Args:
        name: The device's name, such as "cpu", "cuda" or "cuda:1", or None.

    Raises:
        LaunchError: The machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Use the device once: torch.device accepts devices that don't exist, and "meta", which
        # holds no values; using the device reveals both.
        torch.zeros(1, device=device).item()
        return device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LaunchError(
            f"--device {name}: there is no such device ({reason}); allowed: cpu, cuda, cuda:0 ..."
        ) from None
