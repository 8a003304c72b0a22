"""An exported network as the teacher: an ONNX file, run by ONNX Runtime, or a torch.export program.

The file doesn't say which preprocessing the network needs. So the recipe states the mean, standard
deviation, range and size of the input, and the kind of the output. Images are resized to the
network's input size by a bilinear filter with antialiasing, and the output is resized back
bilinearly. So the lower the network's resolution is, the more blurred are edges in the output. ONNX
files need `pip install 'tiekd[export]'`. Not covered: networks with other inputs than one image,
with channels in the last dimension, and with quantised (uint8) inputs.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tiekd.data import learned_from
from tiekd.errors import TeacherError
from tiekd.files import check_readable
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.cameras import FOCAL_NEEDED, focal_of
from tiekd.teachers.outputs.output_kind import OUTPUT_KINDS
from tiekd.teachers.outputs.stated import stated_or_given
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, teacher_of

RANGES = (1, 255)
_FACTS = "tiekd.json"  # the entry with the metadata of a .pt2 that this project has exported
_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: exported}`.

    Attributes:
        file: The path of a file X.onnx or X.pt2 with the network. The network takes one tensor of
            images, (B, 3, H, W), RGB, floating point.
        output: The kind of the output, a key of OUTPUT_KINDS (teachers/outputs/output_kind.py).
        mean: Three numbers that are subtracted from the channels R, G and B, on the scale of
            `range`.
        std: Three numbers by which the channels are divided after that.
        range: The value of white, before mean and std are applied: 1 or 255.
        size: [height, width] of the network's input in pixels. None for the size that is fixed in
            the file, or, if the network takes images of any size, for the image's own size.
        output_name: The name of the output that is the depth, if an ONNX file has several.
        anchor: The source of metric depth to which a relative output is fitted: "ground_truth", or
            a mapping that describes a metric teacher. None for a metric output.
        flip: True to average the output with that for the mirrored image.
        batch_size: The number of images in one call. A network that takes only a single image is
            called once per image instead.
        device: The network's device; None for the rank's own device.
        sigma: The standard deviation of the error of each pixel's depth: a number of metres, or a
            mapping that names its source (teachers/outputs/sigma.py). None for depth alone.
    """

    file: Path
    output: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    range: int
    size: tuple[int, int] | None = None
    output_name: str | None = None
    anchor: str | dict | None = None
    flip: bool = False
    batch_size: int = 4
    device: str | None = None
    sigma: float | dict | None = None


class _Network(NamedTuple):
    """A network that was loaded from a file.

    Attributes:
        run: Function from images (B, 3, H, W) to the network's output, both on the network's
            device.
        shape: The shape of the input; None for a dimension that may have any size.
        dtype: The dtype of the input.
        package: The name and version of the package that runs the network.
        facts: The metadata in the file; text by name.
    """

    run: Callable[[Tensor], Tensor]
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    package: str
    facts: Mapping[str, str]


class ExportedPredictor:
    """An exported network with its preprocessing, as a `Predictor` (outputs/teacher.py).

    Attributes:
        network: The loaded network.
        size: (height, width) in pixels to which images are resized; None for their own size.
        path: The network's file.
    """

    max_depth_m = None

    def __init__(self, options: Options, device: torch.device):
        _check_options(options)
        path = options.file.expanduser()
        self.output_kind = stated_or_given(None, options.output, str(path))
        self.needs_focal = OUTPUT_KINDS[self.output_kind].needs_focal
        self.without_focal = FOCAL_NEEDED if self.needs_focal else None
        load = _LOADERS.get(path.suffix.lower())
        if load is None:
            raise TeacherError(
                f"teacher.file: {path}: allowed are {', '.join(_LOADERS)} files, of ONNX and of "
                "torch.export"
            )
        check_readable(path, "exported network", TeacherError, "teacher.file: ")
        if not path.is_file():
            raise TeacherError(f"teacher.file: no file at {path}; give an exported network")
        # Load the network, and take the size of its input from the file if that is fixed.
        self.network = load(path, options, device)
        self.size = _size_of(self.network.shape, options.size, path)
        self.options, self.device, self.path = options, device, path
        data = path.with_name(f"{path.name}.data")  # the file in which ONNX stores large weights
        self.description = {
            "name": "exported",
            "model": path.name,
            "architecture": None,
            "revision": None,
            "licence": None,
            "package": self.network.package,
            "mean": list(options.mean),
            "std": list(options.std),
            "range": options.range,
            "size": None if self.size is None else list(self.size),
            "digest": digest.of_files(path, *([data] if data.is_file() else [])),
        }
        # If the network is a student of this project, its file records the teachers that it learned
        # from. Copy them into the description.
        teachers = learned_from.from_plain(self.network.facts)
        if teachers is not None:
            self.description[learned_from.KEY] = teachers

    def __call__(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Runs the network on images, and resizes its output to the size of the images.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels of the images; NaN for an
                unknown camera.

        Returns:
            An `Output` whose `values` are the network's output at the size of the images.
        """
        # Resize the images, and normalise them as the network was trained.
        own = tuple(images.shape[-2:])
        size = own if self.size is None else self.size
        levels = images.float()
        if size != own:
            levels = interpolate(levels, size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (
            torch.tensor(values, device=levels.device).view(3, 1, 1)
            for values in (self.options.mean, self.options.std)
        )
        levels = levels if self.options.range == 255 else levels / 255
        pixels = ((levels - mean) / std).to(self.network.dtype)
        # `count` is the batch size that the network requires: run it on this many images at a time.
        # It is 1 for a network that takes a single image.
        count = self.network.shape[0] or len(pixels)
        values = torch.cat([self._run(part) for part in pixels.split(count)])
        values = interpolate(values, own, mode="bilinear", align_corners=False)
        # Compute the focal length in pixels of the resized image, which the network gets.
        focal = None
        if self.needs_focal:
            focal = focal_of(intrinsics, (size[0] / own[0], size[1] / own[1]))
        return Output(values, focal=focal)

    def _run(self, pixels: Tensor) -> Tensor:
        """Runs the network, and checks the shape of its output.

        Args:
            pixels: (B, 3, h, w), the images at the network's input size, with mean and std applied.

        Returns:
            The output, (B, 1, H', W') float32, at the network's own output size.

        Raises:
            TeacherError: The network fails on the images, or returns another shape.
        """
        try:
            found = self.network.run(pixels)
        except TeacherError:
            raise
        except Exception as error:  # each runtime raises errors of other classes
            raise TeacherError(
                f"teacher.file: {self.path} fails on images of {tuple(pixels.shape)}: "
                f"{' '.join(str(error).split()):.200}; set teacher.size to one that it takes"
            ) from None
        found = found[:, None] if found.dim() == 3 else found
        if found.dim() != 4 or found.shape[:2] != (len(pixels), 1):
            raise TeacherError(
                f"teacher.file: {self.path} gave {tuple(found.shape)} for images of "
                f"{tuple(pixels.shape)}; it must be depth, (B, H, W) or (B, 1, H, W)"
            )
        return found.float()


def _check_options(options: Options) -> None:
    if options.range not in RANGES:
        raise TeacherError(
            f"teacher.range: got {options.range}; it must be 1 or 255, the largest grey level "
            "before mean and std"
        )
    if min(options.std) <= 0:
        raise TeacherError(f"teacher.std: got {list(options.std)}; each must be above 0")
    if options.size is not None and min(options.size) < 1:
        raise TeacherError(
            f"teacher.size: got {list(options.size)}; it must be height and width in pixels, from 1"
        )


def _size_of(
    shape: tuple[int | None, ...], size: tuple[int, int] | None, path: Path
) -> tuple[int, int] | None:
    """Returns the (height, width) in pixels to which images are resized for the network.

    Args:
        shape: The shape of the network's input; None for a dimension that may have any size.
        size: The recipe's key `size`, [height, width]; None if it isn't given.
        path: The network's file, for error messages.

    Returns:
        The size; None if the network takes images of their own size.

    Raises:
        TeacherError: The network doesn't take images (B, 3, H, W), or the recipe's size contradicts
            the file's.
    """
    if len(shape) != 4 or shape[1] not in (3, None):
        raise TeacherError(
            f"teacher.file: {path} takes {_words(shape)}; it must take images (B, 3, H, W)"
        )
    if shape[0] not in (1, None):
        raise TeacherError(
            f"teacher.file: {path} takes {shape[0]} images at once; export it for 1, or for any "
            "number"
        )
    fixed = shape[2:]
    if size is None:
        if (fixed[0] is None) != (fixed[1] is None):
            raise TeacherError(f"teacher.size: needed, since {path} takes {_words(shape)}")
        return None if fixed[0] is None else fixed
    if any(theirs not in (ours, None) for theirs, ours in zip(fixed, size, strict=True)):
        raise TeacherError(
            f"teacher.size: got {list(size)}, but {path} takes {_words(shape)}; leave it out"
        )
    return tuple(size)


def _words(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"


def _load_onnx(path: Path, options: Options, device: torch.device) -> _Network:
    try:
        import onnxruntime
    except ImportError:
        raise TeacherError(
            f"teacher.file: {path} needs onnxruntime, which isn't installed; pip install "
            "'tiekd[export]'"
        ) from None
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        cuda = "CUDAExecutionProvider"
        if cuda not in onnxruntime.get_available_providers():
            raise TeacherError(
                f"teacher.device: {path} is to run on {device}, but this onnxruntime has no CUDA; "
                "install onnxruntime-gpu, or set teacher.device to cpu"
            )
        providers.insert(0, (cuda, {"device_id": device.index or 0}))
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), quiet, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common class
        raise TeacherError(
            f"teacher.file: {path}: ONNX Runtime can't load it: {' '.join(str(error).split()):.200}"
        ) from None
    inputs, outputs = session.get_inputs(), [each.name for each in session.get_outputs()]
    _check_single(len(inputs), path)
    name = options.output_name
    if name is None and len(outputs) > 1:
        raise TeacherError(
            f"teacher.output_name: needed, since {path} gives several outputs; one of: "
            f"{', '.join(outputs)}"
        )
    if name is not None and name not in outputs:
        raise TeacherError(f"teacher.output_name: got {name!r}; {path} gives: {', '.join(outputs)}")
    if inputs[0].type not in _DTYPES:
        raise TeacherError(
            f"teacher.file: {path} takes {inputs[0].type}; it must take a float or float16 image"
        )

    def run(pixels: Tensor) -> Tensor:
        (found,) = session.run([name or outputs[0]], {inputs[0].name: pixels.cpu().numpy()})
        return torch.from_numpy(found).to(pixels.device)

    return _Network(
        run,
        tuple(side if isinstance(side, int) else None for side in inputs[0].shape),
        _DTYPES[inputs[0].type],
        f"onnxruntime {onnxruntime.__version__}",
        session.get_modelmeta().custom_metadata_map,
    )


def _load_program(path: Path, options: Options, device: torch.device) -> _Network:
    if options.output_name is not None:
        raise TeacherError("teacher.output_name: only outputs of ONNX files have names")
    # Keep torch from logging a traceback before it raises the error.
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        extra = {_FACTS: ""}
        program = torch.export.load(path, extra_files=extra)
        facts = json.loads(extra[_FACTS] or "{}")
    except Exception as error:  # damaged zip, other version, ...: many classes
        raise TeacherError(
            f"teacher.file: {path}: torch.export can't load it, so it is damaged or was not "
            f"written by torch.export.save: {' '.join(str(error).split()):.200}"
        ) from None
    finally:
        logger.setLevel(level)
    names = program.graph_signature.user_inputs
    _check_single(len(names), path)
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == names[0])
    if not value.is_floating_point():
        raise TeacherError(
            f"teacher.file: {path} takes {value.dtype}; it must take a floating point image"
        )
    module = program.module().to(device)

    def run(pixels: Tensor) -> Tensor:
        found = module(pixels)
        if not isinstance(found, Tensor):
            raise TeacherError(
                f"teacher.file: {path} gives a {type(found).__name__}; export a network that "
                "gives depth alone"
            )
        return found

    # A dimension of any size has a symbolic size in torch.export, which isn't an int.
    shape = tuple(side if type(side) is int else None for side in value.shape)
    facts = facts if isinstance(facts, dict) else {}
    return _Network(run, shape, value.dtype, f"torch {torch.__version__}", facts)


def _check_single(count: int, path: Path) -> None:
    if count != 1:
        raise TeacherError(
            f"teacher.file: {path} takes {count} inputs; it must take one, the image"
        )


_LOADERS = {".onnx": _load_onnx, ".pt2": _load_program}


def build(options: Options, run_device: torch.device, max_depth_m: float) -> FoundationTeacher:
    """Returns a `FoundationTeacher` that runs an exported network.

    Args:
        options: The keys of the recipe's section `teacher`.
        run_device: This rank's device.
        max_depth_m: The largest depth that the student predicts, in metres.

    Raises:
        TeacherError: The file is missing, can't be used, or contradicts the recipe.
    """
    return teacher_of(ExportedPredictor, options, run_device, max_depth_m)
