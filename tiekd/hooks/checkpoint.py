"""Saves a checkpoint every `interval` epochs or iterations and where training ends, and keeps the last few."""

from collections.abc import Sequence

from tiekd import checkpoint, distributed
from tiekd.errors import RecipeError
from tiekd.hooks.base import Hook


class Checkpoint(Hook):
    """interval counts epochs or iterations as `by` says; keep_last: how many stay. `hooks`: whose states go along.

    Stands after the evaluation in the list: a checkpoint then holds the outcome of the evaluation at its iteration, so
    a run that goes on from it has lost nothing.
    """

    def __init__(self, hooks: Sequence[Hook], interval: int = 1, by: str = "epoch", keep_last: int = 3):
        for name, value in (("interval", interval), ("keep_last", keep_last)):
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f"checkpoint.{name}: got {value!r}; it must be a whole number from 1")
        if by not in ("epoch", "iteration"):
            raise RecipeError(f"checkpoint.by: got {by!r}; allowed: epoch, iteration")
        self.hooks, self.interval, self.by, self.keep_last = hooks, interval, by, keep_last

    def after_iteration(self, state) -> None:
        period = self.interval * (state.iterations_per_epoch if self.by == "epoch" else 1)
        if state.iteration % period and state.iteration != state.total_iterations and state.stop_reason is None:
            return
        folder = state.work_dir / checkpoint.FOLDER
        hook_states = {key: hook.state_dict() for key, hook in keyed(self.hooks).items()}
        checkpoint.save(state.engine, folder, state.iteration, hook_states, state.recipe["network"])
        if distributed.is_main():
            checkpoint.prune(folder, self.keep_last)


def keyed(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """Hooks by the names that a checkpoint has for them: the class, with a number from the second of a class on."""
    names: dict[str, Hook] = {}
    for hook in hooks:
        name, count = type(hook).__name__, sum(type(hook).__name__ == type(other).__name__ for other in names.values())
        names[name if count == 0 else f"{name}_{count + 1}"] = hook
    return names


build = Checkpoint
