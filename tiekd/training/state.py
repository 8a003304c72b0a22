"""`TrainState`: the values of a run that its hooks read, such as iteration, losses and engine."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tiekd.data import learned_from
from tiekd.data.batch import Batch
from tiekd.data.learned_from import Teacher
from tiekd.data.trained_on import TrainedOn, as_plain
from tiekd.engine import full_state
from tiekd.engine.moving_average import MovingAverage
from tiekd.engine.step import Step
from tiekd.evaluation.agreement import Agreement
from tiekd.models.network import Prediction
from tiekd.training.hook import Hook


@dataclass
class TrainState:
    """The state of a run. In `after_iteration` all values are those of the finished iteration.

    Attributes:
        engine: The deepspeed.DeepSpeedEngine.
        recipe: The run's whole recipe, for the records that the run writes.
        work_dir: The folder of the run.
        timestamp: The time at which this process started, as text, as in the log's file name.
        batch_size: Images per iteration, summed over all ranks.
        accumulation: Micro-batches per iteration on each rank.
        iterations_per_epoch: The number of iterations in which every training sample is seen once.
        total_iterations: The iteration after which training ends.
        by_epoch: True if the recipe gives the length of training in epochs.
        hooks: The hooks, in the order in which they are called.
        step: The object that runs a micro-batch on the engine; None until training begins.
        average: The moving average of the weights, which the hook ema sets before training; None
            without that hook.
        resumed_from: The folder of the checkpoint from which the run resumed; None for a new run.
        iteration: The number of finished iterations.
        lr: The learning rates of this iteration, one per parameter group.
        momentum: The momenta of this iteration, one per parameter group.
        losses: For each loss by name its mean over this rank's micro-batches, a 0-d tensor on the
            device.
        micro_losses: For each of this rank's micro-batches its losses by name.
        names: For each of this rank's micro-batches the names of its samples.
        image_sums: For each micro-batch the sum over each image's values, (B,). A sum is not finite
            if the image has a value that isn't.
        grad_norm: The L2 norm of the gradient before clipping; None if unknown.
        time_s: Duration of the iteration in seconds.
        data_time_s: The part of `time_s` that was spent waiting for batches.
        batch: The last micro-batch.
        prediction: The network's prediction for `batch`.
        teacher_depth: The target depth of `batch`, (B, 1, H, W) in metres: the teacher's, or the
            ground truth in a run without a teacher.
        metrics: The metrics of the last evaluation, by name. With several data sets they are those
            by which the best weights are chosen.
        set_metrics: With several data sets, a dict from each set's name to its metrics; else empty.
        metrics_label: With several data sets, text that names those on which `metrics` are
            measured; else "".
        num_evaluated: The number of images in the last evaluation, on all ranks together.
        teacher_comparison: If the last evaluation compared with the teacher, its further results:
            errors by depth range and near depth edges. None if it compared with ground truth.
        orphaned: True if the run stops because its launcher has died.
        trained_on: The images that the weights were trained on, on rank 0; None if unknown.
        teachers: The teachers from which the weights learned, on rank 0
            (tiekd/data/learned_from.py).
        stop_reason: The reason to stop training after this iteration; None to continue. A hook sets
            it, on every rank after the same iteration.
        stopped_early: True if that reason completes the run, so that it needn't be resumed.
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
    average: MovingAverage | None = None
    resumed_from: Path | None = None
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
    set_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    metrics_label: str = ""
    num_evaluated: int = 0
    teacher_comparison: Agreement | None = None
    orphaned: bool = False
    trained_on: TrainedOn | None = None
    teachers: list[Teacher] = field(default_factory=list)
    stop_reason: str | None = None
    stopped_early: bool = False

    def begin_iteration(self) -> None:
        """Clears the values that `record` collects over the micro-batches of an iteration."""
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
        """Stores a micro-batch and its results for the hooks. No host sync.

        Args:
            batch: The micro-batch.
            teacher_depth: The target depth of `batch`, (B, 1, H, W) in metres: the teacher's, or
                the ground truth in a run without a teacher.
            prediction: The network's prediction for `batch`.
            losses: The losses of `batch` by name, 0-d tensors.
            grad_norm: The L2 norm of the iteration's gradient; None before the last micro-batch.
        """
        self.batch, self.teacher_depth, self.prediction = batch, teacher_depth, prediction
        self.grad_norm = grad_norm
        self.names.append(batch.names)
        self.image_sums.append(batch.image.flatten(1).sum(1))
        self.micro_losses.append({name: loss.detach() for name, loss in losses.items()})
        for name, loss in self.micro_losses[-1].items():
            self.losses[name] = self.losses.get(name, 0.0) + loss / self.accumulation

    def period(self, every: int, by: str = "iteration") -> int:
        """Returns the length of an interval as a number of iterations.

        Args:
            every: The length of the interval, in epochs or iterations.
            by: The unit of `every`: "epoch" or "iteration".
        """
        return every * (self.iterations_per_epoch if by == "epoch" else 1)

    def is_due(self, every: int, by: str = "iteration") -> bool:
        """Returns True if the number of finished iterations is a multiple of an interval.

        Iterations are counted from the start of the run, across resumes.

        Args:
            every: The length of the interval, in epochs or iterations.
            by: The unit of `every`: "epoch" or "iteration".
        """
        return self.iteration % self.period(every, by) == 0

    def weights(self) -> dict[str, Tensor]:
        """Gathers the weights that are evaluated and exported, on rank 0. Collective.

        They are the moving average of the weights if there is one, else the newest weights.

        Returns:
            On rank 0 a dict of fp32 tensors on the CPU by name; an empty dict on other ranks.
        """
        return full_state.weights(self.engine) if self.average is None else self.average.weights()

    @property
    def is_last(self) -> bool:
        """True if the finished iteration is the last one that the recipe asks for."""
        return self.iteration == self.total_iterations

    @property
    def ends(self) -> bool:
        """True if the finished iteration was the last one, or a hook has set `stop_reason`."""
        return self.is_last or self.stop_reason is not None

    @property
    def skipped_steps(self) -> int:
        """The number of optimizer steps that this process skipped for non-finite gradients.

        Costs one host sync.
        """
        return self.step.num_skipped

    @property
    def step_skipped(self) -> Tensor | bool:
        """True, on all ranks, if this iteration's optimizer step was skipped.

        The value is a bool, or a 0-d tensor on the device. To read such a tensor on the host costs
        a host sync.
        """
        return self.step.skipped

    @property
    def searches_loss_scale(self) -> bool:
        """True if training is in fp16, and its loss scale adapts itself and can still be lowered.

        A skipped step may then only mean that the loss scale is too large.
        """
        return self.step.searches_loss_scale

    @property
    def loss_scale(self) -> float | None:
        """The factor by which fp16 multiplies the next iteration's loss; None in bf16 and fp32."""
        return self.step.loss_scale

    @property
    def training_record(self) -> dict:
        """The record, for weights files, of the frames and teachers from which the weights learned.

        It is a dict of plain values.
        """
        return {**as_plain(self.trained_on), learned_from.KEY: self.teachers}

    @property
    def epoch(self) -> int:
        """The epoch of the iteration just finished, from 1."""
        return (max(self.iteration, 1) - 1) // self.iterations_per_epoch + 1
