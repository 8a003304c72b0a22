"""The state of a run, for hooks to read."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.trained_on import TrainedOn
from tiekd.engine.step import Step
from tiekd.models.network import Prediction
from tiekd.training.hook import Hook


@dataclass
class TrainState:
    """The state of a run. In `after_iteration` all values are of the iteration just finished.

    Attributes:
        engine: The deepspeed.DeepSpeedEngine.
        recipe: The run's whole recipe, for records of the run.
        work_dir: The folder of the run.
        timestamp: Of this start, as in the log's file name.
        batch_size: Images per iteration, summed over all ranks.
        accumulation: Micro-batches per iteration and rank.
        iterations_per_epoch: Iterations in which every training sample is seen once.
        total_iterations: The iteration after which training ends.
        by_epoch: True if the recipe gives its length in epochs.
        hooks: In the order in which they are called.
        step: Runs a micro-batch on the engine; set before training.
        iteration: Finished iterations.
        lr: The learning rates used, one per parameter group.
        momentum: The momenta used, one per parameter group.
        losses: Means over this rank's micro-batches, 0-d, on the device.
        micro_losses: The losses of each of this rank's micro-batches.
        names: The samples' names in each of this rank's micro-batches.
        image_sums: Per micro-batch a (B,) tensor, not finite where an image isn't.
        grad_norm: The L2 norm of the gradient before clipping; None if unknown.
        time_s: Duration of the iteration in seconds.
        data_time_s: Part of `time_s` that was spent waiting for batches.
        batch: The last micro-batch.
        prediction: The network's prediction for it.
        teacher_depth: Its target depth, which is the ground truth in a run without a teacher.
        metrics: The metrics of the last evaluation, by name.
        num_evaluated: Number of frames in the last evaluation.
        orphaned: True if the run stops because its launcher has died.
        trained_on: The frames that the weights were trained on, on rank 0; None if unknown.
        stop_reason: Set by a hook, on every rank after the same iteration: training ends there.
    """

    engine: object
    recipe: dict
    work_dir: Path
    timestamp: str
    batch_size: int
    accumulation: int
    iterations_per_epoch: int
    total_iterations: int
    by_epoch: bool
    hooks: list[Hook] = field(default_factory=list)
    step: Step | None = None
    iteration: int = 0
    lr: list[float] = field(default_factory=list)
    momentum: list[float] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    micro_losses: list[dict[str, Tensor]] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    image_sums: list[Tensor] = field(default_factory=list)
    grad_norm: Tensor | float | None = None
    time_s: float = 0.0
    data_time_s: float = 0.0
    batch: Batch | None = None
    prediction: Prediction | None = None
    teacher_depth: Tensor | None = None
    metrics: dict[str, float] | None = None
    num_evaluated: int = 0
    orphaned: bool = False
    trained_on: TrainedOn | None = None
    stop_reason: str | None = None

    def begin_iteration(self) -> None:
        """Clears what `record` collects over an iteration's micro-batches."""
        self.losses, self.data_time_s = {}, 0.0
        self.micro_losses, self.names, self.image_sums = [], [], []

    def record(
        self,
        batch: Batch,
        teacher_depth: Tensor,
        prediction: Prediction,
        losses: dict[str, Tensor],
        grad_norm: Tensor | float | None,
    ) -> None:
        """Keeps what hooks read of a micro-batch. No host sync."""
        self.batch, self.teacher_depth, self.prediction = batch, teacher_depth, prediction
        self.grad_norm = grad_norm
        self.names.append(batch.names)
        self.image_sums.append(batch.image.flatten(1).sum(1))
        self.micro_losses.append({name: loss.detach() for name, loss in losses.items()})
        for name, loss in self.micro_losses[-1].items():
            self.losses[name] = self.losses.get(name, 0.0) + loss / self.accumulation

    def period(self, every: int, by: str = "iteration") -> int:
        """Returns the iterations in `every` epochs or iterations, as `by` ("epoch") says."""
        return every * (self.iterations_per_epoch if by == "epoch" else 1)

    def is_due(self, every: int, by: str = "iteration") -> bool:
        """Returns True after every `every`-th epoch or iteration, counted from the run's start."""
        return self.iteration % self.period(every, by) == 0

    @property
    def is_last(self) -> bool:
        """True after the recipe's last iteration."""
        return self.iteration == self.total_iterations

    @property
    def ends(self) -> bool:
        """True where no iteration follows: after the last one, or where a hook stops the run."""
        return self.is_last or self.stop_reason is not None

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped in this process for gradients that weren't finite. One sync."""
        return self.step.num_skipped

    @property
    def step_skipped(self) -> Tensor | bool:
        """True, on all ranks, where this iteration's step was skipped; a tensor on the device."""
        return self.step.skipped

    @property
    def searches_loss_scale(self) -> bool:
        """True where a skipped step may only mean that the loss scale is too large."""
        return self.step.searches_loss_scale

    @property
    def loss_scale(self) -> float | None:
        """The loss scale of fp16 after the iteration; None in the other precisions."""
        return self.step.loss_scale

    @property
    def epoch(self) -> int:
        """The epoch of the iteration just finished, from 1."""
        return (max(self.iteration, 1) - 1) // self.iterations_per_epoch + 1
