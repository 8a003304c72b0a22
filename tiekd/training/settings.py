"""Gives typed access to a recipe: `Recipe`, and the dataclasses of its sections `train` and `load`.

The dataclasses of other sections are defined where they are used, in data/ and evaluation/.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tiekd.config import data_sets
from tiekd.config.build import settings
from tiekd.config.teacher_node import TeacherList, without_teacher
from tiekd.data import resize as resizes
from tiekd.data.augment.augment import Augment
from tiekd.data.build import DataSettings, loading_of, settings_of
from tiekd.data.loading.loader import Loading
from tiekd.data.loading.sampler import check_seed
from tiekd.data.resize import Resize
from tiekd.errors import LaunchError, RecipeError
from tiekd.evaluation.agreement import TEACHER
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings


class SetRecipe(NamedTuple):
    """One data set of a recipe, with a recipe that describes only this set.

    Attributes:
        name: The data set's name; "" if the recipe has only one.
        weight: The set's share of the training images, relative to the `weight` of the other sets.
            None if shares follow from the sets' sizes.
        recipe: The recipe with this data set as its only one, and with the teacher and the
            evaluation settings of this set.
    """

    name: str
    weight: float | None
    recipe: "Recipe"


class Recipe:
    """A recipe whose sections are parsed and checked when they are first read.

    So a program that needs only some sections accepts a recipe without the others. Sections with
    fixed keys become dataclasses. A section that describes a component (network, losses, optimizer,
    ...) has the component's arguments as keys; it is kept as a dict, from which tiekd.config.build
    builds the component.

    Attributes:
        node: The whole recipe as a dict, as `load_recipe` returns it. It is not changed.
    """

    def __init__(self, node: dict):
        self.node = node

    @cached_property
    def train(self) -> "TrainSettings":
        """The section `train` as a `TrainSettings`: length, batch size, seed and so on.

        Raises:
            RecipeError: A key or value of the section is wrong.
        """
        return settings(self.node, "train", TrainSettings)

    @property
    def validates(self) -> bool:
        """True if the student is evaluated during training: the key `train.validate`.

        If the recipe has no section `train`, the value is the key's default.
        """
        return self.section("train").get("validate", TrainSettings.validate)

    @property
    def scores_teacher(self) -> bool:
        """True if evaluations compare with the teacher: the key `evaluation.against`.

        Raises:
            RecipeError: The recipe has no teacher to compare with.
        """
        against = self.section("evaluation").get("against", EvaluationSettings.against)
        if against == TEACHER and not self.has_teacher:
            raise RecipeError(
                "evaluation.against: got teacher, but the recipe has no teacher; give one, or set "
                "evaluation.against=ground_truth"
            )
        return against == TEACHER

    def splits(self, which: str) -> tuple[str, ...]:
        """Returns the names of the data splits that an option of a program selects.

        Args:
            which: The option's value: "train", "val" or "both". If the student isn't evaluated
                during training, "both" selects only the training split.

        Returns:
            "train", "val", or both in this order.
        """
        if which != "both":
            return (which,)
        return ("train", "val") if self.validates else ("train",)

    @cached_property
    def load(self) -> "LoadSettings":
        """The section `load` as a `LoadSettings`: the weights with which a new run starts.

        Raises:
            RecipeError: A key or value of the section is wrong.
        """
        return settings(self.node, "load", LoadSettings)

    @cached_property
    def evaluation(self) -> EvaluationSettings:
        """The section `evaluation` as an `EvaluationSettings`: when and how to evaluate.

        Raises:
            RecipeError: A key or value of the section is wrong.
        """
        return settings(self.node, "evaluation", EvaluationSettings)

    def protocol(self, split: str) -> EvaluationProtocol:
        """Returns the protocol of evaluations on one split: crop, depth range, flip averaging.

        Args:
            split: "train" or "val".

        Raises:
            RecipeError: A value of the section `evaluation` is wrong.
        """
        return EvaluationProtocol(
            self.evaluation, self.network["min_depth"], self.network["max_depth"], split
        )

    @cached_property
    def augment(self) -> Augment:
        """The settings of training's augmentation, `data.augment`, as an `Augment`.

        Raises:
            RecipeError: A key or value is wrong.
        """
        node = self.data.get("augment", {})
        return settings({"data.augment": node}, "data.augment", Augment)

    @cached_property
    def loading(self) -> Loading:
        """The settings of the data loader, such as `data.workers`, as a `Loading`.

        Raises:
            RecipeError: A value is wrong.
        """
        return loading_of(self.data)

    @cached_property
    def resize(self) -> Resize:
        """The rule by which images are resized to the network's input, as a `Resize`.

        Raises:
            RecipeError: The rule, `data.resize`, is wrong.
        """
        return resizes.of_data(self.data)

    @cached_property
    def dataset(self) -> DataSettings:
        """The `DataSettings` from which the datasets "train" and "val" are built.

        Raises:
            RecipeError: A value of the section `data` is wrong, or the section lists several data
                sets.
        """
        if self.is_mixed:
            names = ", ".join(each.name for each in self.data_sets)
            raise RecipeError(
                f"data: got a list of sets ({names}), and one is read here; give a recipe with one "
                "of them as a mapping, or --set 'data={...}'"
            )
        return replace(
            settings_of(self.data, self.max_depth_m),
            maps=self.teachers.maps,
            has_teacher=self.teachers.is_given,
            validates=self.validates,
            scores_teacher=self.scores_teacher,
        )

    @property
    def data(self) -> dict:
        """The section `data` as a dict.

        If the section is a list of data sets, the dict has only the keys that apply to all of them,
        such as `augment` and `workers`.
        """
        data = self.node.get("data", {})
        return data_sets.shared_of(data) if self.is_mixed else data

    @property
    def is_mixed(self) -> bool:
        """True if `data` is a list of data sets, from which a run trains at once."""
        return data_sets.is_list(self.node)

    @cached_property
    def data_sets(self) -> tuple[SetRecipe, ...]:
        """The recipe's data sets as a tuple of `SetRecipe`, each with a recipe of only this set.

        If `data` is a mapping, the only entry has the name "" and this recipe.

        Raises:
            RecipeError: An entry of the list `data` is wrong.
        """
        if not self.is_mixed:
            return (SetRecipe("", None, self),)
        return tuple(
            SetRecipe(each.name, each.weight, Recipe(data_sets.single_set_recipe(self.node, each)))
            for each in data_sets.sets_of(self.node)
        )

    def sets_named(self, name: str | None, option: str = "--data-set") -> tuple[SetRecipe, ...]:
        """Returns the data sets that a command-line option selects, as a tuple of `SetRecipe`.

        Args:
            name: The option's value, a data set's name or its number from 0; None for all of them.
            option: The option's name, for the error message.

        Raises:
            RecipeError: There is no data set of this name.
        """
        found = tuple(each for each in self.data_sets if name in (None, each.name))
        if not found and self.is_mixed:
            index = data_sets.index_of(name, self.node)
            found = () if index is None else (self.data_sets[index],)
        if not found:
            names = ", ".join(each.name for each in self.data_sets)
            allowed = f"the recipe has: {names}" if self.is_mixed else "the recipe has one set"
            raise RecipeError(f"{option}: got {name!r}; {allowed}")
        return found

    def one_set(self, name: str | None) -> SetRecipe:
        """Returns the data set that `--data-set` asks for, in a program that takes only one.

        Args:
            name: The option's value, a data set's name or its number from 0; None if not given.

        Raises:
            LaunchError: The recipe has several sets, and the option isn't given.
            RecipeError: There is no such set.
        """
        if self.is_mixed and name is None:
            names = ", ".join(each.name for each in self.data_sets)
            raise LaunchError(f"--data-set: the recipe has several: {names}; give one of them")
        return self.sets_named(name)[0]

    @property
    def has_teacher(self) -> bool:
        """True if the student learns from a teacher on at least one of the recipe's data sets."""
        return any(each.recipe.teachers.is_given for each in self.data_sets)

    @property
    def network(self) -> dict | None:
        """The section `network`, a dict that describes the student; None if there is none."""
        return self.node.get("network")

    @property
    def max_depth_m(self) -> float:
        """The largest depth that the student predicts, in metres."""
        return self.network["max_depth"]

    @property
    def teachers(self) -> TeacherList:
        """The teachers of the sections `teacher` and `teachers`: a `TeacherList`, maybe empty."""
        return TeacherList.of(self.node)

    def without_teacher(self) -> "Recipe":
        """Returns a copy of the recipe without a teacher, for training on the ground truth."""
        return Recipe(without_teacher(self.node))

    @property
    def work_dir(self) -> Path:
        """The folder of the run, from the key `work_dir`."""
        return Path(self.node["work_dir"])

    def section(self, name: str, default: dict | None = None) -> dict:
        """Returns a section of the recipe as a dict.

        Args:
            name: The section's name, a top-level key of the recipe.
            default: The result if the recipe has no such section; None stands for an empty dict.
        """
        return self.node.get(name, {} if default is None else default)


@dataclass(frozen=True)
class TrainSettings:
    """The section `train` of a recipe: the length of training, and how it is trained.

    Attributes:
        batch_size: Images per iteration, summed over all ranks.
        epochs: The length of training in epochs; a recipe gives either `epochs` or `iterations`.
        iterations: The length of training in optimizer steps.
        epoch_images: With several data sets, the images that make an epoch; None for as many as all
            sets have. An epoch is the unit of `epochs`, intervals and the log.
        clip_norm: The largest L2 norm of the gradient, 0 for no clipping.
        seed: The seed of initial weights, sample order and augmentation, 0 or more.
        lr_scaling: How the learning rate grows with the batch size: none, linear or sqrt
            (training/optimizer.py).
        deterministic: True to allow only algorithms whose results are the same bit for bit in every
            run.
        validate: True to evaluate during training, and to save the best weights.
        max_bad_iterations: The run ends after this many iterations in a row with a loss or gradient
            that isn't finite; 0 for never.
        timeout_minutes: How many minutes a rank waits in a collective for the other ranks.
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
    epoch_images: int | None = None

    def __post_init__(self):
        for name in ("batch_size", "epochs", "iterations", "epoch_images"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise RecipeError(f"train.{name}: got {value!r}; it must be a whole number from 1")
        # Refuse longer runs, whose remaining time the log couldn't show.
        for name, most in (("epochs", 10**6), ("iterations", 10**9)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise RecipeError(f"train.{name}: got {value}; it must be at most {most}")
        # Refuse NaN, the only number that differs from itself, because clipping by NaN would make
        # all gradients NaN.
        if self.clip_norm is not None and self.clip_norm != self.clip_norm:
            raise RecipeError(f"train.clip_norm: got {self.clip_norm}; it must be a number")
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
        check_seed(self.seed)
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
    """The section `load` of a recipe: the weights with which a new run starts.

    Attributes:
        checkpoint: The weights to start from: a file, a checkpoint's folder or a work dir.
        ignore: Glob patterns of names in the state dict; these tensors are not loaded and stay as
            initialised.
    """

    checkpoint: str | None = None
    ignore: Sequence[str] = ()
