"""A recipe's `data` section as the data set of a split, and as how it is read."""

from torch.utils.data import Dataset

from tiekd.config import build, settings
from tiekd.data import decoded, teacher_maps
from tiekd.data import resize as resizes
from tiekd.data.loader import Loading
from tiekd.data.resize import Resize
from tiekd.errors import RecipeError
from tiekd.models.teacher import is_outside

_NOT_FOR_DATASETS = ("augment", "resize", *Loading.__dataclass_fields__)
_TRAINING_CROPS = ("nyu_crop",)  # options that cut training frames only; evaluation and teacher maps are of whole ones


def build_dataset(recipe: dict, split: str, as_evaluated: bool = False) -> Dataset:
    """The data set of one split; frames without ground truth stay in training when there is a teacher.

    as_evaluated: training frames, too, are cut as validation frames are.
    """
    left_out = (*_NOT_FOR_DATASETS, *(_TRAINING_CROPS if as_evaluated else ()))
    node = {key: value for key, value in recipe.get("data", {}).items() if key not in left_out}
    _check_one_scale(node, resizes.of_data(recipe.get("data", {})))
    teacher = recipe.get("teacher") or {}
    frames = build(
        node,
        "tiekd.data",
        "data",
        split=split,
        max_depth=recipe["network"]["max_depth"],
        maps=None if is_outside(teacher) else teacher.get("maps"),
        needs_ground_truth=split == "val" or not teacher,
        on_error=recipe.get("data", {}).get("on_error", "raise"),
    )
    if getattr(frames, "maps", None) is not None:
        teacher_maps.check(frames.maps, recipe)
    decoded.attach(frames, recipe["data"])
    return frames


def _check_one_scale(node: dict, resize: Resize) -> None:
    """RecipeError where training frames are cut before they are resized to a size, so that they would have another
    scale than those of evaluation."""
    cut = next((key for key in _TRAINING_CROPS if node.get(key) is not None), None)
    if cut is not None and (resize.mode is not None or resize.short_side is not None):
        raise RecipeError(
            f"data.{cut}: cuts training frames alone, so data.resize ({resize}) would give them another scale than "
            f"evaluation's; set data.{cut}=null, or resize by data.resize={{scale: X}}"
        )


def loading_of(recipe: dict) -> Loading:
    """How the recipe's data is read, whatever the data set. Raises RecipeError."""
    node = {key: value for key, value in recipe.get("data", {}).items() if key in Loading.__dataclass_fields__}
    return settings({"data": node}, "data", Loading)
