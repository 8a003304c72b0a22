"""Exports a student to a file that runs without this project, and verifies the file.

    onnx           one self-contained .onnx of standard operators (onnx_format.py)
    torch_export   a .pt2 of torch.export, for torch alone (program_format.py)
    weights        a .pth with the float32 state dict and the recipe's section `network`

The file maps pixels to metres. It includes resizing images to the size at which the network runs
(the working resolution), so its input is an image at its own size, and its output has that size,
too. The file is written under a temporary name, loaded again, run on images and compared with
`load_student` (tiekd/inference/export/verification.py). If the two disagree, the file is removed.
In a DenseDepth decoder, two consecutive convolutions that are cheaper as one are merged. For half
precision, norms are folded into the convolutions before them (tiekd/inference/export/norms.py) and
the network runs in float16; input and output keep their dtypes.

Cost: seconds to minutes of tracing, and two runs per image on the CPU. With a DPM head of K bins at
full resolution, a run needs memory for about five (H, W, K) float32 tensors. Not covered: integer
quantisation; dynamic sizes, if the working resolution depends on the image's size, or if the images
aren't resized and the network's arithmetic depends on their size (BTS, AdaBins, Swin); ONNX files
above protobuf's limit of 2 GB.
"""

import copy
import errno
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tiekd import files
from tiekd.data import focal as focals
from tiekd.data import learned_from
from tiekd.data.resize import LARGEST, OWN_SIZE, SLACK, Resize, of_node
from tiekd.errors import DataError, ExportError
from tiekd.files import sync
from tiekd.inference.export import onnx_format, program_format, verification
from tiekd.inference.export.deployed import Deployed
from tiekd.inference.export.norms import fold_norms
from tiekd.inference.student import Student
from tiekd.models import confidence
from tiekd.models.build import build_network
from tiekd.models.confidence import Calibration
from tiekd.models.decoders.densedepth import DenseDepth
from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.models.weights import state_dicts

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "weights": ".pth"}
INPUTS = {"uint8": torch.uint8, "float": torch.float32}


@dataclass(frozen=True)
class Settings:
    """The settings of an export.

    Attributes:
        size: (height, width) in pixels of the file's input images, before they are resized. With
            `dynamic`, the size of the images that the file is first verified on.
        format: A key of SUFFIXES.
        input: dtype of the input image: "uint8", or "float" for float32. Both range from 0 to 255.
        dynamic: True for a file that accepts images of any size.
        half: True to run the network in float16.
        confidence: True to add confidence and sigma as further outputs. Needs a DPM head.
        readout: How depth is read from a DPM head's distribution over depth bins: "mean", "mode" or
            "local" (`tiekd.models.readout`).
        resize: How the file resizes images for the network.
        focal: Focal length of all images in pixels of their own size, a constant of the file; for a
            network with a canonical camera.
        focal_input: True to make the focal length a second input instead, (batch,) float32.
        calibration: The temperature by which the logits are divided before confidence and sigma are
            computed, from the weights file; None for a temperature of 1.
    """

    size: tuple[int, int]
    format: str = "onnx"
    input: str = "uint8"
    dynamic: bool = False
    half: bool = False
    confidence: bool = False
    readout: str = "mean"
    resize: Resize = OWN_SIZE
    focal: float | None = None
    focal_input: bool = False
    calibration: Calibration | None = None

    @property
    def dynamic_resize(self) -> Resize:
        """The `Resize` with which a file for images of any size resizes them for the network.

        It is `resize`, unless that only shrinks images above some size (`at_most`), as it may do if
        the recipe sets no size. Such a file then resizes no image, while `load_student` shrinks
        large ones.
        """
        return OWN_SIZE if self.resize.at_most is not None else self.resize

    @property
    def inputs(self) -> list[str]:
        """The names of the exported file's inputs: "image", and "focal" if `focal_input` is set."""
        return ["image", "focal"] if self.focal_input else ["image"]

    @property
    def outputs(self) -> list[str]:
        """The names of the exported file's outputs, in order.

        They are "depth", and with `confidence` also "confidence" and "sigma".
        """
        return ["depth", "confidence", "sigma"] if self.confidence else ["depth"]


class Exported(NamedTuple):
    """The result of an export.

    Attributes:
        comparisons: One `Comparison` of file and student per batch of images.
        file_ms: Latency of the file for one image on the CPU in ms; None for the format "weights".
        torch_ms: Latency of the student for the same image on the CPU in ms; None for the format
            "weights".
    """

    comparisons: list[verification.Comparison]
    file_ms: float | None
    torch_ms: float | None


def format_of(path: Path) -> str:
    """Returns the export format that belongs to a path's suffix: a key of SUFFIXES.

    For an unknown suffix the result is "onnx", and `check` later rejects the path.

    Args:
        path: The path of the file to write.
    """
    return next((name for name, suffix in SUFFIXES.items() if path.suffix == suffix), "onnx")


def least_side(network: Network, settings: Settings) -> int:
    """Returns the minimum height and width of the images that an exported file takes.

    A file for images of one fixed size has further limits, which `check` enforces.

    Args:
        network: The network to export.
        settings: The settings of the export.

    Returns:
        The minimum length of a side, in pixels.
    """
    if settings.dynamic:
        return program_format.least_side(network, settings.dynamic_resize)
    return max(network.encoder.strides) if settings.dynamic_resize == OWN_SIZE else 1


def check(network: Network, settings: Settings, path: Path) -> None:
    """Checks the settings before the slow steps, and creates the file's folder.

    Args:
        network: The network to export.
        settings: The settings of the export.
        path: The file to write.

    Raises:
        ExportError: The network can't be exported with these settings, or a package is missing.
        LaunchError: The folder can't be created.
    """
    # Check that the options suit the format.
    if path.suffix != SUFFIXES[settings.format]:
        raise ExportError(
            f"--out {path}: a file of format {settings.format} ends with "
            f"{SUFFIXES[settings.format]}; name it so, or choose another --format "
            f"({', '.join(SUFFIXES)})"
        )
    is_plain = settings == Settings(
        settings.size, "weights", resize=settings.resize, calibration=settings.calibration
    )
    if settings.format == "weights" and not is_plain:
        raise ExportError(
            "--format weights: holds no arithmetic; leave out --input, --dynamic, --half, "
            "--confidence, --readout, --focal, --focal-input"
        )
    _check_focal(network, settings)
    # Check that the network supports the size and the outputs.
    _check_size(network, settings)
    if (settings.confidence or settings.readout != "mean") and not isinstance(network.head, Dpm):
        option = "--confidence" if settings.confidence else f"--readout {settings.readout}"
        raise ExportError(
            f"{option}: needs a distribution over fixed bins; this network's head isn't a DPM head"
        )
    # Check that the packages are installed and the folder is writable.
    if settings.format == "onnx":
        onnx_format.check_packages()
    files.check_output("--out", path, SUFFIXES[settings.format])


def _check_focal(network: Network, settings: Settings) -> None:
    given = settings.focal is not None, settings.focal_input
    if network.canonical is None:
        if any(given):
            raise ExportError(
                "--focal, --focal-input: this network was trained without network.canonical_focal "
                "and doesn't use it; leave it out"
            )
        return
    if settings.format == "weights":
        return
    if given == (False, False) or all(given):
        raise ExportError(
            "--focal: this network was trained with network.canonical_focal; give --focal F, the "
            "focal length of all images in pixels of their own size, or --focal-input for an input"
        )
    if settings.focal is not None and not 0 < settings.focal < math.inf:
        raise ExportError(
            f"--focal {settings.focal:g}: it must be a focal length in pixels above 0"
        )
    if settings.dynamic and settings.dynamic_resize.mode == "stretch":
        raise ExportError(
            "--dynamic: a file can't refuse images whose aspect ratio data.resize changes too much "
            "for network.canonical_focal; leave it out and export one file a size (--size HxW)"
        )
    try:
        focals.check_aspect(settings.resize, settings.size)
    except DataError as error:
        raise ExportError(f"--size: {error}") from None


def _check_size(network: Network, settings: Settings) -> None:
    height, width = settings.size
    if max(settings.size) > LARGEST:
        raise ExportError(
            f"--size {height}x{width}: larger than {LARGEST} pixels a side; give a smaller one"
        )
    # Refuse a file for images of any size (`dynamic`) if the size to which they are resized for the
    # network depends on the image's size.
    canvas = settings.resize.placement_of(height, width).canvas
    if (
        settings.dynamic
        and settings.dynamic_resize != OWN_SIZE
        and settings.resize.mode != "stretch"
    ):
        raise ExportError(
            f"--dynamic: the size at which the network sees an image ({settings.resize}) depends "
            "on the image's; leave out --dynamic and export one file a size (--size HxW), or "
            "train with data.resize.mode=stretch"
        )
    if settings.dynamic and settings.resize.at_most is not None and canvas != settings.size:
        raise ExportError(
            f"--size {height}x{width}: with --dynamic nothing is shrunk, but the network would see "
            f"{canvas[0]}x{canvas[1]} of it; leave out --dynamic, or give --set data.resize=null "
            "for images at their own size"
        )
    # Refuse images or network inputs that are smaller than the encoder's largest stride.
    least = least_side(network, settings)
    if min(settings.size) < least:
        raise ExportError(
            f"--size {height}x{width}: too small for this network; give at least {least}x{least}"
        )
    if min(canvas) < max(network.encoder.strides):
        raise ExportError(
            f"--size {height}x{width}: the network would see {canvas[0]}x{canvas[1]} of it "
            f"({settings.resize}); it needs at least {max(network.encoder.strides)} pixels a side, "
            "give a larger data.resize"
        )


def write(
    path: Path,
    network: Network,
    node: dict,
    settings: Settings,
    images: Sequence[Tensor],
    facts: dict[str, str],
    stream: TextIO,
) -> Exported:
    """Exports a network to a file, if the file agrees with the network on every image.

    Args:
        path: The file to write. An existing file is replaced only if the export succeeds.
        network: The network in eval mode, float32, on the CPU. It isn't changed.
        node: The recipe's section `network`, a dict that describes the network.
        settings: The settings of the export.
        images: Batches of images on which the file is verified, each (B, 3, H, W) uint8. With
            `dynamic` the batches may differ in size.
        facts: Metadata to write into the file.
        stream: Text stream that receives lines about the progress.

    Returns:
        An `Exported`, with the comparisons of file and network, and both latencies.

    Raises:
        ExportError: The network can't be exported, or file and network disagree. Nothing is written
            at `path` then.
        LaunchError: The folder can't be created.
    """
    check(network, settings, path)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        # Write the file under a temporary name and load it again.
        stream.write(f"Writing {settings.format}\n")
        facts = {**facts, **_description(network, settings)}
        read_back = _FORMATS[settings.format](partial, network, node, settings, facts)
        student = Student(network, "cpu", settings.readout, settings.resize, settings.calibration)
        reference = verification.Reference(
            student, settings.confidence, _trial_focals(network, settings)
        )
        limits = verification.limits_of(settings.half, settings.readout, network.max_depth)

        def run(image: Tensor) -> tuple[Tensor, ...]:
            given = (image.to(INPUTS[settings.input]),)
            if settings.focal_input:
                given += (torch.tensor(reference.focals_of(len(image))),)
            return read_back(*given)

        # Compare the file with the student, and time both.
        comparisons = []
        for batch in images:
            comparisons.append(verification.compare(run, reference, batch, limits))
            stream.write(f"{comparisons[-1]}\n")
        file_ms = torch_ms = None
        if settings.format != "weights":
            one = images[0][:1]
            file_ms, torch_ms = (verification.latency_ms(each, one) for each in (run, reference))
        verification.refuse_disagreement(comparisons, path)
        # Move the file to its final name, since all differences are within the limits.
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ExportError(
            f"--out {path}: can't be written ({files.cause_of(error)}); {_remedy(error)}"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return Exported(comparisons, file_ms, torch_ms)


def _remedy(error: OSError) -> str:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "make room, or give another --out" if is_full else "correct that, or give another --out"


def _trial_focals(network: Network, settings: Settings) -> tuple[float, ...]:
    """Returns a tuple of the focal lengths, in pixels, with which an exported file is verified.

    If the file has a constant focal length, the result has only this one. Otherwise it has two
    focal lengths that differ by 10 %.

    Args:
        network: The network. If it has no canonical camera, it needs no focal lengths and the
            result is empty.
        settings: The settings of the export.
    """
    camera = network.canonical
    if camera is None:
        return ()
    if settings.focal is not None:
        return (settings.focal,)
    return camera.focal / camera.largest, 0.9 * camera.focal / camera.largest


def _program(network: Network, settings: Settings) -> ExportedProgram:
    # Export a copy, because merging convolutions (`fold`) changes the network in place.
    network = copy.deepcopy(network)
    if isinstance(network.decoder, DenseDepth):
        network.decoder.fold()
    deployed = Deployed(
        network,
        settings.readout,
        _temperature(settings) if settings.confidence else None,
        settings.dynamic_resize if settings.dynamic else settings.resize,
        None if settings.dynamic else settings.size,
        settings.focal,
    )
    shape = settings.size, INPUTS[settings.input], settings.dynamic, settings.focal_input
    if settings.half:
        # Trace once only to see which norms follow a convolution, and fold these norms.
        fold_norms(deployed, program_format.trace(deployed, *shape))
        network.half()
    return program_format.trace(deployed, *shape)


def _temperature(settings: Settings) -> float:
    return 1.0 if settings.calibration is None else settings.calibration.temperature


def _write_onnx(
    path: Path, network: Network, _node: dict, settings: Settings, facts: dict[str, str]
) -> Callable:
    program = _program(network, settings)
    names = settings.inputs, settings.outputs
    onnx_format.write(path, program, names, settings.dynamic, facts)
    return onnx_format.load(path)


def _write_torch_export(
    path: Path, network: Network, _node: dict, settings: Settings, facts: dict[str, str]
) -> Callable:
    program_format.write(path, _program(network, settings), facts)
    return program_format.load(path)


def _write_weights(
    path: Path, network: Network, node: dict, settings: Settings, facts: dict[str, str]
) -> Callable:
    content = {
        "state_dict": network.state_dict(),
        "network": node,
        "resize": settings.resize.node(),
    }
    teachers = learned_from.from_plain(facts)
    if teachers is not None:
        content[learned_from.KEY] = teachers
    if settings.calibration is not None:
        content[confidence.KEY] = settings.calibration._asdict()
    # Serialise in memory first: if the disk is full, torch's own writer raises a RuntimeError
    # instead of an OSError.
    file = io.BytesIO()
    torch.save({**content, "iteration": 0, "facts": facts}, file)
    path.write_bytes(file.getbuffer())
    state = state_dicts.read_checkpoint(path)
    # Rebuild the network from the file's content alone, as a user of the file would.
    again = build_network(state["network"])
    state_dicts.load_into(again, state_dicts.named_tensors(state))
    return verification.Reference(
        Student(again, "cpu", resize=of_node(state["resize"])),
        confidence=False,
        focals=_trial_focals(network, settings),
    )


def _description(network: Network, settings: Settings) -> dict[str, str]:
    """Returns texts that describe an exported file, which are written into it as metadata.

    Args:
        network: The exported network.
        settings: The settings of the export.

    Returns:
        A dict from name to text. The names are "input", "output", "working_resolution" and
        "readout"; with a canonical camera also "canonical_focal" and "focal"; with confidence also
        "confidence", "sigma" and "calibration".
    """
    facts = {
        "input": (
            f"image: RGB, {settings.input} 0..255, (batch, 3, height, width), upright and at its "
            "own size; resizing and normalisation are inside"
        ),
        "output": (
            f"depth: float32 metres from {network.min_depth:g} to {network.max_depth:g}, "
            "(batch, 1, height, width)"
        ),
        "working_resolution": working_resolution(settings),
        "readout": settings.readout,
    }
    if settings.format == "weights":
        facts["input"] = (
            "image: RGB at the working resolution, ImageNet's mean taken off and divided by its "
            "deviation, (batch, 3, height, width)"
        )
    if network.canonical is not None:
        facts["canonical_focal"] = f"{network.canonical.focal:g}"
        facts["focal"] = "an input: float32 pixels of the image at its own size, (batch,)"
        if settings.focal is not None:
            facts["focal"] = f"{settings.focal:g} pixels of the image at its own size, a constant"
        if settings.format == "weights":
            facts["focal"] = "needed: depth is canonical, metres = depth * f / canonical_focal"
    if settings.confidence:
        facts["confidence"] = (
            "float32 0..1, the probability that the true depth is within "
            f"{confidence.RELATIVE_TOLERANCE:.0%} of depth, (batch, 1, height, width)"
        )
        facts["sigma"] = (
            "float32 metres, the root of the expected squared error of depth, "
            "(batch, 1, height, width)"
        )
        facts["calibration"] = "none, temperature 1"
        if settings.calibration is not None:
            temperature, against = settings.calibration
            facts["calibration"] = f"temperature {temperature:g}, fitted against {against}"
    return facts


def working_resolution(settings: Settings) -> str:
    """Returns a text that states the size to which an exported file resizes its input images.

    The text is for the file's metadata, such as "192x640".

    Args:
        settings: The settings with which the file is exported.
    """
    if not settings.dynamic or settings.resize.at_most is None:
        return str(settings.resize)
    most = "x".join(map(str, settings.resize.at_most))
    return (
        f"the image's own size; load_student shrinks images larger than {SLACK:g} times {most}, "
        "this file shrinks none"
    )


_FORMATS = {"onnx": _write_onnx, "torch_export": _write_torch_export, "weights": _write_weights}
