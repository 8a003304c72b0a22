"""Saves a checkpoint every `interval` epochs or iterations, and when training ends.

Training ends after the last iteration, or when a hook stops the run. Only the newest few
checkpoints are kept.
"""

import shlex
from collections.abc import Callable, Sequence

from tiekd import console
from tiekd.distributed import comm
from tiekd.engine import checkpoint
from tiekd.errors import CheckpointError, RecipeError
from tiekd.training.hook import Hook
from tiekd.workdir import checkpoints, weights_file


class Checkpoint(Hook):
    """Saves a checkpoint every `interval` epochs or iterations, and deletes older checkpoints.

    In the list of hooks it comes after the evaluation hook. So a checkpoint holds the outcome of
    the evaluation at its iteration, and a resumed run needn't repeat that evaluation.

    Attributes:
        hooks: The hooks whose states are saved.
        info: Function that writes a message to the log.
        interval: The number of epochs or iterations from one checkpoint to the next.
        by: The unit of `interval` and `keep_every`, "epoch" or "iteration".
        keep_last: The number of checkpoints to keep; when there are more, the oldest are deleted.
        keep_every: Checkpoints at multiples of this many epochs or iterations are never deleted;
            None if all but the `keep_last` newest are deleted.
        on_error: How a full disk or another failure to write is handled: "continue" training, or
            "stop" with an error. A save that fails at the end of the run is always an error.
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
        # Refuse a `keep_every` that isn't a multiple of `interval`, because checkpoints exist only
        # at multiples of `interval`.
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
        """Saves a checkpoint if one is due or the run ends, then deletes older ones. Collective.

        Args:
            state: The state of the run, which is saved.

        Raises:
            CheckpointError: Writing failed, and either this is the end of the run or `on_error` is
                "stop".
        """
        if not state.is_due(self.interval, self.by) and not state.ends:
            return
        folder = state.work_dir / checkpoints.FOLDER
        # Save on all ranks, since the states of random generators and hooks differ between ranks.
        hook_states = {key: hook.state_dict() for key, hook in keyed(self.hooks).items()}
        try:
            what = state.iteration, hook_states, state.recipe, state.average
            checkpoint.save(state.engine, folder, *what, **state.training_record)
        except checkpoint.SaveFailed as failure:
            if state.ends or self.on_error == "stop":
                command = f"{console.command('resume')} {shlex.quote(str(state.work_dir))}"
                remedy = "raise that limit" if "ulimit -f" in str(failure) else "make room"
                raise CheckpointError(f"{failure}; {remedy}, then {command}") from None
            self.info(f"{failure}; training continues, and the earlier checkpoints are unchanged")
            return
        if comm.is_main():
            # Delete old checkpoints only after the new one is complete on the disk. Keep the newest
            # ones, and those at multiples of `keep_every`.
            weights_file.forget_older_best(state.work_dir)
            kept_for_good = self.keep_every and state.period(self.keep_every, self.by)
            checkpoints.prune(folder, self.keep_last, kept_for_good)


def keyed(hooks: Sequence[Hook]) -> dict[str, Hook]:
    """Returns a dict of the hooks, in the same order, by the keys of their states in a checkpoint.

    A key is the name of the hook's class. The second hook of a class has the key `<class>_2`, the
    third `<class>_3`, and so on.

    Args:
        hooks: The hooks of a run, in the order in which they are called.
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
