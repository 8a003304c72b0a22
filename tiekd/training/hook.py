"""The moments of a run at which a hook is called, and the state that it may keep.

Hooks run in the order of their list, on every rank; there are no priorities and no further moments.
A hook that needs another hook's result comes after it in the list. Left out: moments inside an
iteration, which is the loop's business.
"""

import difflib

from tiekd.errors import RecipeError


class Hook:
    """Does nothing at every moment; a hook overrides the ones that it needs.

    `state` is the loop's TrainState (tiekd/training/state.py), which also says what is due.
    """

    def before_train(self, state) -> None:
        """Is called once, before the first iteration of this start.

        `state.iteration` is above 0 in a resumed run.
        """

    def after_iteration(self, state) -> None:
        """Is called after every iteration; `state.iteration` counts the one just finished."""

    def after_evaluation(self, state, metrics: dict[str, float]) -> None:
        """Is called after every evaluation of the validation frames, on all ranks.

        That is in the Evaluation hook's `after_iteration`, or in its `before_train` where a run
        that was stopped makes up for one. The weights are saved already if they are the best.

        Args:
            state: Where the run stands; `state.num_evaluated` frames were evaluated.
            metrics: The figures by name, the same on all ranks.
        """

    def after_train(self, state) -> None:
        """Is called once, after the last iteration or where a hook stopped the run.

        It is not called when training ends with an error.
        """

    def state_dict(self) -> dict:
        """Returns what a resumed run needs to continue as if it had not stopped.

        Plain numbers, strings, lists and dicts.
        """
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores what `state_dict` returned; is called before `before_train`."""


def check_moments(hook: Hook, where: str) -> None:
    """Refuses what isn't a hook, or one with a method for a moment that doesn't exist.

    Args:
        hook: The hook, of the project or from outside.
        where: Its place in the recipe and its name, for the error.

    Raises:
        RecipeError: It isn't a Hook; or a method's name begins with `before_` or `after_` and isn't
            one of Hook's, so that it would never be called.
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
