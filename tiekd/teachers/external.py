"""A teacher that is defined in a user's own Python module."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tiekd.data.batch import Batch
from tiekd.data.target import Target
from tiekd.errors import TeacherError


class OutsideTeacher:
    """Calls a teacher from a user's own module, which a recipe names.

        teacher: {name: my_package.my_teacher, **arguments}

    The module has a function `build(**arguments)` that returns the teacher. The teacher is a
    function from a `tiekd.Batch` to depth (B, 1, H, W), floating point, metres, 0 where unknown, of
    the size and on the device of the batch's images. A teacher that gives several depths, or the
    standard deviation of each pixel's error, returns a `tiekd.Target`. In the batch, `image` is
    ImageNet-normalised, and `names` are the images' paths. The teacher loads its own weights. It is
    called outside the DeepSpeed engine, without gradients, and isn't saved in checkpoints. If it is
    an nn.Module, it is moved to the device, set to eval mode and frozen; the `build` of any other
    teacher may have a parameter `device`. Where rotation or padding added pixels from outside the
    image, the teacher's depth is set to 0.

    Shape, dtype and device of the result are checked at each call. The values are checked at the
    first call only, since the check waits for the device.

    Args:
        name: The teacher's name in the recipe, for error messages.
        teacher: The object that the module's `build` returned.
        device: The device of the batches that the teacher will get.

    Raises:
        TeacherError: `teacher` isn't callable.
    """

    def __init__(
        self, name: str, teacher: Callable[[Batch], Tensor | Target], device: torch.device
    ):
        if not callable(teacher):
            raise TeacherError(
                f"teacher ({name}): build made {teacher!r:.80}; it must be a callable: batch -> "
                "metres"
            )
        self.name, self.network = name, teacher if isinstance(teacher, nn.Module) else None
        self._has_checked_values = False
        self.teacher = (
            teacher if self.network is None else teacher.to(device).eval().requires_grad_(False)
        )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor | Target:
        """Returns the teacher's depth for a batch.

        Args:
            batch: The batch, on the teacher's device.

        Returns:
            (B, 1, H, W) float32, metres, 0 where unknown or outside the image; or a `Target` with
            such depths.

        Raises:
            TeacherError: The user's teacher didn't return floating-point tensors of the right
                shapes on the batch's device; or, at the first call, a depth that it returned for a
                pixel inside an image, or a sigma or weight, is negative or not finite.
        """
        returned, inside = self.teacher(batch), batch.inside
        target = returned if isinstance(returned, Target) else Target(returned)
        # Check the result here: a wrong shape or device would otherwise raise a misleading error
        # later, in a loss.
        shape = inside.shape
        if target is returned and isinstance(target.depth, Tensor) and target.depth.ndim == 4:
            shape = (len(inside), max(1, target.depth.shape[1]), *inside.shape[2:])
        self._check_tensor("depth in metres", target.depth, shape, inside.device)
        if target.constants is not None:
            raise TeacherError(
                f"teacher ({self.name}): returned Target.constants; give Target.sigma, "
                f"{tuple(shape)} in metres"
            )
        if target.sigma is not None:
            self._check_tensor("Target.sigma in metres", target.sigma, shape, inside.device)
        if target.weight is not None:
            one_each = isinstance(target.weight, Tensor) and target.weight.ndim == 1
            weights = shape[1:2] if one_each else shape
            self._check_tensor("Target.weight", target.weight, weights, inside.device)
        target = Target(
            torch.where(inside, target.depth.float(), 0),
            *(None if values is None else values.float() for values in target[1:3]),
        )
        if not self._has_checked_values:
            self._check_values(target.depth, batch.names)
            for name, values in (("sigma", target.sigma), ("weight", target.weight)):
                self._check_factors(name, values, inside)
            self._has_checked_values = True
        return target.depth if isinstance(returned, Tensor) else target

    def _check_tensor(self, meaning: str, found: object, shape: tuple, device: torch.device):
        """Raises TeacherError unless a value is a floating-point tensor of this shape and device.

        Args:
            meaning: The value's meaning, for the message.
            found: The value.
            shape: The shape that it must have.
            device: The device on which it must be.
        """
        is_tensor = isinstance(found, Tensor)
        right = is_tensor and found.is_floating_point() and found.device == device
        if right and found.shape == shape:
            return
        got = f"{tuple(found.shape)} {found.dtype} on {found.device}" if is_tensor else repr(found)
        raise TeacherError(
            f"teacher ({self.name}): returned {got:.80}; it must be {meaning}, "
            f"{tuple(shape)}, floating point, on {device}"
        )

    def _check_factors(self, name: str, values: Tensor | None, inside: Tensor) -> None:
        """Raises TeacherError if a sigma or weight in an image is negative or not finite.

        Args:
            name: The name of the attribute of `Target`, "sigma" or "weight".
            values: The attribute's value, (B, M, H, W) or (M,); None if the target has none.
            inside: (B, 1, H, W) bool, False in pixels that rotation or padding added from outside
                the image.
        """
        if values is None:
            return
        wrong = ~(values.isfinite() & (values >= 0))
        if values.ndim == 4:
            wrong &= inside
        if wrong.any():
            raise TeacherError(
                f"teacher ({self.name}): Target.{name} is {values[wrong][0].item():.4g} for "
                f"{int(wrong.sum())} of {wrong.numel()} values; it must be finite, 0 or more"
            )

    def estimate_focal(self, batch: Batch) -> Tensor | None:
        """Returns the focal lengths that the user's teacher estimates, for the audit of a teacher.

        Args:
            batch: The batch, on the teacher's device.

        Returns:
            (B,), in pixels of `batch.image`: what the teacher's own method `estimate_focal`
            returns; None if the teacher has no such method.
        """
        estimate = getattr(self.teacher, "estimate_focal", None)
        return None if estimate is None else estimate(batch)

    def _check_values(self, depth: Tensor, names: list[str]) -> None:
        """Checks that all depths that a teacher returned are finite and not negative.

        Args:
            depth: (B, 1, H, W), metres.
            names: The images' paths, for the error message.

        Raises:
            TeacherError: A depth is negative or not finite.
        """
        wrong = ~(depth.isfinite() & (depth >= 0))
        if not wrong.any():
            return
        image = int(wrong.flatten(1).any(1).nonzero()[0])
        raise TeacherError(
            f"teacher ({self.name}): returned {depth[wrong][0].item():.4g} for {int(wrong.sum())} "
            f"of {wrong.numel()} pixels, the first of them in {names[image]}; it must be depth in "
            "metres, 0 where it knows none"
        )


build = OutsideTeacher
