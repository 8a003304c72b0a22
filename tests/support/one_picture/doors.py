"""All ways in which a user can get the depth of an image ("doors"), as functions of a case.

A case consists of weights, a recipe, a working resolution and an image. DOORS has a function per
door, from a case to depth (H, W) float32 in metres. It returns None if the door doesn't exist for
the case. To add a door, add its function to DOORS.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn.functional import interpolate

import tiekd
from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.image_io import read_photo
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.sample import Sample
from tiekd.evaluation import evaluate
from tiekd.inference.export import export, onnx_format, program_format
from tiekd.inference.predict.inputs import find
from tiekd.inference.predict.outputs import Outputs
from tiekd.inference.predict.prediction import predict_all
from tiekd.inference.predict.predictor import Predictor
from tiekd.inference.student import Student
from tiekd.models import flip
from tiekd.models import load as trained
from tiekd.models.build import build_network
from tiekd.models.network import Network
from tiekd.workdir.weights_file import write_weights

MIN_M, MAX_M, BINS, UNITS_PER_M = 0.5, 80.0, 33, 256.0


def _node(taps: tuple[int, ...], decoder: dict, head: dict) -> dict:
    encoder = {"name": "support.one_picture.encoder", "taps": list(taps)}
    return {
        "encoder": encoder,
        "decoder": decoder,
        "head": head,
        "min_depth": MIN_M,
        "max_depth": MAX_M,
    }


_FINE = {"name": "densedepth", "widths": [8, 12], "extra_ups": 1, "extra_width": 8}
_COARSE = {"name": "densedepth", "widths": [8, 12]}
_DPM = {"name": "dpm", "num_bins": BINS, "sigma": 2.0}
NODES = {
    "dpm_1": _node((0, 2), _FINE, _DPM),
    "dpm_2": _node((0, 2), _COARSE, _DPM),
    "sigmoid": _node((1, 2), _COARSE, {"name": "sigmoid"}),  # stride 4
    "bts": _node((0, 1, 2, 3, 4), {"name": "bts", "width": 128}, {"name": "sigmoid"}),
}
RESIZES = {
    "none": OWN_SIZE,
    "stretch": Resize(48, 80, "stretch"),
    "cover": Resize(48, 64, "cover"),
    "contain": Resize(64, 72, "contain"),
    "short_side": Resize(short_side=48),
    "scale": Resize(scale=0.8),
}
SIZES = {
    "odd": (61, 97),
    "tiny": (41, 46),
    "portrait": (96, 66),
    "turned": (71, 94),
    "turned_12mp": (4000, 3000),
}


@dataclass(frozen=True)
class Case:
    """Weights, a recipe, a working resolution and an image.

    `folder` is the folder to which doors write, `path` the image file, and `pixels` the upright
    image, (3, H, W) uint8.
    """

    network: Network
    node: dict
    resize: Resize
    readout: str
    folder: Path
    checkpoint: Path
    recipe: Path
    path: Path
    pixels: Tensor

    @property
    def student(self) -> Student:
        """The student as `load_student` returns it, with which all doors are compared."""
        return tiekd.load_student(self.checkpoint, self.recipe, readout=self.readout)


def network_of(head: str) -> Network:
    """Returns a network with random weights, whose depth varies over most of the range.

    The weights are the same in every call.
    """
    torch.manual_seed(5)
    network = build_network(NODES[head])
    image = look_up(_patches(64, 96, 0)[None], colour_table()[None])
    norms = [each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    last = network.head if head.startswith("dpm") else network.head.conv
    torch.nn.init.normal_(last.weight)
    with torch.no_grad():
        features = network.train().features(image)
        if head.startswith("dpm"):
            last.weight *= 4 / (network.head.probabilities(features) + 1e-30).log().std(1).mean()
        else:
            found = last(features)
            last.weight *= 1.5 / found.std()
            last.bias -= 1.5 * found.mean() / found.std()
    return network.eval()


def case(network: Network, head: str, readout: str, resize: str, size: str, folder: Path) -> Case:
    """Writes the files of a case to `folder`: weights, recipe and image.

    The working resolution is stored in the weights file, not in the recipe.
    """
    folder.mkdir(parents=True)
    checkpoint, recipe = folder / "weights.pth", folder / "recipe.yaml"
    write_weights(checkpoint, network.state_dict(), NODES[head], 0, resize=RESIZES[resize].node())
    recipe.write_text(yaml.safe_dump({"network": NODES[head], "data": {"name": "folder"}}))
    path = _write_picture(folder / "pictures", size)
    pixels = read_photo(path)
    assert tuple(pixels.shape[1:]) == SIZES[size], "upright"
    return Case(
        network, NODES[head], RESIZES[resize], readout, folder, checkpoint, recipe, path, pixels
    )


def _write_picture(folder: Path, size: str) -> Path:
    folder.mkdir()
    height, width = SIZES[size]
    image = Image.fromarray(_patches(height, width, 1).permute(1, 2, 0).contiguous().numpy())
    if not size.startswith("turned"):
        image.save(folder / "picture.png")
        return folder / "picture.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored rotated by 90 degrees counter-clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "picture.jpg", exif=exif, quality=95)
    return folder / "picture.jpg"


def _patches(height: int, width: int, seed: int) -> Tensor:
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 255
    return interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255).byte()[0]


def load_student(case: Case) -> Tensor:
    return case.student(case.path)


def predict(case: Case) -> Tensor:
    """Returns the depth of bin/predict.py's NPY file, after comparing its PNG with it."""
    network, _, resize = trained.load_network(str(case.recipe), str(case.checkpoint))
    outputs = Outputs(case.folder / "predicted", UNITS_PER_M, MAX_M, raw=True)
    predictor = Predictor(Student(network, "cpu", case.readout, resize), outputs, batch_size=1)
    told = io.StringIO()
    assert predict_all(predictor, find([str(case.path)], outputs.folder), told, told) == 0, (
        told.getvalue()
    )
    depth = np.load(outputs.of("picture")["raw"])
    levels = np.asarray(Image.open(outputs.of("picture")["depth"])).astype(np.float64)
    assert np.abs(levels - depth * UNITS_PER_M).max() <= 0.5, "half a level"
    return torch.from_numpy(depth)


def exported_onnx(case: Case) -> Tensor:
    return _exported(case, "student.onnx", onnx_format.load)


def exported_pt2(case: Case) -> Tensor:
    return _exported(case, "student.pt2", program_format.load)


def _exported(case: Case, name: str, load: Callable) -> Tensor:
    path, image = case.folder / name, case.pixels[None].contiguous()
    settings = export.Settings(
        tuple(image.shape[2:]), export.format_of(path), readout=case.readout, resize=case.resize
    )
    # Verify the export on another image than the one that is compared later.
    export.write(path, case.network, case.node, settings, [image.flip(-1)], {}, io.StringIO())
    depth = load(path)(image)[0][0, 0]
    path.unlink()
    return depth


def evaluated(case: Case) -> Tensor | None:
    """Returns the depth that an evaluation scores; None unless the readout is "mean"."""
    if case.readout != "mean":
        return None
    size, scored = case.pixels.shape[1:], []
    nothing, inside = torch.zeros(1, *size), torch.ones(1, *size, dtype=torch.bool)
    frames = [Sample(case.pixels, nothing, inside, None, torch.eye(3), "picture")]
    settings = evaluate.EvaluationSettings(crop="none", flip=False)
    protocol = evaluate.EvaluationProtocol(settings, 1e-3, MAX_M)
    predictor, cpu = partial(flip.predict, case.network, flip=False), torch.device("cpu")
    watchers = [lambda indices, batch, depth, rows: scored.append(depth)]
    evaluate.evaluate(predictor, frames, protocol, cpu, watchers=watchers, resize=case.resize)
    return scored[0][0, 0]


DOORS: dict[str, Callable[[Case], Tensor | None]] = {
    "load_student": load_student,
    "predict": predict,
    "onnx": exported_onnx,
    "pt2": exported_pt2,
    "evaluation": evaluated,
}
BIT_FOR_BIT = ("predict",)  # doors whose depth equals load_student's bit for bit


def doors(case: Case) -> dict[str, Tensor]:
    """Returns door -> depth (H, W) float32 in metres, for all doors that the case has."""
    found = {name: door(case) for name, door in DOORS.items()}
    return {name: depth for name, depth in found.items() if depth is not None}
