"""`recipe["train"]` and `recipe["load"]` as dataclasses of checked values."""

from collections.abc import Sequence
from dataclasses import dataclass

from tiekd.errors import RecipeError


@dataclass(frozen=True)
class TrainSettings:
    """`recipe["train"]`. batch_size is global; epochs or iterations; clip_norm is L2, 0 for none.

    max_bad_iterations: so many in a row whose loss or gradient isn't finite end the run, 0: none do. timeout_minutes:
    how long ranks wait for one that doesn't come.
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
            raise RecipeError(f"train.batch_size: got {self.batch_size}; it must be at most 65536 pictures")
        if not isinstance(self.max_bad_iterations, int) or self.max_bad_iterations < 0:
            raise RecipeError(
                f"train.max_bad_iterations: got {self.max_bad_iterations!r}; it must be a whole number, 0 for no end"
            )
        if not 0 < self.timeout_minutes <= 1e6:
            raise RecipeError(f"train.timeout_minutes: got {self.timeout_minutes}; it must be above 0, at most 1e6")
        if self.seed < 0:
            raise RecipeError(f"train.seed: got {self.seed}; it must be a whole number from 0")
        if (self.epochs is None) == (self.iterations is None):
            raise RecipeError("train: give either epochs or iterations")


@dataclass(frozen=True)
class LoadSettings:
    """`recipe["load"]`: weights to start from (a file, checkpoint or work dir), and patterns of what may not fit."""

    checkpoint: str | None = None
    ignore: Sequence[str] = ()
