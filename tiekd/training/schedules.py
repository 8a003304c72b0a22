"""Learning rate and momentum as pure functions of the number of finished iterations.

A schedule multiplies the optimizer's learning rate by a factor that depends on the iteration alone.
So a schedule has no state to save: a resumed run computes the same value for iteration 1200 as a
run that was not interrupted.

Each of the functions `one_cycle`, `cosine`, `step`, `poly` and `constant` returns that factor. Its
argument `progress` is the number of finished iterations (or epochs, with `by: epoch`), and `span`
is their number in the whole run. Its other arguments are keys of the recipe. `one_cycle` equals
torch's OneCycleLR and mmcv's OneCycle, the others mmcv's updaters of the same names. Not covered:
the three-phase one-cycle, cyclic schedules and warm restarts, and any schedule that depends on the
loss.

    schedule: {name: one_cycle, div_factor: 25, final_div_factor: 100, cycle_momentum: true}
    schedule: {name: cosine, min_lr_ratio: 1e-8, warmup_iterations: 12800, warmup_ratio: 1e-3}
    schedule: {name: step, milestones: [10, 20], gamma: 0.1, by: epoch}
"""

import inspect
import math
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import torch

from tiekd.config.schema import check_keys
from tiekd.errors import RecipeError


def one_cycle(
    progress: int,
    span: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> float:
    """Returns a learning rate factor that rises to 1 along half a cosine, and falls along another.

    From Smith and Topin 2019 (arXiv 1708.07120). As in torch, the factor is 1 at `pct_start * span
    - 1`, one iteration early.

    Args:
        progress: The number of finished iterations.
        span: The number of iterations in the run.
        pct_start: The fraction of the run in which the factor rises, 0 to 1.
        div_factor: The factor at the start is 1 / div_factor.
        final_div_factor: The factor at the end is 1 / div_factor / final_div_factor.
    """
    first, last = 1 / div_factor, 1 / div_factor / final_div_factor
    return _up_and_down(progress, span, pct_start, first, 1.0, last)


def cosine(progress: int, span: int, min_lr_ratio: float = 0.0) -> float:
    """Returns a learning rate factor that falls along half a cosine from 1 to `min_lr_ratio`.

    From SGDR without restarts (arXiv 1608.03983).

    Args:
        progress: The number of finished iterations, or of finished epochs.
        span: The number of iterations, or of epochs, in the run.
        min_lr_ratio: The factor at the end, 0 to 1.
    """
    return _anneal(1.0, min_lr_ratio, progress / span)


def step(progress: int, span: int, milestones: Sequence[int] = (), gamma: float = 0.1) -> float:
    """Returns a learning rate factor that starts at 1 and is multiplied by `gamma` in steps.

    Args:
        progress: The number of finished iterations, or of finished epochs.
        span: The number of iterations, or of epochs, in the run; not used.
        milestones: The values of `progress`, in increasing order, from which on the factor is
            multiplied by `gamma` once more.
        gamma: The multiplier of one milestone.
    """
    return gamma ** sum(progress >= milestone for milestone in milestones)


def poly(progress: int, span: int, power: float = 0.9, min_lr_ratio: float = 0.0) -> float:
    """Returns a learning rate factor that falls from 1 to `min_lr_ratio` by a power law.

    Args:
        progress: The number of finished iterations, or of finished epochs.
        span: The number of iterations, or of epochs, in the run.
        power: The exponent of the remaining fraction of the run, `1 - progress / span`.
        min_lr_ratio: The factor at the end, 0 to 1.
    """
    return (1 - min_lr_ratio) * (1 - progress / span) ** power + min_lr_ratio


def constant(progress: int, span: int) -> float:
    """Returns the factor 1: the learning rate is always the optimizer's."""
    return 1.0


SHAPES = {shape.__name__: shape for shape in (one_cycle, cosine, step, poly, constant)}
_ONE_CYCLE_KEYS = {"cycle_momentum": False, "base_momentum": 0.85, "max_momentum": 0.95}
_OTHER_KEYS = {"by": "iteration", "warmup_iterations": 0, "warmup_ratio": 0.1}


class Schedule:
    """The learning rate and momentum of every iteration of one run.

    The methods `lr` and `momentum` return the values for an iteration; `apply` sets them in an
    optimizer.

    Args:
        lr: Function of the number of finished iterations that returns the learning rate.
        momentum: Function of the number of finished iterations that returns the momentum, or None.
        total_iterations: The number of iterations in the run.
    """

    def __init__(
        self,
        lr: Callable[[int], float],
        momentum: Callable[[int], float | None],
        total_iterations: int,
    ):
        self._lr, self._momentum, self._last = lr, momentum, total_iterations - 1

    def lr(self, iteration: int) -> float:
        """Returns the learning rate of a parameter group without `lr_mult`.

        Args:
            iteration: The number of finished iterations. Past the end of the run the learning rate
                stays that of the last iteration.
        """
        return self._lr(min(iteration, self._last))

    def momentum(self, iteration: int) -> float | None:
        """Returns the momentum of an iteration: betas[0] of Adam, or the momentum of SGD.

        Args:
            iteration: The number of finished iterations. Past the end of the run the momentum
                stays that of the last iteration.

        Returns:
            The momentum; None if the schedule leaves the optimizer's own value unchanged.
        """
        return self._momentum(min(iteration, self._last))

    def apply(
        self, optimizer: torch.optim.Optimizer, iteration: int
    ) -> tuple[list[float], list[float]]:
        """Sets the learning rate and the momentum of every parameter group for the next iteration.

        A group's learning rate is the schedule's, times the group's `lr_mult` if it has one.

        Args:
            optimizer: Any object with a list of dicts `param_groups`, as torch's optimizers have.
            iteration: The number of finished iterations.

        Returns:
            The learning rates that are now set, one per group; and the momenta, one per group
            (betas[0] or momentum; 0 for a group without either).
        """
        lr, momentum = self.lr(iteration), self.momentum(iteration)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None and "momentum" in group:
                group["momentum"] = momentum
        groups = optimizer.param_groups
        momenta = [
            group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
            for group in groups
        ]
        return [group["lr"] for group in groups], momenta


def build(
    node: dict,
    *,
    base_lr: float,
    base_momentum: float | None,
    total_iterations: int,
    iterations_per_epoch: int,
) -> Schedule:
    """Builds the `Schedule` that a recipe's `schedule` section describes.

    Args:
        node: The section, with the key `name` and the schedule's own keys.
        base_lr: The optimizer's learning rate, which the schedule's factor multiplies.
        base_momentum: The optimizer's betas[0] or momentum. A schedule that doesn't cycle the
            momentum sets this value in every iteration; None leaves the momentum as it is.
        total_iterations: The number of iterations in the run.
        iterations_per_epoch: The number of iterations in an epoch.

    Raises:
        RecipeError: The section's name, a key or a value is wrong.
    """
    assert total_iterations > 0
    assert iterations_per_epoch > 0
    shape, keys, common = _read(node)
    # Count one-cycle in iterations. With `cycle_momentum` it also lowers the momentum while the
    # learning rate rises, and raises it while the learning rate falls.
    if shape is one_cycle:
        low, high = common["base_momentum"], common["max_momentum"]

        def momentum(iteration):
            if not common["cycle_momentum"]:
                return base_momentum
            return _up_and_down(
                iteration, total_iterations, keys.get("pct_start", 0.3), high, low, high
            )

        return Schedule(
            lambda i: base_lr * shape(i, total_iterations, **keys), momentum, total_iterations
        )

    # Count the other schedules in epochs or iterations; they may begin with a warm-up.
    unit = iterations_per_epoch if common["by"] == "epoch" else 1
    span = math.ceil(total_iterations / unit)
    warmup_iterations, warmup_ratio = common["warmup_iterations"], common["warmup_ratio"]

    def lr(iteration):
        regular = base_lr * shape(iteration // unit, span, **keys)
        if iteration >= warmup_iterations:
            return regular
        # During the warm-up multiply the schedule's own value by a factor that rises to 1, so that
        # there is no jump at the end of the warm-up.
        return regular * (1 - (1 - iteration / warmup_iterations) * (1 - warmup_ratio))

    return Schedule(lr, lambda _: base_momentum, total_iterations)


def unfinished_warmup(node: dict, total_iterations: int) -> str | None:
    """Returns a warning for the log if a run ends within its warm-up, else None.

    Args:
        node: The recipe's `schedule` section.
        total_iterations: The number of iterations in the run.
    """
    warmup_iterations = node.get("warmup_iterations", 0)
    if not 0 < total_iterations <= warmup_iterations:
        return None
    return (
        f"The warm-up takes {warmup_iterations} iterations, but the run has only "
        f"{total_iterations}: the learning rate never gets to its schedule; for a short run --set "
        "schedule.warmup_iterations to a part of it"
    )


def _read(node: dict) -> tuple[Callable, dict, dict]:
    """Reads and checks a recipe's `schedule` section.

    Args:
        node: The section.

    Returns:
        1. The function in SHAPES that computes the factor of the learning rate.
        2. Those keyword arguments of the function that the section gives.
        3. The keys that are not arguments of the function, such as `by` and `warmup_iterations`,
           with their defaults if the section doesn't give them.

    Raises:
        RecipeError: The section's name, a key or a value is wrong.
    """
    name = node.get("name") if isinstance(node, dict) else None
    if name not in list(SHAPES):
        names = sorted(SHAPES, key=lambda known: -SequenceMatcher(None, known, str(name)).ratio())
        raise RecipeError(
            f"schedule.name: no {name!r}; there are (nearest first): {', '.join(names)}"
        )
    shape = SHAPES[name]
    # Take the recipe's keys for the schedule from its function: they are the arguments with a
    # default. The first two, progress and span, have none, since they come from the run.
    own = {
        key: p.default
        for key, p in inspect.signature(shape).parameters.items()
        if p.default is not p.empty
    }
    common = _ONE_CYCLE_KEYS if shape is one_cycle else _OTHER_KEYS
    given = {key: value for key, value in node.items() if key != "name"}
    check_keys(given, [*own, *common], f"schedule ({name})")
    for key, value in given.items():
        _check(key, value)
    return (
        shape,
        {key: given[key] for key in own if key in given},
        {key: given.get(key, common[key]) for key in common},
    )


def _check(key: str, value) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    whole = number and value == int(value) and value >= 0
    rules = {
        "by": (value in ("epoch", "iteration"), "must be epoch or iteration"),
        "cycle_momentum": (isinstance(value, bool), "must be true or false"),
        "warmup_iterations": (whole, "must be a whole number of iterations, 0 or more"),
        "milestones": (_increasing(value), "must be a list of whole numbers, increasing"),
        "pct_start": (number and 0 < value < 1, "must lie between 0 and 1, both excluded"),
        "warmup_ratio": (number and 0 <= value <= 1, "must lie between 0 and 1"),
        "min_lr_ratio": (
            number and 0 <= value <= 1,
            "is a factor of the optimizer's lr and must lie between 0 and 1",
        ),
        "base_momentum": (number and 0 <= value < 1, "must lie between 0 and 1, 1 excluded"),
        "max_momentum": (number and 0 <= value < 1, "must lie between 0 and 1, 1 excluded"),
    }
    allowed, rule = rules.get(key, (number and value > 0, "must be a number above 0"))
    if not allowed:
        raise RecipeError(f"schedule.{key}: got {value!r}; it {rule}")


def _increasing(values) -> bool:
    if not isinstance(values, list | tuple) or not all(
        type(value) is int and value > 0 for value in values
    ):
        return False
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def _up_and_down(
    progress: int, span: int, pct_start: float, first: float, top: float, last: float
) -> float:
    """Returns a value that goes along half a cosine from `first` to `top`, then back to `last`.

    Args:
        progress: The number of finished iterations, from 0.
        span: The number of iterations in the run.
        pct_start: The fraction of the run, 0 to 1, after which the value turns: it is `top` when
            `progress` is `pct_start * span - 1`.
        first: The value when `progress` is 0.
        top: The value at the turn.
        last: The value in the last iteration, when `progress` is `span - 1`.
    """
    turn, end = pct_start * span - 1, span - 1
    if progress <= turn:
        return _anneal(first, top, progress / turn if turn > 0 else 1.0)
    # Return a value after the turn. In a run of less than 1 / pct_start iterations the turn lies
    # before iteration 0, so the value only falls, as in torch and mmcv.
    return _anneal(top, last, (progress - turn) / (end - turn))


def _anneal(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * fraction) + 1)
