"""Builds the dataset of a split and its loading settings from a recipe's `data` section."""

from collections.abc import Collection

from torch.utils.data import Dataset

from tiekd.config.build import build, settings
from tiekd.config.teacher_node import TeacherNode
from tiekd.data import decoded_cache, teacher_maps
from tiekd.data import resize as resizes
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import Resize
from tiekd.errors import RecipeError

_NOT_FOR_DATASETS = ("augment", "resize", *Loading.__dataclass_fields__)
# Options that crop training frames only; evaluation and teacher maps use whole frames.
_TRAINING_CROPS = ("nyu_crop",)


def build_dataset(
    recipe: dict, split: str, as_evaluated: bool = False, held_out: Collection[str] | None = None
) -> Dataset:
    """Builds the dataset of one split.

    Training frames without ground truth are kept if there is a teacher.

    Args:
        recipe: The whole recipe; its `data`, `network`, `teacher` and `train` sections are read.
        split: "train" or "val".
        as_evaluated: Crop training frames as validation frames are.
        held_out: The names that a dataset without split files keeps out of training, if they are
            known. None lets the dataset choose them; for training it does so only if the recipe
            validates.

    Returns:
        The dataset, reading from the decoded cache if the recipe has `data.decoded`.

    Raises:
        RecipeError: If options are wrong or contradict each other.
        DataError: If files are missing or no frame is left.
        TeacherError: If cached maps were made for another recipe.
    """
    # Without validation no frame is held out.
    if held_out is None and split == "train" and not recipe.get("train", {}).get("validate", True):
        held_out = ()
    left_out = (*_NOT_FOR_DATASETS, *(_TRAINING_CROPS if as_evaluated else ()))
    node = {key: value for key, value in recipe.get("data", {}).items() if key not in left_out}
    _check_one_scale(node, resizes.of_data(recipe.get("data", {})))
    teacher = TeacherNode.of(recipe)
    frames = build(
        node,
        "tiekd.data.datasets",
        "data",
        split=split,
        max_depth=recipe["network"]["max_depth"],
        maps=teacher.maps,
        needs_ground_truth=split == "val" or not teacher.is_given,
        on_error=recipe.get("data", {}).get("on_error", "raise"),
        held_out=held_out,
    )
    # A dataset from outside the project may have no maps.
    if getattr(frames, "maps", None) is not None:
        teacher_maps.check(frames.maps, recipe)
    decoded_cache.attach(frames, recipe["data"])
    return frames


def _check_one_scale(node: dict, resize: Resize) -> None:
    """Raises RecipeError if training frames would get another scale than frames of evaluation.

    That happens if training frames are cropped before they are resized to a fixed size.
    """
    cut = next((key for key in _TRAINING_CROPS if node.get(key) is not None), None)
    if cut is not None and (resize.mode is not None or resize.short_side is not None):
        raise RecipeError(
            f"data.{cut}: cuts training frames alone, so data.resize ({resize}) would give them "
            f"another scale than evaluation's; set data.{cut}=null, or resize by "
            f"data.resize={{scale: X}}"
        )


def loading_of(recipe: dict) -> Loading:
    """Returns the loading settings of the recipe's `data`, for any dataset. Raises RecipeError."""
    node = {
        key: value
        for key, value in recipe.get("data", {}).items()
        if key in Loading.__dataclass_fields__
    }
    return settings({"data": node}, "data", Loading)
