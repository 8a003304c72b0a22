"""A teacher over a network that isn't ours: from a batch to metres on the batch's grid.

A `Predictor` wraps the network with its own preprocessing. `FoundationTeacher` does the same for
all of them: grey levels from the batch, a few images at a time, averaging with the mirrored image,
refusing NaN, metres, and the mask. It owns its preprocessing, so it is given whole images at their
own size when maps are cached. Costs: the network's forward, twice with `flip`, and some 20 ms an
image for the fit of a relative output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.frames import Frame
from tiekd.data.resize import OWN_SIZE
from tiekd.errors import TeacherError
from tiekd.teachers.network import PRECISIONS
from tiekd.teachers.outputs.anchoring import GROUND_TRUTH, Anchor, Quality
from tiekd.teachers.outputs.images import mirrored_intrinsics, rgb_of
from tiekd.teachers.outputs.meaning import find_meaning, to_metres


class Output(NamedTuple):
    """What a network gives for some images, on the images' own grid.

    Attributes:
        values: (B, 1, H, W) float32, in the predictor's meaning.
        valid: (B, 1, H, W) bool, False where the network says that it knows nothing; None where it
            says that nowhere.
        beyond: (B, 1, H, W) bool, True where the network sees the sky: farther than any depth. None
            without such a mask.
        focal: (B,) float32, pixels of the image that the network saw; NaN where unknown. None where
            the predictor needs none.
    """

    values: Tensor
    valid: Tensor | None = None
    beyond: Tensor | None = None
    focal: Tensor | None = None


class Predictor(Protocol):
    """A network with its own preprocessing.

    Attributes:
        meaning: What its output means, a key of OUTPUTS.
        max_depth_m: The largest depth that its config states; None where unknown.
        description: Where it comes from, for the manifest of maps and the log.
        needs_focal: True where an image without a focal length gets no depth.
        without_focal: Why it gets none, or what happens in its place; None where focal lengths
            change nothing.
    """

    meaning: str
    max_depth_m: float | None
    description: dict
    needs_focal: bool
    without_focal: str | None

    def __call__(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Returns the output for images.

        Args:
            images: (B, 3, H, W) uint8, RGB, on the teacher's device.
            intrinsics: (B, 3, 3) float32, pixels of these images, NaN where unknown.
        """


@dataclass(frozen=True)
class Running:
    """How a teacher's network runs.

    Attributes:
        device: Of the network.
        max_depth_m: The student's range in metres, the depth of what is beyond all depth.
        flip: Averages with the mirrored image's output, at twice the cost.
        batch_size: Images that go through the network at once.
    """

    device: torch.device
    max_depth_m: float
    flip: bool = False
    batch_size: int = 4


def running(options, run_device: torch.device, max_depth_m: float) -> Running:
    """Checks how a kind's options have its network run.

    Args:
        options: Has `device`, `flip` and `batch_size`, and maybe `precision`.
        run_device: This rank's device, where `device` is None.
        max_depth_m: The student's range.

    Raises:
        TeacherError: A value isn't allowed, or not on this machine.
    """
    device = torch.device(run_device)
    if options.device is not None:
        try:
            device = torch.device(options.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise TeacherError(
                f"teacher.device: got {options.device!r}; it must be a device of this machine, as "
                "cpu or cuda:0 (left out: the rank's own)"
            ) from None
    if options.batch_size < 1:
        raise TeacherError(
            f"teacher.batch_size: got {options.batch_size}; it must be a number of images from 1"
        )
    check_precision(getattr(options, "precision", "fp32"), device)
    return Running(device, max_depth_m, options.flip, options.batch_size)


def check_precision(precision: str, device: torch.device) -> None:
    """Raises TeacherError for a precision that there isn't, or that the device is slow in."""
    if precision not in PRECISIONS:
        raise TeacherError(
            f"teacher.precision: got {precision!r}; allowed: {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and device.type == "cpu":
        raise TeacherError(
            "teacher.precision: fp16 is not for CPUs, which compute it slowly; set bf16 or fp32"
        )


class FoundationTeacher:
    """Gives a batch the metric depth of somebody else's network.

    Attributes:
        resize: The images' own size: the network's own preprocessing resizes them.
        max_depth_m: The largest depth that its config states; None where unknown.
        description: Where it comes from; `name`, `output` and `digest` are always there.
        qualities: The fits of the last batch's images; empty for a metric output.
    """

    resize = OWN_SIZE

    def __init__(self, predictor: Predictor, options: Running, anchor: Anchor | None = None):
        self.predictor, self.options, self.anchor = predictor, options, anchor
        self.meaning = find_meaning(predictor.meaning, has_anchor=anchor is not None)
        if anchor is not None and self.meaning.is_metric:
            raise TeacherError(
                f"teacher.anchor: {predictor.description['model']} gives {self.meaning.name}, "
                "which needs no anchor; leave it out"
            )
        self.max_depth_m = predictor.max_depth_m
        self.description = predictor.description | {"output": predictor.meaning}
        if anchor is not None:
            self.description["anchor"] = anchor.description
        self.qualities: list[Quality] = []

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Returns (B, 1, H, W) float32, metres, 0 where not valid or outside the image.

        Raises:
            TeacherError: An output isn't finite, or a focal length that it needs is unknown.
        """
        images = rgb_of(batch.image).to(self.options.device)
        anchor = None if self.anchor is None else self.anchor.teacher(batch)
        size, depths = self.options.batch_size, []
        self.qualities = []
        for begin in range(0, len(images), size):
            part = slice(begin, begin + size)
            names = batch.names[part]
            output = self._valid_output(images[part], batch.intrinsics[part], names)
            if anchor is None:
                depth = to_metres(output.values, self.meaning, output.focal)
            else:
                depth, fits = self.anchor.metres(output.values, anchor[part], self.meaning, names)
                self.qualities += fits
            if output.beyond is not None:
                depth = torch.where(output.beyond, self.options.max_depth_m, depth)
            depths.append(depth)
        depth = torch.cat(depths).to(batch.image.device)
        # Pixels that a rotation filled from outside the image are excluded from the loss.
        return torch.where(batch.inside, depth, 0)

    @property
    def follows_focal(self) -> bool:
        """True if the depth of a zoomed image is that of the scene, given its focal length.

        A network that takes no focal length sees a zoomed image as a nearer scene. Relative outputs
        get their scale from the anchor.
        """
        if self.anchor is None:
            return self.predictor.without_focal is not None
        teacher = self.anchor.teacher
        return not isinstance(teacher, FoundationTeacher) or teacher.follows_focal

    def check_frames(self, frames: Sequence[Frame]) -> list[str]:
        """Checks what is known of all frames before the first of them is read.

        Args:
            frames: All of them; empty where they can't be asked.

        Returns:
            Lines for the log: how many focal lengths are unknown, and what happens then.

        Raises:
            TeacherError: Depth in metres needs a focal length or ground truth that isn't there.
        """
        said = []
        if self.anchor is not None:
            if isinstance(self.anchor.teacher, FoundationTeacher):
                said += self.anchor.teacher.check_frames(frames)
            without = sum(frame.depth is None for frame in frames)
            if self.anchor.description == GROUND_TRUTH and without:
                if without == len(frames):
                    raise TeacherError(
                        "teacher.anchor: ground_truth, but no frame has any; give a metric teacher "
                        "as {name: huggingface, model: ...}"
                    )
                said.append(
                    f"Teacher: {without} of {len(frames)} frames have no ground truth to anchor "
                    "its output; their maps are empty"
                )
        unknown = sum(frame.camera is None for frame in frames)
        if not unknown or self.predictor.without_focal is None:
            return said
        found = f"{unknown} of {len(frames)} frames have no focal length"
        if self.predictor.needs_focal:
            raise TeacherError(f"teacher: {found}, and {self.predictor.without_focal}")
        return [*said, f"Teacher: {found}; {self.predictor.without_focal}"]

    def _valid_output(self, images: Tensor, intrinsics: Tensor, names: Sequence[str]) -> Output:
        """Returns the output with NaN where the network says that it knows nothing."""
        output = self._output(images, intrinsics)
        if self.predictor.needs_focal:
            _check_focal(output.focal, self.predictor.without_focal, names)
        valid = torch.ones_like(output.values, dtype=torch.bool)
        if output.valid is not None:
            valid &= output.valid
        _check_finite(output.values, valid, names)
        return output._replace(values=torch.where(valid, output.values, torch.nan))

    def _output(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Returns the predictor's output, averaged with that of the mirrored images if asked."""
        output = self._checked(self.predictor(images, intrinsics), images)
        if not self.options.flip:
            return output
        turned = mirrored_intrinsics(intrinsics, images.shape[-1])
        other = self._checked(self.predictor(images.flip(-1), turned), images)
        valid = None
        if output.valid is not None:
            valid = output.valid & other.valid.flip(-1)
        return output._replace(
            values=(output.values + other.values.flip(-1)) / 2,
            valid=valid,
        )

    def _checked(self, output: Output, images: Tensor) -> Output:
        wanted = (len(images), 1, *images.shape[-2:])
        if tuple(output.values.shape) != wanted:
            raise TeacherError(
                f"teacher: {self.description['name']} gave depth of {tuple(output.values.shape)}; "
                f"it must be {wanted}, the images' own size"
            )
        return output._replace(values=output.values.float())


def describe(description: dict) -> str:
    """Returns a teacher in words, for the log."""
    parts = [f"{description['name']} {description['model']}"]
    if description.get("architecture"):
        parts[0] += f" ({description['architecture']})"
    if description.get("revision"):
        parts.append(f"revision {description['revision']:.12}")
    parts.append(f"output {description['output']}")
    parts.append(f"licence {description.get('licence') or 'not stated'}")
    parts.append(f"digest {description['digest']:.12}")
    return ", ".join(parts)


def _check_finite(values: Tensor, valid: Tensor, names: Sequence[str]) -> None:
    wrong = (~torch.isfinite(values) & valid).flatten(1).sum(1)
    for name, count in zip(names, wrong.tolist(), strict=True):
        if count:
            raise TeacherError(
                f"teacher: its output for {name} is NaN or infinite at {count} of "
                f"{values[0].numel()} pixels; check the model, or set teacher.precision to fp32"
            )


def _check_focal(focal: Tensor, why: str, names: Sequence[str]) -> None:
    for name, known in zip(names, torch.isfinite(focal).tolist(), strict=True):
        if not known:
            raise TeacherError(f"teacher: {name} has no focal length, and {why}")
