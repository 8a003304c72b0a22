"""Where a run stands, for hooks to read."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.trained_on import TrainedOn
from tiekd.engine import step
from tiekd.models.network import Prediction
from tiekd.training.hook import Hook


@dataclass
class TrainState:
    """Where a run stands, for hooks to read. In `after_iteration` all values are of the iteration just finished."""

    engine: object  # deepspeed.DeepSpeedEngine
    recipe: dict
    work_dir: Path
    timestamp: str  # of this start, as in the log's file name
    batch_size: int  # global
    accumulation: int
    iterations_per_epoch: int
    total_iterations: int
    by_epoch: bool
    hooks: list[Hook] = field(default_factory=list)
    iteration: int = 0  # finished iterations
    lr: list[float] = field(default_factory=list)  # used in this iteration, one a parameter group
    momentum: list[float] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)  # means over this rank's micro-batches, on the device
    micro_losses: list[dict[str, Tensor]] = field(default_factory=list)  # of each of this rank's micro-batches
    names: list[list[str]] = field(default_factory=list)  # of the samples in each of this rank's micro-batches
    image_sums: list[Tensor] = field(default_factory=list)  # (B,) of each micro-batch: not finite where a picture isn't
    grad_norm: Tensor | float | None = None  # before clipping
    time_s: float = 0.0
    data_time_s: float = 0.0
    batch: Batch | None = None  # the last micro-batch
    prediction: Prediction | None = None
    teacher_depth: Tensor | None = None  # the ground truth in a run without a teacher
    metrics: dict[str, float] | None = None  # of the last evaluation
    orphaned: bool = False  # set with stop_reason where nobody asked for the stop, but the launcher is gone
    trained_on: TrainedOn | None = None  # on rank 0; None where the data set doesn't say
    stop_reason: str | None = None  # set by a hook, on every rank after the same iteration: training ends here

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped in this process because a gradient was not finite. One host sync."""
        return step.skipped_steps(self.engine)

    @property
    def step_skipped(self) -> Tensor | bool:
        """Whether this iteration's step was skipped, the same on all ranks; a tensor is on the device."""
        return step.step_skipped(self.engine)

    @property
    def searches_loss_scale(self) -> bool:
        """Whether a step may be skipped for no more than a loss scale that is too large."""
        return step.searches_loss_scale(self.engine)

    @property
    def loss_scale(self) -> float | None:
        """Of fp16, after the iteration; None in the other precisions."""
        return step.loss_scale(self.engine)

    @property
    def epoch(self) -> int:
        """The epoch of the iteration just finished, from 1."""
        return (max(self.iteration, 1) - 1) // self.iterations_per_epoch + 1
