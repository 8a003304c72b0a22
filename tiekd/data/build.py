"""A recipe's `data` section as the data set of a split, and as how it is read."""

from collections.abc import Collection

from torch.utils.data import Dataset

from tiekd.config.build import build, settings
from tiekd.config.recipe import is_outside
from tiekd.data import decoded_cache, teacher_maps
from tiekd.data import resize as resizes
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import Resize
from tiekd.errors import RecipeError

_NOT_FOR_DATASETS = ("augment", "resize", *Loading.__dataclass_fields__)
# Options that cut training frames only; evaluation and teacher maps are of whole ones.
_TRAINING_CROPS = ("nyu_crop",)


def build_dataset(
    recipe: dict, split: str, as_evaluated: bool = False, held_out: Collection[str] | None = None
) -> Dataset:
    """The data set of one split; frames without ground truth stay in training when there is a teacher.

    as_evaluated: training frames, too, are cut as validation frames are. held_out: the names that a
    data set without split files keeps from training, where they are known; None lets it pick them,
    for training only if the recipe validates.
    """
    if held_out is None and split == "train" and not recipe.get("train", {}).get("validate", True):
        held_out = ()
    left_out = (*_NOT_FOR_DATASETS, *(_TRAINING_CROPS if as_evaluated else ()))
    node = {key: value for key, value in recipe.get("data", {}).items() if key not in left_out}
    _check_one_scale(node, resizes.of_data(recipe.get("data", {})))
    teacher = recipe.get("teacher") or {}
    frames = build(
        node,
        "tiekd.data.datasets",
        "data",
        split=split,
        max_depth=recipe["network"]["max_depth"],
        maps=None if is_outside(teacher) else teacher.get("maps"),
        needs_ground_truth=split == "val" or not teacher,
        on_error=recipe.get("data", {}).get("on_error", "raise"),
        held_out=held_out,
    )
    if getattr(frames, "maps", None) is not None:
        teacher_maps.check(frames.maps, recipe)
    decoded_cache.attach(frames, recipe["data"])
    return frames


def _check_one_scale(node: dict, resize: Resize) -> None:
    """RecipeError where training frames are cut before they are resized to a size, so that they would have another
    scale than those of evaluation."""
    cut = next((key for key in _TRAINING_CROPS if node.get(key) is not None), None)
    if cut is not None and (resize.mode is not None or resize.short_side is not None):
        raise RecipeError(
            f"data.{cut}: cuts training frames alone, so data.resize ({resize}) would give them "
            f"another scale than evaluation's; set data.{cut}=null, or resize by "
            f"data.resize={{scale: X}}"
        )


def loading_of(recipe: dict) -> Loading:
    """How the recipe's data is read, whatever the data set. Raises RecipeError."""
    node = {
        key: value
        for key, value in recipe.get("data", {}).items()
        if key in Loading.__dataclass_fields__
    }
    return settings({"data": node}, "data", Loading)
