"""A depth model of the package transformers as the teacher, loaded from a folder or from the hub.

The model is an `AutoModelForDepthEstimation`. Its own image processor preprocesses the images, and
resizes the output to the size of the images. The kind of the output is read from the model's
config. A folder is read without a network connection; a model on the hub is read from the local
cache if it is there. Weights must be safetensors files, and no code of a model's repository is run.
Needs `pip install 'tiekd[hf]'`. Not covered: models that need other inputs than an image.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tiekd.errors import TeacherError
from tiekd.teachers.network import PRECISIONS
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.cameras import FOCAL_NEEDED, focal_of
from tiekd.teachers.outputs.model_card import licence_in
from tiekd.teachers.outputs.model_place import ModelPlace
from tiekd.teachers.outputs.output_kind import OUTPUT_KINDS
from tiekd.teachers.outputs.sigma import reads_own
from tiekd.teachers.outputs.stated import stated_or_given
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, teacher_of
from tiekd.teachers.outputs.tips_bins import TipsBins

# For each supported `model_type`: a function that reads two values from the model's config, the
# kind of the output and the largest depth in metres. A value is None if the config doesn't state
# it.
_STATED: dict[str, Callable[[Any], tuple[str | None, float | None]]] = {
    "depth_anything": lambda config: (
        ("metres", float(config.max_depth))
        if config.depth_estimation_type == "metric"
        else ("inverse_affine", None)
    ),
    "depth_pro": lambda _: ("metres", None),
    # DPT models give relative inverse depth, metres or other values, and their config doesn't say
    # which.
    "dpt": lambda _: (None, None),
    "glpn": lambda config: ("metres", float(config.max_depth)),
    "tipsv2_dpt": lambda config: ("metres", float(config.max_depth)),
    "zoedepth": lambda config: (
        "metres",
        max(float(bins["max_depth"]) for bins in config.bin_configurations),
    ),
}
_REFUSED = {
    "chmv2": "gives the height of the canopy above ground, not depth",
    "prompt_depth_anything": "needs a prompt of sparse depth besides the image",
}
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt")
# Entries of a config that say where the model comes from. They don't affect what the network
# computes.
_ORIGIN = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash")


@dataclass(frozen=True)
class Options:
    """The keys of `teacher: {name: huggingface}`.

    Attributes:
        model: The path of a folder that `save_pretrained` wrote for the model and its image
            processor; or the model's ID on the Hugging Face hub.
        output: The kind of the output, a key of OUTPUT_KINDS (teachers/outputs/output_kind.py).
            Needed if the model's config doesn't state it.
        revision: The branch, tag or commit of the model on the hub; None for a folder or `main`.
        precision: The precision of convolutions and matrix products: "fp32", "bf16" or "fp16".
        anchor: The source of metric depth to which a relative output is fitted: "ground_truth", or
            a mapping that describes a metric teacher. None for a metric output.
        flip: True to average the output with that for the mirrored image.
        batch_size: The number of images that the model computes in one call.
        device: The model's device; None for the rank's own device.
        sigma: The standard deviation of the error of each pixel's depth: a number of metres, or a
            mapping that names its source (teachers/outputs/sigma.py). None for depth alone.
    """

    model: Path
    output: str | None = None
    revision: str | None = None
    precision: str = "fp32"
    anchor: str | dict | None = None
    flip: bool = False
    batch_size: int = 4
    device: str | None = None
    sigma: float | dict | None = None


class HuggingFacePredictor:
    """A model of transformers with its image processor, as a `Predictor` (outputs/teacher.py)."""

    def __init__(self, options: Options, device: torch.device):
        self.device, self.dtype = device, PRECISIONS[options.precision]
        transformers = _transformers()
        place = ModelPlace(options.model, options.revision)
        architecture = _architecture(place, transformers)
        self.processor = _processor(place, transformers)
        model = _model(place, transformers)
        config = model.config
        # Find out what the output means, and whether the model uses or needs the focal length.
        stated, self.max_depth_m = _STATED[architecture](config)
        if self.max_depth_m is not None and not 0 < self.max_depth_m < math.inf:
            raise TeacherError(
                f"teacher.model: {place}: its config's largest depth is {self.max_depth_m:g} m; it "
                "must be above 0, so restore the model's own config.json"
            )
        self.output_kind = stated_or_given(stated, options.output, f"{place} ({architecture})")
        self.is_depth_pro = architecture == "depth_pro"
        estimates = self.is_depth_pro and config.use_fov_model
        self.needs_focal = OUTPUT_KINDS[self.output_kind].needs_focal or (
            self.is_depth_pro and not estimates
        )
        self.without_focal = FOCAL_NEEDED if self.needs_focal else None
        if estimates:
            self.without_focal = "Depth Pro takes its own estimate of the field of view for them"
        self.model = model.to(device).eval().requires_grad_(False)
        self.has_distribution = architecture == "tipsv2_dpt"
        self.bins = None
        if self.has_distribution and reads_own(options.sigma):
            self.bins = TipsBins(self.model)
        self.description = {
            "name": "huggingface",
            "model": place.base_name,
            "architecture": architecture,
            "revision": getattr(config, "_commit_hash", None),
            "licence": _licence(place, transformers),
            "package": f"transformers {transformers.__version__}",
            "precision": options.precision,
            "digest": digest.of_network(
                model, _plain(config.to_dict()), _plain(self.processor.to_dict())
            ),
        }

    def __call__(self, images: Tensor, intrinsics: Tensor) -> Output:
        """Runs the model on images, and its own post-processing on the output.

        Args:
            images: (B, 3, H, W) uint8, RGB.
            intrinsics: (B, 3, 3) float32 camera matrices, in pixels of the images; NaN for an
                unknown camera.

        Returns:
            An `Output` whose `values` are the post-processed output at the size of the images.
        """
        height, width = images.shape[-2:]
        pixels, outputs = self._run(images)
        # Convert to float32, since the interpolation in the post-processing needs it.
        outputs.predicted_depth = outputs.predicted_depth.float()
        # Depth Pro takes the focal length in pixels of the image before the resize; other models
        # take it in pixels of the resized image.
        focal = focal_of(intrinsics)
        if self.is_depth_pro:
            outputs.field_of_view = _field_of_view(
                outputs.field_of_view, focal.to(self.device), width
            )
        else:
            focal = focal_of(intrinsics, (pixels.shape[-2] / height, pixels.shape[-1] / width))
        sizes = [(height, width)] * len(images)
        # ZoeDepth's processor pads images. Its post-processing needs their original size to remove
        # the padding.
        of_size = {"target_sizes": sizes}
        if hasattr(self.processor, "_pad_images"):
            of_size = {"source_sizes": sizes}
        found = self.processor.post_process_depth_estimation(outputs, **of_size)
        values = torch.stack([each["predicted_depth"] for each in found])[:, None]
        return Output(
            values,
            focal=focal if self.needs_focal else None,
            sigma=None if self.bins is None else self.bins.sigma((height, width)),
        )

    def estimate_focal(self, images: Tensor) -> Tensor | None:
        """Returns the focal lengths that follow from Depth Pro's estimates of the field of view.

        Args:
            images: (B, 3, H, W) uint8, RGB.

        Returns:
            (B,) float32, in pixels of the images; None if the model isn't Depth Pro.
        """
        if not self.is_depth_pro or not self.model.config.use_fov_model:
            return None
        degrees = self._run(images)[1].field_of_view.float().view(-1)
        return 0.5 * images.shape[-1] / torch.tan(0.5 * torch.deg2rad(degrees))

    def _run(self, images: Tensor) -> tuple[Tensor, Any]:
        """Preprocesses images with the model's own processor, and runs the model.

        Args:
            images: (B, 3, H, W) uint8, RGB.

        Returns:
            1. The preprocessed images, (B, 3, h, w).
            2. The object that the model returned, as transformers defines it; its `predicted_depth`
               is the depth before post-processing.
        """
        inputs = self.processor(
            images=list(images), return_tensors="pt", input_data_format="channels_first"
        )
        pixels = inputs["pixel_values"].to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return pixels, self.model(pixel_values=pixels)


def _field_of_view(estimated: Tensor | None, focal: Tensor, width: int) -> Tensor:
    """Returns the horizontal fields of view of images, for the post-processing of Depth Pro.

    Depth Pro computes its depth from the field of view. A field of view that follows from a known
    focal length replaces the model's estimate.

    Args:
        estimated: (B,), the model's estimates in degrees; None if the model makes none.
        focal: (B,), focal lengths in pixels, NaN where unknown; on the device of `estimated`.
        width: The width of the images in pixels.

    Returns:
        (B,), in degrees.
    """
    known = 2 * torch.rad2deg(torch.atan(0.5 * width / focal))
    if estimated is None:
        return known
    return torch.where(torch.isfinite(known), known, estimated.float().view(-1))


def _architecture(place: ModelPlace, transformers: ModuleType) -> str:
    """Returns the `model_type` that a model's config.json states, such as "depth_pro".

    Args:
        place: The model's folder, or its ID on the hub.
        transformers: The package.

    Raises:
        TeacherError: The config can't be read, or its `model_type` is not a key of _STATED.
    """
    if not place.has("config.json"):
        raise TeacherError(f"teacher.model: {place} has no config.json; a model's folder has one")
    node, _ = place.loaded(
        transformers.PreTrainedConfig.get_config_dict, "config.json can't be read"
    )
    if not isinstance(node, dict):
        raise TeacherError(
            f"teacher.model: {place}: config.json holds a {type(node).__name__}, not a model's "
            "config; copy it from the model's repository"
        )
    found = node.get("model_type")
    if found in _REFUSED:
        raise TeacherError(f"teacher.model: {place}: {found} {_REFUSED[found]}")
    if found not in _STATED:
        raise TeacherError(
            f"teacher.model: {place} is {found or 'of no stated architecture'}; allowed: "
            f"{', '.join(_STATED)}"
        )
    return found


def _processor(place: ModelPlace, transformers: ModuleType):
    """Loads and returns the image processor that was saved with a model.

    Args:
        place: The model's folder, or its ID on the hub.
        transformers: The package.

    Raises:
        TeacherError: The processor is missing, can't be loaded, or can't post-process depth.
    """
    if not place.has("preprocessor_config.json", "processor_config.json"):
        raise TeacherError(
            f"teacher.model: {place} has no preprocessor_config.json; copy it from the model's "
            "repository, or save_pretrained the image processor there"
        )
    found = place.loaded(
        transformers.AutoImageProcessor.from_pretrained,
        "the image processor can't be loaded",
        trust_remote_code=False,
    )
    if not hasattr(found, "post_process_depth_estimation"):
        raise TeacherError(
            f"teacher.model: {place}: {type(found).__name__} has no depth post-processing, so it "
            "is of another model; save the model's own image processor"
        )
    return found


def _model(place: ModelPlace, transformers: ModuleType) -> torch.nn.Module:
    """Loads and returns a depth model with its weights in float32.

    Args:
        place: The model's folder, or its ID on the hub.
        transformers: The package.

    Raises:
        TeacherError: The model can't be loaded, or its files lack some of its weights.
    """
    if place.is_folder:
        _check_weights(Path(place.name))
    found, loading = place.loaded(
        transformers.AutoModelForDepthEstimation.from_pretrained,
        "the model can't be loaded",
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    # Refuse missing weights: transformers would initialise them at random without an error.
    random = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    if random:
        raise TeacherError(
            f"teacher.model: {place}: its weights lack or misfit {len(random)} of the model's "
            f"tensors ({min(random)}, ...); give the folder of a depth estimation model"
        )
    return found


def _check_weights(folder: Path) -> None:
    """Raises TeacherError if a model's folder has no weights in safetensors files."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS)
    if pickles:
        raise TeacherError(
            f"teacher.model: {folder} has its weights as {pickles[0]} only, and a pickle can run "
            "code; save them as safetensors (save_pretrained does)"
        )
    raise TeacherError(
        f"teacher.model: {folder} has no weights; a model's folder has model.safetensors"
    )


def _licence(place: ModelPlace, transformers: ModuleType) -> str | None:
    """Returns the name of the licence in a model's card, the README.md beside the model.

    Args:
        place: The model's folder, or its ID on the hub.
        transformers: The package.

    Returns:
        The name, such as "apache-2.0"; None if there is no card or it names no licence.
    """
    if place.is_folder:
        return place.licence()
    try:
        card = transformers.utils.cached_file(place.name, "README.md", **place.where)
    except (OSError, ValueError):
        return None
    return None if card is None else licence_in(Path(card))


def _transformers() -> ModuleType:
    """Imports and returns transformers, with its progress bars and warnings turned off.

    Raises:
        TeacherError: The package isn't installed, or is older than version 5.
    """
    try:
        import transformers
    except ImportError:
        raise TeacherError(
            "teacher.name: huggingface needs transformers, which isn't installed; pip install "
            "'tiekd[hf]'"
        ) from None
    if int(transformers.__version__.split(".")[0]) < 5:
        raise TeacherError(
            f"teacher.name: huggingface needs transformers 5 or newer, and "
            f"{transformers.__version__} is installed; pip install --upgrade 'tiekd[hf]'"
        )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _plain(node: Mapping) -> dict:
    """Returns a model's config as plain JSON values, without entries on the model's origin.

    The left-out entries (_ORIGIN), such as the path from which the model was loaded, may be at any
    depth. Without them the result doesn't depend on where the model is stored.

    Args:
        node: The config.
    """
    node = {key: value for key, value in node.items() if key not in _ORIGIN}
    return json.loads(
        json.dumps(node, default=str),
        object_hook=lambda each: {k: v for k, v in each.items() if k not in _ORIGIN},
    )


def build(options: Options, run_device: torch.device, max_depth_m: float) -> FoundationTeacher:
    """Returns a `FoundationTeacher` that runs a depth model of transformers.

    Args:
        options: The keys of the recipe's section `teacher`.
        run_device: This rank's device.
        max_depth_m: The largest depth that the student predicts, in metres.

    Raises:
        TeacherError: The package, the model or one of its files is missing or can't be used.
    """
    return teacher_of(HuggingFacePredictor, options, run_device, max_depth_m)
