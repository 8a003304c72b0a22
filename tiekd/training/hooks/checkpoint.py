"""Saves checkpoints and keeps the last few.

One is saved every `interval` epochs or iterations and where training ends.
"""

import shlex
from collections.abc import Callable, Sequence

from tiekd.data.trained_on import as_plain
from tiekd.distributed import comm
from tiekd.engine import checkpoint
from tiekd.errors import CheckpointError, RecipeError
from tiekd.training.hook import Hook
from tiekd.workdir import checkpoints, weights_file


class Checkpoint(Hook):
    """Saves when it is due; stands after the evaluation in the list.

    A checkpoint then holds the outcome of the evaluation at its iteration, so a run that resumes
    from it has lost nothing.

    Attributes:
        hooks: Those whose states are saved.
        info: Writes a line to the log.
        interval: Epochs or iterations from one checkpoint to the next.
        by: "epoch" or "iteration".
        keep_last: The number of checkpoints that stay.
        keep_every: Of every so many epochs or iterations one stays for good; None for none.
        on_error: What a save that the disk didn't take does to the run, "continue" or "stop". A
            last one that fails always ends it with an error.
    """

    def __init__(
        self,
        hooks: Sequence[Hook],
        info: Callable[[str], None],
        interval: int = 1,
        by: str = "epoch",
        keep_last: int = 3,
        keep_every: int | None = None,
        on_error: str = "continue",
    ):
        for name, value in (
            ("interval", interval),
            ("keep_last", keep_last),
            ("keep_every", keep_every),
        ):
            if (type(value) is not int or value < 1) and (name, value) != ("keep_every", None):
                raise RecipeError(f"{name}: got {value!r}; it must be a whole number from 1")
        # A checkpoint to keep for good is one that is saved anyway.
        if keep_every is not None and keep_every % interval:
            raise RecipeError(
                f"keep_every: got {keep_every}; it must be a multiple of interval, {interval}"
            )
        if by not in ("epoch", "iteration"):
            raise RecipeError(f"by: got {by!r}; allowed: epoch, iteration")
        if on_error not in ("continue", "stop"):
            raise RecipeError(f"on_error: got {on_error!r}; allowed: continue, stop")
        self.hooks, self.info, self.interval, self.by = hooks, info, interval, by
        self.keep_last, self.keep_every, self.on_error = keep_last, keep_every, on_error

    def after_iteration(self, state) -> None:
        """Saves where it is due or the run ends, then prunes. Collective.

        Raises:
            CheckpointError: The disk didn't take it, and the run ends here or `on_error` says stop.
        """
        if not state.is_due(self.interval, self.by) and not state.ends:
            return
        folder = state.work_dir / checkpoints.FOLDER
        # All ranks save: each has its own random states and hooks' states.
        hook_states = {key: hook.state_dict() for key, hook in keyed(self.hooks).items()}
        try:
            what = state.iteration, hook_states, state.recipe
            checkpoint.save(state.engine, folder, *what, **as_plain(state.trained_on))
        except checkpoint.SaveFailed as failure:
            if state.ends or self.on_error == "stop":
                command = f"bin/resume {shlex.quote(str(state.work_dir))}"
                raise CheckpointError(f"{failure}; make room, then {command}") from None
            self.info(
                f"{failure}; training goes on, and the checkpoints from before are as they were"
            )
            return
        if comm.is_main():
            # Only now is nothing lost if older files go.
            weights_file.forget_older_best(state.work_dir)
            kept_for_good = self.keep_every and state.period(self.keep_every, self.by)
            checkpoints.prune(folder, self.keep_last, kept_for_good)


def keyed(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """Returns hooks by their names in a checkpoint.

    That is the class, with a number from the second of a class on.
    """
    names: dict[str, Hook] = {}
    for hook in hooks:
        name, count = (
            type(hook).__name__,
            sum(type(hook).__name__ == type(other).__name__ for other in names.values()),
        )
        names[name if count == 0 else f"{name}_{count + 1}"] = hook
    return names


build = Checkpoint
