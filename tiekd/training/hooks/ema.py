"""Averages the student's weights over iterations, and evaluates and exports the average.

    hooks: [{name: ema, decay: 0.999}]

The average is an exponential moving average of the fp32 weights and of BatchNorm's statistics
(tiekd/engine/moving_average.py describes the method and its cost). Training itself is unchanged:
the average is never trained. While the hook is in the recipe, evaluations, the best weights and a
checkpoint's student.pth are those of the average. trained.pth in the checkpoint has the weights
themselves, from which the run resumes. An iteration whose optimizer step was skipped doesn't change
the average. Not covered: TensorBoard's images of training batches, which show the weights
themselves.
"""

from collections.abc import Callable

from tiekd.engine.moving_average import MovingAverage
from tiekd.errors import RecipeError
from tiekd.training.hook import Hook
from tiekd.workdir import checkpoints


class Ema(Hook):
    """Keeps the moving average of the weights in `state.average`.

    In the list of hooks it comes before the evaluation, which evaluates the average of the same
    iteration.

    Attributes:
        decay: The weight of the old average in an iteration's new average, from 0 to below 1.
        warmup: True to begin with a decay of 0.1, which rises to `decay`.
        info: Function that writes a message to the log.
    """

    def __init__(
        self,
        decay: float = 0.999,
        warmup: bool = True,
        info: Callable[[str], None] = lambda _: None,
    ):
        if not 0 <= decay < 1:
            raise RecipeError(
                f"decay: got {decay!r}; it must be from 0 to below 1, such as 0.999 for an average "
                "over some 1000 iterations"
            )
        self.decay, self.warmup, self.info = decay, warmup, info
        self._average: MovingAverage | None = None
        self._num_restored: int | None = None

    def before_train(self, state) -> None:
        """Begins the average with the current weights, or restores the checkpoint's average.

        Collective.

        Args:
            state: The state of the run. Its `average` is set.
        """
        self._average = state.average = MovingAverage(state.engine, self.decay, self.warmup)
        begun = "begins with the present weights"
        if self._num_restored is not None:
            path = state.resumed_from / checkpoints.STUDENT
            values = state.engine.checkpoint_files.load(path)["state_dict"]
            self._average.restore(values, self._num_restored)
            begun = f"continues after {self._num_restored} iterations"
        decay = f"min({self.decay:g}, (1 + n) / (10 + n))" if self.warmup else f"{self.decay:g}"
        self.info(
            "EMA: evaluations, best weights and student.pth are of the moving average of the "
            f"weights, with decay {decay} after n iterations; it {begun}, and takes "
            f"{self._average.num_bytes / 1e6:.1f} MB on rank 0"
        )

    def after_iteration(self, state) -> None:
        """Adds this iteration's weights to the average. No host sync.

        Args:
            state: The state of the run.
        """
        self._average.update(state.step_skipped)

    def state_dict(self) -> dict:
        """Returns a dict with the number of averaged iterations, `num_updates`, for a checkpoint.

        The average itself is saved in the checkpoint's student.pth.
        """
        return {"num_updates": self._average.num_updates}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the state that `state_dict` returned; `before_train` loads the average."""
        self._num_restored = state_dict["num_updates"]


build = Ema
