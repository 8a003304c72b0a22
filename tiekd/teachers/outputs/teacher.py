"""A teacher that is a network from outside the project, such as a foundation model.

A `Predictor` is such a network with its own preprocessing. `FoundationTeacher` has the steps that
are the same for all predictors: it converts a batch's images to RGB values, calls the predictor
with a few images at a time, averages with the mirrored images, refuses NaN, converts the output to
metres, and masks invalid pixels. When maps are cached, the teacher gets whole images at their own
size, since the predictor resizes them itself. Cost: a forward pass of the network, or two with
`flip`, and about 20 ms per image for the fit of a relative output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.frame_table import Frame, FrameTable
from tiekd.data.resize import OWN_SIZE
from tiekd.data.target import Target
from tiekd.errors import TeacherError, UserError
from tiekd.teachers.network import check_precision
from tiekd.teachers.outputs.anchoring import GROUND_TRUTH, Anchor, Quality, anchor_of
from tiekd.teachers.outputs.images import mirrored_intrinsics, rgb_of
from tiekd.teachers.outputs.output_kind import find_output_kind, to_metres
from tiekd.teachers.outputs.sigma import SigmaOptions, disagreement, options_of


class Output(NamedTuple):
    """The output of a predictor for B images, resized to the images' own height and width.

    Attributes:
        values: (B, 1, H, W) float32, depth or another quantity, according to the predictor's
            `output_kind`.
        valid: (B, 1, H, W) bool, False in pixels for which the network states that it has no
            output; None if the network has no such mask.
        beyond: (B, 1, H, W) bool, True in pixels that the network takes for sky, which is farther
            than any depth; None if the network has no such mask.
        focal: (B,) float32, the focal lengths in pixels of the images after the predictor's own
            resize; NaN if unknown. None if the predictor needs no focal length.
        sigma: (B, 1, H, W) float32, the standard deviation of the error of `values`, in the same
            unit; None if unknown.
    """

    values: Tensor
    valid: Tensor | None = None
    beyond: Tensor | None = None
    focal: Tensor | None = None
    sigma: Tensor | None = None


class Predictor(Protocol):
    """A network with its own preprocessing.

    Attributes:
        output_kind: The kind of the output, a key of OUTPUT_KINDS
            (teachers/outputs/output_kind.py).
        max_depth_m: The largest depth in metres that the network's config states; None if unknown.
        description: The name, the origin and the settings of the network, for the log and for the
            manifest of cached maps.
        needs_focal: True if the network can't give depth for an image without a focal length.
        without_focal: For messages: why a focal length is needed, or what the network does without
            one. None if focal lengths make no difference.
    """

    output_kind: str
    max_depth_m: float | None
    description: dict
    needs_focal: bool
    without_focal: str | None

    def __call__(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Runs the preprocessing and the network on images, and returns an `Output`.

        Args:
            images: (B, 3, H, W) uint8, RGB, on the network's device.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels of the images; NaN for an
                unknown camera.
        """


@dataclass(frozen=True)
class RunOptions:
    """The settings with which a `FoundationTeacher` runs its network.

    Attributes:
        device: The network's device.
        max_depth_m: The largest depth that the student predicts, in metres. The sky gets this
            depth.
        flip: True to average the output with that for the mirrored image, at twice the cost.
        batch_size: The number of images in one call of the network.
        sigma: The source of the standard deviation of the error of each pixel's depth; None for
            depth alone.
    """

    device: torch.device
    max_depth_m: float
    flip: bool = False
    batch_size: int = 4
    sigma: SigmaOptions | None = None


def check_run_options(options, run_device: torch.device, max_depth_m: float) -> RunOptions:
    """Checks the options by which a teacher's network runs, such as device and batch size.

    Args:
        options: The `Options` of any module in tiekd/teachers/, with the attributes `device`,
            `flip`, `batch_size` and `sigma`, and optionally `precision`.
        run_device: This rank's device, which is used if `options.device` is None.
        max_depth_m: The largest depth that the student predicts, in metres. It isn't checked; the
            teacher gives this depth to pixels that are farther than any depth, such as the sky.

    Returns:
        The checked options as `RunOptions`; the device is `run_device` if `options.device` is None.

    Raises:
        TeacherError: A value isn't allowed, or this machine doesn't have the device.
    """
    device = torch.device(run_device)
    if options.device is not None:
        try:
            device = torch.device(options.device)
            # Read a value from the device, so that the device "meta", which stores no values, is
            # refused, too.
            torch.zeros(1, device=device).item()
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
    return RunOptions(
        device, max_depth_m, options.flip, options.batch_size, options_of(options.sigma)
    )


class FoundationTeacher:
    """A teacher whose depth comes from a network from outside the project.

    Attributes:
        predictor: The network with its own preprocessing.
        options: The settings with which the network runs.
        anchor: The source of metric depth to which a relative output is fitted; None if the output
            is metric.
        output_kind: The kind of the network's output.
        resize: The size at which the teacher needs images when maps are cached: their own size, as
            the predictor resizes them itself.
        max_depth_m: The largest depth in metres that the network's config states; None if unknown.
        description: The name, the origin and the settings of the network. The keys `name`, `output`
            and `digest` are always there.
        qualities: The fits of the images of the last batch; empty if the output is metric.
    """

    resize = OWN_SIZE

    def __init__(self, predictor: Predictor, options: RunOptions, anchor: Anchor | None = None):
        self.predictor, self.options, self.anchor = predictor, options, anchor
        self.output_kind = find_output_kind(predictor.output_kind, has_anchor=anchor is not None)
        if anchor is not None and self.output_kind.is_metric:
            raise TeacherError(
                f"teacher.anchor: {predictor.description['model']} gives {self.output_kind.name}, "
                "which needs no anchor; leave it out"
            )
        self.max_depth_m = predictor.max_depth_m
        self.description = predictor.description | {"output": predictor.output_kind}
        if anchor is not None:
            self.description["anchor"] = anchor.description
        self.qualities: list[Quality] = []
        self.sigma = options.sigma
        if self.sigma is not None:
            self._check_sigma()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor | Target:
        """Returns the teacher's depth for a batch.

        Args:
            batch: The batch. With an anchor of ground truth its `depth` is used, too.

        Returns:
            Depth, (B, 1, H, W) float32, metres; 0 in pixels without a valid depth, and in pixels
            that rotation or padding added from outside the image. With `sigma` it is a `Target` of
            this depth and its sigma.

        Raises:
            TeacherError: An output isn't finite, or the network needs a focal length and an image
                has none.
        """
        # Convert the images to RGB values from 0 to 255, which networks of other projects take.
        images = rgb_of(batch.image).to(self.options.device)
        anchor = None if self.anchor is None else self.anchor.teacher(batch)
        size, depths, sigmas = self.options.batch_size, [], []
        self.qualities = []
        for begin in range(0, len(images), size):
            part = slice(begin, begin + size)
            names = batch.names[part]
            output = self._valid_output(images[part], batch.intrinsics[part], names)
            beyond = output.beyond
            if anchor is None:
                depth = to_metres(output.values, self.output_kind, output.focal)
            else:
                depth, fits = self.anchor.metres(
                    output.values, anchor[part], self.output_kind, names
                )
                self.qualities += fits
                if beyond is not None:
                    # An image whose fit isn't good has no depth at all, not even in its sky.
                    good = torch.tensor([each.fit.is_good for each in fits], device=beyond.device)
                    beyond = beyond & good.view(-1, 1, 1, 1)
            if beyond is not None:
                depth = torch.where(beyond, self.options.max_depth_m, depth)
            depths.append(depth)
            if self.sigma is not None and self.sigma.source is not None:
                sigmas.append(self._sigma(output))
        depth = torch.cat(depths).to(batch.image.device)
        # Set the pixels that rotation or padding added from outside the image to 0, i.e. invalid.
        depth = torch.where(batch.inside, depth, 0)
        if self.sigma is None:
            return depth
        if self.sigma.source is None:
            return Target(depth, constants=(self.sigma.constant,))
        return Target(depth, self.sigma.finished(torch.cat(sigmas).to(depth.device), depth))

    @torch.no_grad()
    def estimate_focal(self, batch: Batch) -> Tensor | None:
        """Returns the network's own estimates of focal lengths, for the audit of a teacher.

        It costs another forward pass. A predictor that makes estimates has a method
        `estimate_focal`, which takes (B, 3, H, W) uint8 images and returns (B,), in pixels, or
        None. If the predictor has no estimate, the anchor's is returned.

        Args:
            batch: The batch, whose intrinsics aren't used.

        Returns:
            (B,) float32, (fx + fy) / 2 in pixels of `batch.image`; None without an estimate.
        """
        images = rgb_of(batch.image).to(self.options.device)
        estimate = getattr(self.predictor, "estimate_focal", None)
        focal = None if estimate is None else estimate(images)
        if focal is None and self.anchor is not None:
            estimate = getattr(self.anchor.teacher, "estimate_focal", None)
            focal = None if estimate is None else estimate(batch)
        return focal

    @property
    def uses_focal(self) -> bool:
        """True if the depth of an image with a known focal length depends on that focal length."""
        of_anchor = self.anchor is not None and getattr(self.anchor.teacher, "uses_focal", False)
        return self.predictor.without_focal is not None or of_anchor

    @property
    def follows_focal(self) -> bool:
        """True if the teacher's depth stays right for an image that augmentation has zoomed.

        Zooming changes the focal length of an image. A network that takes no focal length predicts
        a nearer scene for a zoomed image. If there is an anchor, the scale of depth comes from the
        anchor. The value is then True if the anchor is ground truth, else that of the anchor's
        teacher.
        """
        if self.anchor is None:
            return self.predictor.without_focal is not None
        teacher = self.anchor.teacher
        return not isinstance(teacher, FoundationTeacher) or teacher.follows_focal

    def check_frames(self, frames: Sequence[Frame]) -> list[str]:
        """Checks that frames have the focal lengths and ground truth that the teacher needs.

        The files of the frames are not read.

        Args:
            frames: All frames of a dataset; empty if the dataset can't list them.

        Returns:
            Messages for the log: how many frames have no focal length or no ground truth, and what
            the teacher does for these frames.

        Raises:
            TeacherError: The teacher needs focal lengths and a frame has none, or it needs ground
                truth and no frame has any.
        """
        frames, said = FrameTable.of(frames), []
        if self.anchor is not None:
            if isinstance(self.anchor.teacher, FoundationTeacher):
                said += self.anchor.teacher.check_frames(frames)
            without = int((~frames.has_depth).sum())
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
        unknown = int((~frames.cameras.are_known).sum())
        if not unknown or self.predictor.without_focal is None:
            return said
        found = f"{unknown} of {len(frames)} frames have no focal length"
        if self.predictor.needs_focal:
            raise TeacherError(f"teacher: {found}, and {self.predictor.without_focal}")
        return [*said, f"Teacher: {found}; {self.predictor.without_focal}"]

    def _check_sigma(self) -> None:
        """Raises TeacherError if the teacher can't give sigma from the chosen source.

        A teacher with a relative output can't, since its sigma isn't in metres.
        """
        has_bins = getattr(self.predictor, "has_distribution", False)
        allowed = ("flip", "own") if has_bins else ("flip",)
        self.sigma.check_source(allowed if self.output_kind.is_metric else (), self.options.flip)
        if self.sigma.modes:
            raise TeacherError(
                "teacher.sigma.modes: only for a network of the project; leave it out for a single "
                "sigma"
            )
        self.sigma.check_teacher(self.description["digest"], self.options.flip)

    def _sigma(self, output: Output) -> Tensor:
        """Returns the sigma of images' depth, not yet multiplied by its calibration factor.

        Args:
            output: The output for these images, as `_output` returns it.

        Returns:
            (B, 1, H, W) float32, metres, 0 where the network takes a pixel for sky.
        """
        sigma = to_metres(output.sigma, self.output_kind, output.focal)
        return sigma if output.beyond is None else torch.where(output.beyond, 0, sigma)

    def _valid_output(self, images: Tensor, intrinsics: Tensor, names: Sequence[str]) -> Output:
        """Runs the network on images, checks its output, and sets invalid pixels to NaN.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels; NaN for an unknown camera.
            names: The names of the images, for error messages.

        Returns:
            An `Output`, whose `values` are NaN in pixels in which its `valid` is False.

        Raises:
            TeacherError: The network needs a focal length and an image has none, or a value is not
                finite although its pixel is valid.
        """
        output = self._output(images, intrinsics)
        if self.predictor.needs_focal:
            _check_focal(output.focal, self.predictor.without_focal, names)
        valid = torch.ones_like(output.values, dtype=torch.bool)
        if output.valid is not None:
            valid &= output.valid
        self._check_finite(output.values, valid, names)
        return output._replace(values=torch.where(valid, output.values, torch.nan))

    def _output(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Returns the predictor's `Output` for images.

        If `options.flip` is True, the predictor is also called with the mirrored images, and
        `values` are averaged over both outputs. Then a pixel is valid only if it is valid in both;
        `beyond` and `focal` are those of the images that aren't mirrored; and `sigma` is the
        difference of both if that is the source in the recipe, else the root mean square of both
        sigmas.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels; NaN for an unknown camera.
        """
        output = self._predicted(images, intrinsics)
        if not self.options.flip:
            return output
        turned = mirrored_intrinsics(intrinsics, images.shape[-1])
        other = self._predicted(images.flip(-1), turned)
        valid = None
        if output.valid is not None:
            valid = output.valid & other.valid.flip(-1)
        sigma = None
        if self.sigma is not None and self.sigma.source == "flip":
            pair = torch.cat((output.values, other.values.flip(-1)), dim=1)
            sigma = disagreement(pair if valid is None else torch.where(valid, pair, 0))
        elif output.sigma is not None:
            squares = output.sigma.square() + other.sigma.flip(-1).square()
            sigma = (squares / 2).sqrt()
        return output._replace(
            values=(output.values + other.values.flip(-1)) / 2,
            valid=valid,
            sigma=sigma,
        )

    def _check_finite(self, values: Tensor, valid: Tensor, names: Sequence[str]) -> None:
        is_half = self.description.get("precision", "fp32") != "fp32"
        remedy = ", or set teacher.precision to fp32" if is_half else ""
        wrong = (~torch.isfinite(values) & valid).flatten(1).sum(1)
        for name, count in zip(names, wrong.tolist(), strict=True):
            if count:
                raise TeacherError(
                    f"teacher: its output for {name} is NaN or infinite at {count} of "
                    f"{values[0].numel()} pixels; check the model and its weights{remedy}"
                )

    def _predicted(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Calls the predictor, and checks the size of the `Output` that it returns.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels; NaN for an unknown camera.

        Returns:
            The predictor's output, with `values` as float32.

        Raises:
            TeacherError: The network fails on the images, as with a config or an image processor
                that doesn't suit it, or its depth has another size.
        """
        try:
            output = self.predictor(images, intrinsics)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # each package raises errors of other classes
            raise TeacherError(
                f"teacher: {self.description['name']} {self.description['model']} fails on images "
                f"of {images.shape[-2]}x{images.shape[-1]}: {type(error).__name__}: "
                f"{' '.join(str(error).split()):.200}; check its config and image processor"
            ) from error
        wanted = (len(images), 1, *images.shape[-2:])
        if tuple(output.values.shape) != wanted:
            raise TeacherError(
                f"teacher: {self.description['name']} gave depth of {tuple(output.values.shape)}; "
                f"it must be {wanted}, the images' own size"
            )
        return output._replace(values=output.values.float())


def teacher_of(
    predictor: Callable[..., Predictor], options, run_device: torch.device, max_depth_m: float
) -> FoundationTeacher:
    """Returns a `FoundationTeacher` that runs one kind of network.

    Args:
        predictor: The class of the kind of network in its module in tiekd/teachers/. It is called
            with (options, device).
        options: The `Options` of the same module, from the recipe's section `teacher`.
        run_device: This rank's device, which is used if `options.device` is None.
        max_depth_m: The largest depth that the student predicts, in metres.

    Raises:
        TeacherError: An option isn't allowed, or the package, the model or the anchor is missing or
            can't be used.
    """
    run_options = check_run_options(options, run_device, max_depth_m)
    anchor = anchor_of(options.anchor, run_options.device, max_depth_m)
    return FoundationTeacher(predictor(options, run_options.device), run_options, anchor)


def _check_focal(focal: Tensor, why: str, names: Sequence[str]) -> None:
    for name, known in zip(names, torch.isfinite(focal).tolist(), strict=True):
        if not known:
            raise TeacherError(f"teacher: {name} has no focal length, and {why}")
