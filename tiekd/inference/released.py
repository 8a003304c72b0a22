"""Finds the student that comes with tiekd, for predictions without a recipe of one's own.

It was trained on rendered streets alone, so it is a demo of what a prediction looks like: nearer
and farther, not metres. Its recipe is students/baseline_lite0_scenes.yaml; its weights, in fp16,
and their record are in model_configs/released/ and in the wheel, and are made by `python -m
tiekd.tools.rebuild_student`. Not covered: a download of weights.
"""

from pathlib import Path

from tiekd.config import shipped
from tiekd.errors import CheckpointError

NAME = "baseline_lite0_scenes"  # the recipe's name, and that of the files
NOTICE = (
    "Student: the demo that comes with tiekd, which has seen rendered streets alone: shape only, "
    "metres unreliable"
)
REBUILD = "python -m tiekd.tools.rebuild_student"


def recipe_file() -> Path:
    """Returns the path of the student's recipe."""
    return shipped.names(shipped.RECIPES)[NAME]


def weights_file() -> Path:
    """Returns the path of the student's weights, which need not exist."""
    return shipped.folder(shipped.RECIPES) / "released" / f"{NAME}.pth"


def checked_weights() -> Path:
    """Returns the path of the student's weights.

    Raises:
        CheckpointError: This installation has none.
    """
    path = weights_file()
    if not path.is_file():
        raise CheckpointError(
            f"without RECIPE the student that comes with tiekd predicts, and there is no {path}; "
            f"give RECIPE and its weights before the images, or make the file with `{REBUILD}` "
            "(some 20 minutes)"
        )
    return path
