"""A teacher from a user's own Python module."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tiekd.data.batch import Batch
from tiekd.errors import TeacherError


class OutsideTeacher:
    """Calls a teacher from a user's own module, which a recipe names.

        teacher: {name: my_package.my_teacher, **arguments}

    The module has a function `build(**arguments)` that returns the teacher. The teacher is a
    function from a `tiekd.Batch` to depth (B, 1, H, W), floating point, metres, 0 where unknown, of
    the size and on the device of the batch's images. In the batch, `image` is ImageNet-normalised,
    and `names` are the images' paths. The teacher loads its own weights. It is called outside the
    DeepSpeed engine, without gradients, and isn't saved in checkpoints. If it is an nn.Module, it
    is moved to the device, set to eval mode and frozen; the `build` of any other teacher may have a
    parameter `device`. Where rotation or padding added pixels from outside the image, the teacher's
    depth is set to 0.

    Shape, dtype and device of the depth are checked at each call. The values are checked at the
    first call only, because that waits for the device.

    Args:
        name: The teacher's name in the recipe, for error messages.
        teacher: The object that the module's `build` returned.
        device: The device of the batches that the teacher will get.

    Raises:
        TeacherError: `teacher` isn't callable.
    """

    def __init__(self, name: str, teacher: Callable[[Batch], Tensor], device: torch.device):
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
    def __call__(self, batch: Batch) -> Tensor:
        """Returns the teacher's depth for a batch.

        Args:
            batch: The batch, on the teacher's device.

        Returns:
            (B, 1, H, W) float32, metres, 0 where unknown or outside the image.

        Raises:
            TeacherError: The user's teacher didn't return a floating-point tensor of this shape on
                the batch's device; or, at the first call, a depth that it returned for a pixel
                inside an image is negative or not finite.
        """
        depth, wanted = self.teacher(batch), batch.inside
        # Check the result, since a wrong shape or device would otherwise raise an unrelated error
        # later, in a loss.
        right = (
            isinstance(depth, Tensor)
            and depth.is_floating_point()
            and depth.device == wanted.device
        )
        if not right or depth.shape != wanted.shape:
            got = (
                f"{tuple(depth.shape)} {depth.dtype} on {depth.device}"
                if isinstance(depth, Tensor)
                else repr(depth)
            )
            raise TeacherError(
                f"teacher ({self.name}): returned {got:.80}; it must be depth in metres, "
                f"{tuple(wanted.shape)}, floating point, on {wanted.device}"
            )
        depth = torch.where(wanted, depth.float(), 0)
        if not self._has_checked_values:
            self._check_values(depth, batch.names)
            self._has_checked_values = True
        return depth

    def estimate_focal(self, batch: Batch) -> Tensor | None:
        """Returns the focal lengths that the user's teacher estimates, for the audit of a teacher.

        Args:
            batch: The batch, on the teacher's device.

        Returns:
            (B,) pixels of `batch.image`, by the teacher's own method `estimate_focal`; None if it
            has none.
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
