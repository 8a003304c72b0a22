"""The base class of hooks, which has one method for each moment of a run at which hooks are called.

Hooks are called in the order of the run's list of hooks, on every rank; there are no priorities. A
hook that needs another hook's result comes after that hook in the list. Not covered: moments inside
an iteration, which belong to the training loop.
"""

import difflib

from tiekd.errors import RecipeError


class Hook:
    """A hook that does nothing; a subclass overrides the methods that it needs.

    The argument `state` of its methods is the run's TrainState (tiekd/training/state.py). A hook
    that acts only every n iterations or epochs calls `state.is_due` to find out if it has to act.
    """

    def before_train(self, state) -> None:
        """Called once per process, before its first iteration.

        `state.iteration` is 0 in a new run, and the checkpoint's iteration in a resumed run.
        """

    def after_iteration(self, state) -> None:
        """Called after every iteration; `state.iteration` is the number of finished iterations."""

    def after_evaluation(self, state, metrics: dict[str, float]) -> None:
        """Called after every evaluation on the validation images, on all ranks.

        The Evaluation hook calls it in its own `after_iteration`. If a run was stopped before an
        evaluation that was due, the resumed run evaluates and calls this method in `before_train`.
        If the evaluated weights are the best so far, they are saved before this call.

        Args:
            state: The state of the run; `state.num_evaluated` is the number of evaluated images.
            metrics: The metrics by name, the same on all ranks.
        """

    def after_train(self, state) -> None:
        """Called once, after the last iteration of this process.

        The last iteration is that of the run, or the one at which a hook stopped the run. The
        method is not called when training ends with an error.

        Args:
            state: The state of the run.
        """

    def state_dict(self) -> dict:
        """Returns the hook's state for a checkpoint: plain numbers, strings, lists and dicts.

        With this state, a resumed run continues as if it had not been interrupted.
        """
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the hook's state from a checkpoint; called before `before_train`.

        Args:
            state_dict: The state that the method `state_dict` returned when the checkpoint was
                saved.
        """


def check_moments(hook: Hook, where: str) -> None:
    """Refuses an object that isn't a hook, and a hook with a misspelt `before_` or `after_` method.

    Args:
        hook: The hook, one of tiekd's or the user's.
        where: The hook's name and place in the recipe, for the error message.

    Raises:
        RecipeError: The object isn't a Hook; or it has a method whose name begins with `before_` or
            `after_` and isn't a method of Hook, so that it would never be called.
    """
    if not isinstance(hook, Hook):
        raise RecipeError(
            f"{where}: build made a {type(hook).__name__}; it must be a tiekd.Hook, so derive its "
            "class from that"
        )
    moments = [name for name in vars(Hook) if name.startswith(("before_", "after_"))]
    for name in dir(hook):
        is_moment = name.startswith(("before_", "after_")) and callable(getattr(hook, name))
        if is_moment and name not in moments:
            nearest = difflib.get_close_matches(name, moments, n=1, cutoff=0.0)[0]
            raise RecipeError(
                f"{where}: a hook has no method {name!r}, so it would never be called; did you "
                f"mean {nearest!r}? There are {', '.join(moments)}"
            )
