"""Writes the text log, with a line every `interval` iterations, and a `.log.json` beside it.

The format, rounding, windows and time estimates are those of mmcv 1.7's TextLoggerHook, so that
mmcv's tools can read these logs; the .log.json file has `images_per_s` in addition. A line shows
means over a window, i.e. the last `interval` iterations, and in fp16 the loss scale. Values that
are not finite are left out of the means, and a separate line states their number. Between two lines
nothing is copied from the device. A line costs one collective for the means and one for the memory,
each with a host sync. Every line is on disk when the call returns. If the run is counted in epochs,
windows don't cross the end of an epoch: iterations after an epoch's last full window aren't in any
line.
"""

import getpass
import json
import logging
import math
import os
import socket
from datetime import timedelta
from pathlib import Path

import torch

from tiekd.console import printable
from tiekd.distributed.comm import is_main, max_over_ranks, world_size
from tiekd.errors import RecipeError
from tiekd.evaluation.metrics import metrics_table, sets_table
from tiekd.files import append_line, cause_of, instead_of_file, replace_bytes
from tiekd.training.hook import Hook
from tiekd.training.meters import Window
from tiekd.workdir.environment import environment

_ITERATIONS_PER_EXP_NAME = 1000


class TextLog(Hook):
    """Writes `<work_dir>/<timestamp>.log` and `.log.json` on rank 0.

    The lines of the .log file are also printed on stderr.

    Attributes:
        interval: Iterations from one line to the next. `before_train` limits it to the length of
            an epoch, or of the whole run if `by_epoch` is False.
        by_epoch: True for lines `Epoch [3][1200/1514]`, False for `Iter [1200/38400]`; None for the
            unit in which the recipe gives the length of training.
        exp_name: The name of the run in the log; None for the name of the work dir.
        last_means: The values in the newest line about training, by name; empty before the first.
        last_iteration: The iteration of the newest line about training; 0 before the first.
        skipped_steps: The number of optimizer steps that were skipped before the newest line about
            training.
    """

    def __init__(
        self, interval: int = 50, by_epoch: bool | None = None, exp_name: str | None = None
    ):
        if type(interval) is not int or interval < 1:
            raise RecipeError(
                f"interval: got {interval!r}; it must be a whole number of iterations from 1"
            )
        self.interval, self.by_epoch, self.exp_name = interval, by_epoch, exp_name
        self.last_means: dict[str, float] = {}
        self.last_iteration = 0
        self._logger = logging.getLogger("depth")
        self._handlers: list[logging.Handler] = []
        self._json_path: Path | None = None
        # The size in bytes that each .log.json file had when the run was saved to the checkpoint
        # from which it now resumes; empty in a new run.
        self._sizes: dict[str, int] = {}
        self._window = Window()
        self._logged_time_s = 0.0
        self._start_iteration: int | None = None
        self.skipped_steps = 0

    def open(self, work_dir: Path, timestamp: str) -> None:
        """Opens the log files, on rank 0, so that `info` can be used before training begins.

        `before_train` also calls this method. A second call has no effect.

        Args:
            work_dir: The folder of the run.
            timestamp: The time at which this process started, as text. The files are named
                `<timestamp>.log` and `<timestamp>.log.json`.
        """
        if not is_main() or self._handlers:
            return
        path = Path(work_dir) / f"{timestamp}.log"
        self._json_path = path.with_name(f"{timestamp}.log.json")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        for handler in (
            logging.StreamHandler(),
            _LogFile(path, encoding="utf-8", errors="backslashreplace"),
        ):
            handler.setFormatter(
                logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s")
            )
            self._logger.addHandler(handler)
            self._handlers.append(handler)

    def drop_rows(self, work_dir: Path) -> None:
        """Deletes from .log.json files the rows of iterations to be trained again, on rank 0.

        These are the rows after the checkpoint from which the run resumes; if they stayed, the
        iterations would be in the files twice. In a new run the rows of all iterations are deleted.
        Rows about a start of the run are kept, and the .log files keep every line.

        Args:
            work_dir: The folder of the run; all .log.json files in it are changed.
        """
        paths = list(Path(work_dir).glob("*.log.json")) if is_main() else []
        if self._sizes and not any(path.name in self._sizes for path in paths):
            return  # the checkpoint is from another work dir, which has other log files
        for path in paths:
            # Skip a path that isn't a regular file: reading a pipe would wait for ever.
            if instead_of_file(path):
                continue
            # Keep the rows before the checkpoint byte for byte. Of later rows keep only those with
            # `env_info`, which are written once at each start of the run.
            rows = path.read_bytes()
            later = rows[self._sizes.get(path.name, 0) :].splitlines(keepends=True)
            kept = rows[: self._sizes.get(path.name, 0)] + b"".join(
                row for row in later if b'"env_info": "' in row
            )
            if kept != rows:
                replace_bytes(path, kept)

    def info(self, text: str) -> None:
        """Writes a message to the .log file and to stderr, on rank 0.

        Args:
            text: The message, one line or more.
        """
        if self._handlers:
            self._logger.info(printable(text, "\n\t"))

    def before_train(self, state) -> None:
        """Opens the log files, and writes the log's first lines, about the environment and the run.

        The attribute `interval` is shortened if it is longer than an epoch or the run. `by_epoch`
        and `exp_name` are set if they are None.

        Args:
            state: The state of the run.
        """
        self.open(state.work_dir, state.timestamp)
        if self.by_epoch is None:
            self.by_epoch = state.by_epoch
        # Limit the interval: a line would never be written if it were longer than an epoch, or than
        # a run that is counted in iterations.
        self.interval = min(
            self.interval, state.iterations_per_epoch if self.by_epoch else state.total_iterations
        )
        if self.exp_name is None:
            self.exp_name = Path(state.work_dir).name
        if self._start_iteration is None:
            self._start_iteration = state.iteration
        self.skipped_steps = state.skipped_steps
        if self._handlers:
            self._write_start(state)

    def after_iteration(self, state) -> None:
        """Adds an iteration's losses and times to the means, and writes a line if one is due.

        A line is due every `interval` iterations. Collective.

        Args:
            state: The state of the run, with the losses and times of this iteration.
        """
        values = {log_name(name): loss for name, loss in state.losses.items()}
        values["grad_norm"] = state.grad_norm
        self._window.add(values, state.time_s, state.data_time_s)
        position = self._position(state)
        if position % self.interval == 0:
            self._write_line(state)
        if self._ends_epoch(state):
            self._window = Window()

    def after_train(self, state) -> None:
        """Closes the log files, so that another run in this process can open its own files.

        Args:
            state: The state of the run; not used.
        """
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
        self._handlers = []

    def after_evaluation(self, state, metrics: dict[str, float]) -> None:
        """Writes the metrics of an evaluation as a table, a line and a .log.json row, on rank 0.

        Args:
            state: The state of the run; `state.num_evaluated` is the number of evaluated images.
            metrics: The metrics by name.
        """
        if not self._handlers:
            return
        comparison = state.teacher_comparison
        if state.set_metrics:
            self.info("Each data set:\n" + sets_table(state.set_metrics))
        # Write a heading above the table. If the metrics compare with the teacher, it states that
        # they don't measure accuracy.
        labels = [state.metrics_label, "" if comparison is None else comparison.label]
        self.info(", ".join(["Summary", *filter(None, labels)]) + ":")
        self.info("\n" + metrics_table(metrics))
        self._write_exp_name(state)
        epoch = f"[{state.epoch}]" if self.by_epoch else ""
        head = f"{'Epoch' if self.by_epoch else 'Iter'}(val) {epoch}[{state.num_evaluated}]\t"
        self.info(head + ", ".join(f"{name}: {_shown(value)}" for name, value in metrics.items()))
        row = {"mode": "val", "epoch": state.epoch, "iter": state.num_evaluated, "lr": state.lr[0]}
        if comparison is not None:
            self.info(comparison.text)
            row |= {"against": "teacher", **comparison.figures}
        for name, figures in state.set_metrics.items():
            row |= {f"{name}/{key}": value for key, value in figures.items()}
        self.write_json({**row, **metrics})

    def state_dict(self) -> dict:
        """Returns the state of the log as a dict for a checkpoint. Collective.

        It contains the sums since the last line, the time logged so far in seconds, the iteration
        at which the run was started, the number of ranks, and, on rank 0, the size of each
        .log.json file in bytes. There are two kinds of sums: those of this rank, and their mean
        over all ranks, for a resume on another number of ranks.
        """
        return {
            "logged_time_s": self._logged_time_s,
            "start_iteration": self._start_iteration,
            "window": self._window.state_dict(),
            "mean_window": self._window.mean_over_ranks(),
            "ranks": world_size(),
            "sizes": {p.name: p.stat().st_size for p in self._json_path.parent.glob("*.log.json")}
            if is_main()
            else {},
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the state that `state_dict` returned.

        With it, means and time estimates continue as if the run had not been interrupted.
        """
        self._logged_time_s = state_dict["logged_time_s"]
        self._start_iteration = state_dict["start_iteration"]
        # Restore this rank's own sums bit for bit if the number of ranks is the same; otherwise
        # start with the mean over the former ranks.
        self._window = Window(
            **state_dict["window" if state_dict["ranks"] == world_size() else "mean_window"]
        )
        self._sizes = state_dict["sizes"]

    def _write_start(self, state) -> None:
        rule = "-" * 60
        lines = "\n".join(f"{name}: {value}" for name, value in environment().items())
        self.info(f"Environment info:\n{rule}\n{lines}\n{rule}\n")
        self.info(
            f"Start running, host: {_user()}@{socket.gethostname()}, work_dir: "
            f"{Path(state.work_dir).absolute()}"
        )
        self.info(f"Hooks, in order: {', '.join(type(hook).__name__ for hook in state.hooks)}")
        epochs = math.ceil(state.total_iterations / state.iterations_per_epoch)
        extent = f"{epochs} epochs" if self.by_epoch else f"{state.total_iterations} iters"
        self.info(f"max: {extent}, {state.batch_size} images an iteration on {world_size()} ranks")
        seed = (state.recipe.get("train") or {}).get("seed")
        self.write_json({"env_info": lines, "seed": seed, "exp_name": self.exp_name})

    def _write_line(self, state) -> None:
        """Writes a line with means over all iterations since the last line and all ranks.

        The same values are written as a row of the .log.json file. Collective.

        Args:
            state: The state of the run, after the last iteration of the line.
        """
        # Compute the means over all ranks and all iterations since the last log line, and the
        # largest peak memory of any rank.
        window, self._window = self._window, Window()
        window.wait_for_device()
        values, num_broken = window.means_over_ranks()
        memory_mb = _peak_memory_mb(window.device)
        memory = {} if memory_mb is None else {"memory": int(max_over_ranks(memory_mb))}
        scale = {} if state.loss_scale is None else {"loss_scale": state.loss_scale}
        # Estimate the remaining time.
        time_s = window.time_s / window.iterations
        self._logged_time_s += time_s * window.iterations
        # Estimate by dividing the logged time by the number of all finished iterations. As in mmcv,
        # iterations that no log line covers count as finished, but their time is missing, so the
        # estimate is too small by at most the share of these iterations.
        per_iteration_s = self._logged_time_s / (state.iteration - self._start_iteration)
        eta = timedelta(seconds=int(per_iteration_s * (state.total_iterations - state.iteration)))
        # Keep the values of this line for the TensorBoard hook, which writes them, too.
        self.last_means = {
            "lr": state.lr[0],
            **memory,
            "data_time": window.data_time_s / window.iterations,
            **values,
            **scale,
            "time": time_s,
            "images_per_s": state.batch_size / max(time_s, 1e-9),
        }
        self.last_iteration = state.iteration
        # Write a line about skipped steps first, if there were any, then the line itself, and its
        # row in the .log.json file.
        self._write_skipped(state, num_broken, window.iterations)
        self._write_exp_name(state)
        self.info(self._train_line(state, eta, {**memory, **values, **scale}))
        self.write_json(
            {
                "mode": "train",
                "epoch": state.epoch,
                "iter": self._position(state),
                **self.last_means,
            }
        )

    def _train_line(self, state, eta: timedelta, shown: dict[str, float]) -> str:
        if self.by_epoch:
            head = f"Epoch [{state.epoch}][{self._position(state)}/{state.iterations_per_epoch}]\t"
        else:
            head = f"Iter [{state.iteration}/{state.total_iterations}]\t"
        means = self.last_means
        items = [
            f"lr: {means['lr']:.3e}, eta: {eta}, time: {means['time']:.3f}, data_time: "
            f"{means['data_time']:.3f}",
            *(f"{name}: {_shown(value)}" for name, value in shown.items()),
        ]
        return head + ", ".join(items)

    def _write_skipped(self, state, num_broken: int, iterations: int) -> None:
        count = state.skipped_steps - self.skipped_steps
        if count:
            self.skipped_steps += count
            self.info(
                f"skipped {count} steps: loss or gradient was not finite; the weights stayed as "
                "they were"
            )
        elif num_broken:
            self.info(
                f"{num_broken} of the last {iterations} iterations had a loss or gradient that was "
                "not finite"
            )

    def _write_exp_name(self, state) -> None:
        if self._ends_epoch(state) or state.is_due(_ITERATIONS_PER_EXP_NAME):
            self.info(f"Exp name: {self.exp_name}")

    def write_json(self, values: dict) -> None:
        """Appends a row to the .log.json file, on rank 0.

        Rows with a key `epoch` have mmcv's format; mmcv's tools ignore all other rows.

        Args:
            values: The row: key -> value. Floats are rounded to five decimals.
        """
        if not self._handlers:
            return
        rounded = {
            name: round(value, 5) if isinstance(value, float) else value
            for name, value in values.items()
        }
        try:
            append_line(self._json_path, json.dumps(rounded))
        except OSError as error:
            self.info(
                f"{self._json_path}: a row could not be written ({cause_of(error)}); training "
                "continues"
            )

    def _position(self, state) -> int:
        return (
            (state.iteration - 1) % state.iterations_per_epoch + 1
            if self.by_epoch
            else state.iteration
        )

    def _ends_epoch(self, state) -> bool:
        return self.by_epoch and state.is_due(1, "epoch")


build = TextLog


def log_name(loss: str) -> str:
    """Returns a loss's name in the log.

    A term's name gets the prefix `decode.`, as in mmcv's logs. The name `loss`, the sum of all
    terms, isn't changed.

    Args:
        loss: The name that the criterion gives the loss, such as `loss_dpm` or `loss`.
    """
    return loss if loss == "loss" else f"decode.{loss}"


class _LogFile(logging.FileHandler):
    """A log file that drops lines, without raising an error, while the disk is full.

    The lines are still printed on the terminal, and training continues.
    """

    def handleError(self, _record) -> None:
        pass


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _peak_memory_mb(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else None


def _shown(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
