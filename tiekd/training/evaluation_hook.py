"""Evaluates the student during training, logs its metrics and saves the best weights."""

import math
from collections.abc import Callable
from typing import NamedTuple, TextIO

import torch
from torch.utils.data import Dataset

from tiekd import console
from tiekd.data import trained_on
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.distributed import comm
from tiekd.evaluation import metrics
from tiekd.evaluation.agreement import (
    TEACHER,
    Agreement,
    EdgeFigures,
    EdgeRows,
    Reference,
    errors_by_name,
)
from tiekd.evaluation.compare import Result
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings, evaluate
from tiekd.evaluation.per_frame import FrameRows, FrameTable
from tiekd.evaluation.range_errors import range_figures
from tiekd.evaluation.report import ranges_table
from tiekd.models.flip import Predictor
from tiekd.models.network import Network
from tiekd.training.hook import Hook
from tiekd.workdir import weights_file


class ValidationSet(NamedTuple):
    """The validation frames of one data set, and how they are evaluated.

    Attributes:
        name: The data set's name in the recipe; "" if the recipe has only one data set.
        dataset: The validation frames.
        settings: The settings of the evaluation of this set, such as the crop.
        reference: The teacher whose depth takes the place of ground truth in the evaluation; None
            to evaluate against ground truth.
    """

    name: str
    dataset: Dataset
    settings: EvaluationSettings
    reference: Reference | None


class Evaluation(Hook):
    """Evaluates the student every `settings.interval` epochs or iterations, and at the end.

    A run that is stopped, for example by a signal, has little time left. If an evaluation is due at
    the iteration at which it stops, the evaluation is postponed until the run resumes.

    Attributes:
        settings: When and how to evaluate: the section `evaluation` of the recipe.
        dataset: The validation frames.
        replica: A plain fp32 copy of the student on the device. Each evaluation copies the engine's
            weights into it.
        device: The device of the replica.
        loading: The settings of the data loader.
        info: Function that writes a line to the log.
        terminal: The stream on which the progress of an evaluation is shown if it is a terminal;
            None to show none.
        resize: The resize of images before the student gets them.
        best: The best value so far of the metric `settings.save_best`; None before the first.
        reference: The teacher whose depth takes the place of ground truth in evaluations; None to
            evaluate against ground truth. `build_hooks` sets it.
        sets: If the recipe lists several data sets, the validation frames of each, which are used
            in place of `dataset` and `reference`; `build_hooks` sets them. Empty for one data set.
        overlap: How many of the validation frames the student was trained on; None if unknown, and
            on ranks above 0.
        postponed_lr: If an evaluation is postponed, the learning rates of its iteration, with which
            it will be logged; else None.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        dataset: Dataset,
        replica: Network,
        device: torch.device,
        loading: Loading,
        info: Callable[[str], None],
        terminal: TextIO | None = None,
        resize: Resize = OWN_SIZE,
    ):
        self.settings, self.dataset, self.replica = settings, dataset, replica
        self.device, self.loading, self.info = device, loading, info
        self.terminal, self.resize = terminal, resize
        self.best: float | None = None
        self.reference: Reference | None = None
        self.sets: tuple[ValidationSet, ...] = ()
        self.overlap: trained_on.Overlap | None = None
        self.postponed_lr: list[float] | None = None

    @property
    def protocol(self) -> EvaluationProtocol:
        """The settings and the depth range for evaluations of the first or only data set."""
        return self.protocol_of(self.validation_sets[0])

    @property
    def validation_sets(self) -> tuple[ValidationSet, ...]:
        """The data sets that are evaluated, as `ValidationSet` objects.

        If the recipe has only one data set, it is the only one, and its name is "".
        """
        return self.sets or (ValidationSet("", self.dataset, self.settings, self.reference),)

    @property
    def metrics_label(self) -> str:
        """Text that names the data sets on which the metrics in `state.metrics` are measured.

        These metrics choose the best weights. The text is the name of one data set or "mean over
        NAME, NAME"; "" if the recipe has only one data set.
        """
        if not self.sets:
            return ""
        names = ", ".join(each.name for each in self.sets)
        return self.settings.set or f"mean over {names}"

    @property
    def _compared_with(self) -> str | None:
        """Text for the log, stating that metrics compare the student with a teacher.

        None if all data sets are evaluated against ground truth.
        """
        references = [each.reference for each in self.validation_sets]
        return next((each.label for each in references if each is not None), None)

    def protocol_of(self, validated: ValidationSet) -> EvaluationProtocol:
        """Returns the protocol of a data set's evaluation: settings, depth range and reference.

        Args:
            validated: The data set.
        """
        depths_m = self.replica.min_depth, self.replica.max_depth
        return EvaluationProtocol(validated.settings, *depths_m, reference=validated.reference)

    def before_train(self, state) -> None:
        """Warns if the student was trained on validation frames, and makes a postponed evaluation.

        The warning is logged on rank 0. The method is collective if an evaluation was postponed.

        Args:
            state: The state of the run. A postponed evaluation sets its metrics.
        """
        if comm.is_main():
            for each in self.validation_sets:
                found = trained_on.overlap_of(state.trained_on, each.dataset)
                if found is not None and found.seen:
                    of_set = f" of {each.name}" if each.name else ""
                    self.info(
                        f"Warning: validation{of_set}: {found}, so the metrics are likely better "
                        "than on new images; to measure those, validate on frames that were not "
                        "trained on"
                    )
                # Remember how many validation frames were trained on, for the log lines about the
                # best weights. Consider only the data sets whose metrics choose the best weights.
                is_chosen = not self.sets or self.settings.set in (None, each.name)
                if is_chosen and (self.overlap is None or not self.overlap.seen):
                    self.overlap = found
        if self.postponed_lr is not None:
            state.lr, self.postponed_lr = self.postponed_lr, None
            self._evaluate(state)

    def after_iteration(self, state) -> None:
        """Evaluates the student if an evaluation is due. Collective.

        If the run is being stopped at this iteration, the evaluation is postponed to its resume.

        Args:
            state: The state of the run. An evaluation sets its metrics.
        """
        if not state.is_due(self.settings.interval, self.settings.by) and not state.is_last:
            return
        if state.stop_reason is not None and not state.is_last:
            self.postponed_lr = state.lr
        else:
            self._evaluate(state)

    def _evaluate(self, state) -> None:
        # Gather the weights on rank 0, and copy them into every rank's replica.
        weights = state.weights()
        self._fill_replica(weights)
        scored = {each.name: self._score(each) for each in self.validation_sets}
        state.set_metrics = {name: figures for name, (figures, _) in scored.items() if name}
        state.metrics_label = self.metrics_label
        chosen = self.settings.set if self.sets else ""
        if chosen is None:
            values = [figures for figures, _ in scored.values()]
            state.metrics = {
                name: sum(each[name] for each in values) / len(values) for name in values[0]
            }
        else:
            state.metrics = scored[chosen][0]
        state.num_evaluated = sum(
            len(each.dataset) for each in self.validation_sets if chosen in (None, each.name)
        )
        state.teacher_comparison = _join_by_set(
            {name: found for name, (_, found) in scored.items()}
        )
        # Save the best weights before other hooks are called, since such a hook may read the file
        # or raise an error. Write the log line about them only afterwards, because one of these
        # hooks logs the metrics.
        line = self._keep_if_best(weights, state)
        for hook in state.hooks:
            hook.after_evaluation(state, state.metrics)
        if line is not None:
            self.info(line)

    def _score(self, validated: ValidationSet) -> tuple[dict[str, float], Agreement | None]:
        """Evaluates the replica on one data set. Collective.

        Args:
            validated: The data set.

        Returns:
            1. The nine metrics by name.
            2. If the data set is evaluated against its teacher, the results that go beyond the
               metrics: errors by depth range and near depth edges. None if it is evaluated against
               ground truth.
        """
        protocol = self.protocol_of(validated)
        scored = protocol.min_depth, protocol.cap, validated.settings.crop
        rows, edges = FrameRows(*scored), EdgeRows(*scored)
        figures = evaluate(
            Predictor(self.replica, self.settings.flip),
            validated.dataset,
            protocol,
            self.device,
            loading=self.loading,
            resize=self.resize,
            watchers=() if validated.reference is None else (rows, edges),
            out=self.terminal,
        )
        if validated.reference is None:
            return figures, None
        return figures, self._compare_with_teacher(
            validated, rows.gather(), edges.gather(), figures
        )

    def _compare_with_teacher(
        self, validated: ValidationSet, table: FrameTable, edges: EdgeFigures, figures: dict
    ) -> Agreement:
        """Returns the results of an evaluation against the teacher that go beyond the nine metrics.

        They are the errors by range of the teacher's depth and near depth edges, as numbers and as
        text for the log.

        Args:
            validated: The data set.
            table: The metrics, and the sums of errors by depth range, of each frame.
            edges: The errors near depth edges.
            figures: The nine metrics by name.
        """
        ranges = range_figures(table.sums, self.protocol_of(validated).cap)
        by_range = ranges_table({"student": Result(None, figures, ranges, table)})
        text = f"By range of the teacher's depth, mean over pixels:\n{by_range}\n{edges}"
        return Agreement(validated.reference.label, errors_by_name(ranges, edges), text)

    def _keep_if_best(self, weights: dict, state) -> str | None:
        """Saves the weights if the metric `settings.save_best` is the best so far.

        Args:
            weights: The student's weights and buffers by name, on rank 0; empty on other ranks.
            state: The state of the run, with the metrics of these weights.

        Returns:
            A line for the log: best weights were saved, or couldn't be, or the metric isn't finite.
            None if the metric is finite but not the best.
        """
        name = self.settings.save_best
        value = state.metrics[name]
        if not math.isfinite(value):
            # If there are several data sets, report the first one whose metric isn't finite.
            found = [
                (state.set_metrics[each.name][name] if each.name else value, each)
                for each in self.validation_sets
                if not self.sets or self.settings.set in (None, each.name)
            ]
            return self._describe_nonfinite(
                name, *next(pair for pair in found if not math.isfinite(pair[0]))
            )
        if self.best is None or metrics.is_better(name, value, self.best):
            return self._save_best(name, weights, state)
        return None

    def _describe_nonfinite(self, name: str, value: float, validated: ValidationSet) -> str:
        """Returns a line for the log that says why a metric isn't finite.

        Weights with such a metric are never saved as the best.

        Args:
            name: The metric's name.
            value: The metric's value, infinite or NaN.
            validated: The data set on which the metric was measured.
        """
        of_set = f" of {validated.name}" if validated.name else ""
        if not math.isnan(value):
            return (
                f"No best is saved: {name}{of_set} is {value}, since depth was predicted that is "
                "not finite or not above 0"
            )
        protocol = self.protocol_of(validated)
        compared, program = "ground truth", "check_data"
        if validated.reference is not None:
            compared, program = "teacher's depth", "audit_teacher"
        return (
            f"No best is saved: {name}{of_set} is nan, since no pixel of the "
            f"{len(validated.dataset)} "
            f"validation frames counts ({compared} {protocol.min_depth:g} < d < "
            f"{protocol.cap:g} m, crop {validated.settings.crop}); look at the {compared} with "
            f"{console.command(program)}, or set another evaluation.crop or evaluation.cap"
        )

    def _save_best(self, name: str, weights: dict, state) -> str:
        """Saves new best weights, on rank 0.

        Args:
            name: The name of the metric that is the best so far, which is part of the file's name.
            weights: The student's weights and buffers by name, on rank 0; empty on other ranks.
            state: The state of the run, with the metrics of these weights.

        Returns:
            A line for the log. If writing fails, no error is raised: the older best weights are
            kept, and the line on rank 0 says so.
        """
        # Write the weights on rank 0, with the metrics, the teachers, and the frames that the
        # network was trained on, so that a later evaluation can warn if it uses one of those
        # frames.
        value, path = state.metrics[name], state.work_dir / f"best_{name}.pth"
        if comm.is_main():
            try:
                facts = {"metrics": state.metrics, "resize": self.resize.node()}
                facts |= state.training_record
                if self.sets:
                    facts |= {"metrics_of": self.metrics_label, "metrics_by_set": state.set_metrics}
                if self._compared_with is not None:
                    facts |= {"against": TEACHER, "metrics_are": self._compared_with}
                if state.average is not None:
                    facts[weights_file.AVERAGED] = state.average.description()
                weights_file.replace_best(
                    path, weights, state.recipe["network"], state.iteration, **facts
                )
            except OSError as error:
                problem = f"{path} was not written, {error.strerror}"
                return f"{problem}; training continues, an older one stays"
        self.best = value
        label = f" ({self.overlap})" if self.overlap is not None and self.overlap.seen else ""
        best = f"Best {name} so far: {value:.4f} at iteration {state.iteration}"
        if self._compared_with is not None:
            label += f" ({self._compared_with})"
        if self.sets:
            label += f" ({self.metrics_label})"
        return f"{best}, saved as best_{name}.pth{label}"

    def state_dict(self) -> dict:
        """Returns the hook's state for a checkpoint, a dict of plain values.

        Its keys are `metric` and `best`, the name and the best value of the metric that chooses the
        best weights; `resize`, how images are resized; `owed`, the attribute `postponed_lr`; and,
        with several data sets, `set`, which of them the metric is on.
        """
        compared = {"metric": self.settings.save_best, "resize": self.resize.node()}
        if self.sets:
            compared["set"] = self.metrics_label
        return {"best": self.best, "owed": self.postponed_lr, **compared}

    def load_state_dict(self, state: dict) -> None:
        """Restores the state that `state_dict` returned.

        The best value is dropped, i.e. `best` becomes None, if the results of new evaluations can't
        be compared with it: if the metric or its data sets have changed, if the value isn't finite,
        or if an older version of tiekd evaluated images at another size.

        Args:
            state: The state that `state_dict` returned when the checkpoint was saved.
        """
        self.best, self.postponed_lr = state["best"], state["owed"]
        other_metric = state.get("metric", self.settings.save_best) != self.settings.save_best
        # Drop the best value if the state is that of an older version, which saved no `resize`: it
        # evaluated images at their own size, whatever their size in training. The best value may
        # also be NaN, if no pixel had ground truth.
        own_size = "resize" not in state and self.resize not in (
            OWN_SIZE,
            Resize(at_most=self.resize.at_most),
        )
        other_metric = other_metric or state.get("set", "") != self.metrics_label
        if other_metric or own_size or (self.best is not None and not math.isfinite(self.best)):
            self.best = None

    def _fill_replica(self, weights: dict) -> None:
        """Copies the student's weights into the replica of every rank. Collective.

        It costs one broadcast per tensor.

        Args:
            weights: The weights and buffers by name, on rank 0; not used on other ranks.
        """
        with torch.no_grad():
            for name, tensor in self.replica.state_dict().items():
                if comm.is_main():
                    tensor.copy_(weights[name])
                if comm.world_size() > 1:
                    torch.distributed.broadcast(tensor, src=0)
        self.replica.eval()


def _join_by_set(found: dict[str, Agreement | None]) -> Agreement | None:
    """Joins the results of evaluations against the teachers of several data sets.

    Args:
        found: The results of each data set by its name, as `_compare_with_teacher` returns them;
            None for a set that is evaluated against ground truth. The only data set of a recipe has
            the name "".

    Returns:
        The joined results, in which the name of a number begins with its set's name, as in
        `street/abs_rel_at_edges`. None if every set is evaluated against ground truth.
    """
    known = {name: each for name, each in found.items() if each is not None}
    if not known or "" in known:
        return known.get("")
    figures = {
        f"{name}/{key}": value
        for name, each in known.items()
        for key, value in each.figures.items()
    }
    text = "\n".join(f"{name}: {each.text}" for name, each in known.items())
    return Agreement(next(iter(known.values())).label, figures, text)
