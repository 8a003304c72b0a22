"""A recipe's sections as checked values: `Recipe`, and the dataclasses of `train` and `load`.

The other dataclasses stand where their values are used, in data/ and evaluation/.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tiekd.config.build import settings
from tiekd.config.teacher_node import TeacherNode, without_teacher
from tiekd.data import resize as resizes
from tiekd.data.augment.augment import Augment
from tiekd.data.build import DataSettings, loading_of, settings_of
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import Resize
from tiekd.errors import RecipeError
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings


class Recipe:
    """A recipe whose sections of fixed keys are read once, when they are first asked for.

    So a program that needs a few of the sections also takes a recipe that has no others. A section
    whose keys are the arguments of a part (network, losses, optimizer, ...) is its node, of which
    config.build.build makes the part.

    Attributes:
        node: The whole recipe as `load_recipe` returns it, as records of a run keep it. It is not
            changed.
    """

    def __init__(self, node: dict):
        self.node = node

    @cached_property
    def train(self) -> "TrainSettings":
        """The length, batch and seed of training. Raises RecipeError."""
        return settings(self.node, "train", TrainSettings)

    @property
    def validates(self) -> bool:
        """False where the recipe turns evaluations off; it needs no section `train`."""
        return self.section("train").get("validate", TrainSettings.validate)

    def splits(self, which: str) -> tuple[str, ...]:
        """Returns the splits that "train", "val" or "both" means.

        Both are the training frames alone in a recipe that doesn't validate.
        """
        if which != "both":
            return (which,)
        return ("train", "val") if self.validates else ("train",)

    @cached_property
    def load(self) -> "LoadSettings":
        """The weights to start from. Raises RecipeError."""
        return settings(self.node, "load", LoadSettings)

    @cached_property
    def evaluation(self) -> EvaluationSettings:
        """The evaluation of the validation frames. Raises RecipeError."""
        return settings(self.node, "evaluation", EvaluationSettings)

    def protocol(self, split: str) -> EvaluationProtocol:
        """Returns how the student is evaluated on the frames of a split. Raises RecipeError."""
        return EvaluationProtocol(
            self.evaluation, self.network["min_depth"], self.network["max_depth"], split
        )

    @cached_property
    def augment(self) -> Augment:
        """The augmentation of training samples. Raises RecipeError."""
        node = self.data.get("augment", {})
        return settings({"data.augment": node}, "data.augment", Augment)

    @cached_property
    def loading(self) -> Loading:
        """The reading of frames. Raises RecipeError."""
        return loading_of(self.data)

    @cached_property
    def resize(self) -> Resize:
        """The working resolution. Raises RecipeError."""
        return resizes.of_data(self.data)

    @cached_property
    def dataset(self) -> DataSettings:
        """The frames of both splits. Raises RecipeError."""
        return replace(
            settings_of(self.data, self.max_depth_m),
            maps=self.teacher.maps,
            has_teacher=self.teacher.is_given,
            validates=self.validates,
        )

    @property
    def data(self) -> dict:
        """The node of the data set."""
        return self.node.get("data", {})

    @property
    def network(self) -> dict | None:
        """The student's node; None where the recipe has none."""
        return self.node.get("network")

    @property
    def max_depth_m(self) -> float:
        """The largest depth that the student predicts, in metres."""
        return self.network["max_depth"]

    @property
    def teacher(self) -> TeacherNode:
        """The teacher's section."""
        return TeacherNode.of(self.node)

    def without_teacher(self) -> "Recipe":
        """Returns the recipe with the ground truth as its teacher."""
        return Recipe(without_teacher(self.node))

    @property
    def work_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.node["work_dir"])

    def section(self, name: str, default: dict | None = None) -> dict:
        """Returns the node of a section that is made into one part, such as `optimizer`."""
        return self.node.get(name, {} if default is None else default)


@dataclass(frozen=True)
class TrainSettings:
    """The section `train`.

    Attributes:
        batch_size: Images an iteration, of all ranks.
        epochs: Either these or `iterations` say how long training runs.
        iterations: Of the optimizer.
        clip_norm: The largest L2 norm of a gradient, 0 for no limit.
        seed: Of weights, order and augmentation, from 0.
        lr_scaling: How the learning rate follows the batch size (training/optimizer.py).
        deterministic: Allows only algorithms that repeat bit for bit.
        validate: Evaluates, and keeps the best weights.
        max_bad_iterations: That many in a row whose loss or gradient isn't finite end the run; 0
            for no end.
        timeout_minutes: How long ranks wait for one that doesn't come.
    """

    batch_size: int = 16
    epochs: int | None = None
    iterations: int | None = None
    clip_norm: float = 35.0
    seed: int = 0
    lr_scaling: str = "none"
    deterministic: bool = False
    validate: bool = True
    max_bad_iterations: int = 50
    timeout_minutes: float = 30.0

    def __post_init__(self):
        for name in ("batch_size", "epochs", "iterations"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise RecipeError(f"train.{name}: got {value!r}; it must be a whole number from 1")
        if self.batch_size > 65536:
            raise RecipeError(
                f"train.batch_size: got {self.batch_size}; it must be at most 65536 images"
            )
        if not isinstance(self.max_bad_iterations, int) or self.max_bad_iterations < 0:
            raise RecipeError(
                f"train.max_bad_iterations: got {self.max_bad_iterations!r}; it must be a whole "
                "number, 0 for no end"
            )
        if not 0 < self.timeout_minutes <= 1e6:
            raise RecipeError(
                f"train.timeout_minutes: got {self.timeout_minutes}; it must be above 0, at most "
                "1e6"
            )
        if self.seed < 0:
            raise RecipeError(f"train.seed: got {self.seed}; it must be a whole number from 0")
        if self.epochs is None and self.iterations is None:
            raise RecipeError(
                "train: give either epochs or iterations; there is neither, so set one, for "
                "example train.epochs=30"
            )
        if self.epochs is not None and self.iterations is not None:
            raise RecipeError(
                f"train: give either epochs or iterations; there are epochs {self.epochs} and "
                f"iterations {self.iterations}, so set the one that isn't meant to null",
                keys=("train.epochs", "train.iterations"),
            )


@dataclass(frozen=True)
class LoadSettings:
    """The section `load`.

    Attributes:
        checkpoint: The weights to start from: a file, a checkpoint's folder or a work dir.
        ignore: Patterns of tensors that are left as initialised.
    """

    checkpoint: str | None = None
    ignore: Sequence[str] = ()
