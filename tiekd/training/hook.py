"""The three moments of a run at which a hook is called, and the state that it may keep.

Hooks run in the order of their list, on every rank; there are no priorities and no further moments. A hook that needs
another one's result stands behind it in the list. Left out: moments inside an iteration (that is the loop's business).
"""


class Hook:
    """Does nothing at every moment; a hook overrides the ones it needs. `state` is the loop's TrainState."""

    def before_train(self, state) -> None:
        """Once, before the first iteration; `state.iteration` is above 0 in a resumed run."""

    def after_iteration(self, state) -> None:
        """After every iteration; `state.iteration` counts the one just finished, from 1."""

    def after_train(self, state) -> None:
        """Once, after the last iteration or where a hook stopped the run; not when training ends with an error."""

    def state_dict(self) -> dict:
        """What a resumed run needs to go on as if it had not stopped: plain numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes back what `state_dict` gave, before `before_train`."""
