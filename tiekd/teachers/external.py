"""A user-defined teacher, from a module outside the project."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tiekd.data.batch import Batch
from tiekd.errors import TeacherError


class OutsideTeacher:
    """Calls the teacher that `build(**arguments)` of the user's module returned.

        teacher: {name: my_package.my_teacher, **arguments}

    The teacher is a function from a `tiekd.Batch` to depth (B, 1, H, W), floating point, metres, 0
    where unknown, of the size and on the device of the batch's images. In the batch, `image` is
    ImageNet-normalised, and `names` are the images' paths. The teacher loads its own weights. It is
    called outside the engine, without gradients, and isn't saved in checkpoints. Pixels that a
    rotation filled from outside the image are excluded from the loss. An nn.Module is moved to the
    device, set to eval mode and frozen; the `build` of any other teacher may have a parameter
    `device`. An object that isn't callable, or another result, raises TeacherError.
    Shape, dtype and device are checked at each call; the values at the first one alone, since that
    waits for the device.
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
        """Returns the teacher's depth, (B, 1, H, W) float32, metres, 0 where unknown or masked.

        Raises:
            TeacherError: The teacher's result isn't depth of the batch's shape, or is on another
                device. At the first call, also if it has negative or non-finite depth inside the
                image.
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

    def _check_values(self, depth: Tensor, names: list[str]) -> None:
        """Raises TeacherError if depth, (B, 1, H, W), isn't finite or negative anywhere."""
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
