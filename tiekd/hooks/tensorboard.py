"""TensorBoard: the scalars that the text log shows, named as mmcv's TensorboardLoggerHook does, and pictures.

Stands behind `text_log` in the list of hooks and takes its means, so scalars cost no further collective or host sync.
Pictures are of rank 0's newest batch and copy `num_images` images to the host every `image_interval` iterations.
Steps are iterations. What an interrupted run had written past the point that it resumes from is purged. Left out:
histograms of weights, graphs, text.
"""

import shutil
from pathlib import Path

import numpy as np
from torch import Tensor

from tiekd.distributed import is_main
from tiekd.errors import LaunchError, RecipeError
from tiekd.hooks.base import Hook
from tiekd.hooks.text_log import TextLog
from tiekd.pictures import colourise, denormalise, dilate, error_map, panel

_ROOM_BYTES = 8 << 20


class TensorBoard(Hook):
    """Writes `<work_dir>/tf_logs` on rank 0.

    interval: least iterations between scalars; they come with the text log's lines. image_interval: iterations
    between pictures, 0 for none; the last iteration has one, too. num_images: rows of a picture, at most the batch.
    max_depth: metres at the far end of the colours; errors are shown up to a tenth of it. text_log: where the means
    come from; None takes the first TextLog of `state.hooks`.
    """

    def __init__(
        self,
        interval: int = 1,
        image_interval: int = 500,
        num_images: int = 2,
        max_depth: float = 80.0,
        text_log: TextLog | None = None,
    ):
        for name, value, least in (
            ("interval", interval, 1),
            ("image_interval", image_interval, 0),
            ("num_images", num_images, 1),
        ):
            if type(value) is not int or value < least:
                raise RecipeError(f"tensorboard.{name}: got {value!r}; it must be a whole number from {least}")
        self.interval, self.image_interval = interval, image_interval
        self.num_images, self.max_depth, self.text_log = num_images, max_depth, text_log
        self._writer = None
        self._had_room = True
        self._last_iteration = 0

    def before_train(self, state) -> None:
        if self.text_log is None:
            self.text_log = next((hook for hook in state.hooks if isinstance(hook, TextLog)), None)
        if self.text_log is None:
            raise RecipeError("tensorboard: takes its means from text_log; put text_log before it in hooks")
        if not is_main():
            return
        SummaryWriter = writer_class()
        # What stands at the resumed iteration itself was written before its checkpoint and is right.
        self._writer = SummaryWriter(str(Path(state.work_dir) / "tf_logs"), purge_step=state.iteration + 1)

    def after_iteration(self, state) -> None:
        if self._writer is None or not self._has_room():
            return
        if self.text_log.last_iteration == state.iteration >= self._last_iteration + self.interval:
            self._last_iteration = state.iteration
            self._write_means(state)
        last = state.iteration == state.total_iterations
        if self.image_interval and (state.iteration % self.image_interval == 0 or last):
            self._writer.add_image("train/pictures", self._picture(state), state.iteration, dataformats="HWC")
            self._writer.flush()

    def after_train(self, state) -> None:
        if self._writer is not None and self._has_room():
            self._writer.close()
        self._writer = None

    def state_dict(self) -> dict:
        return {"last_iteration": self._last_iteration}

    def load_state_dict(self, state_dict: dict) -> None:
        self._last_iteration = state_dict["last_iteration"]

    def write_validation(self, state, metrics: dict[str, float], num_images: int) -> None:
        """Writes an evaluation's figures as `val/<metric>`, on rank 0; a no-op elsewhere."""
        if self._writer is None or not self._has_room():
            return
        for name, value in metrics.items():
            self._writer.add_scalar(f"val/{name}", value, state.iteration)
        self._writer.flush()

    def _has_room(self) -> bool:
        """Whether the disk takes what is to be written; TensorBoard's own thread dies where it doesn't."""
        has_room = shutil.disk_usage(self._writer.log_dir).free > _ROOM_BYTES
        if self._had_room and not has_room:
            self.text_log.info(
                f"{self._writer.log_dir}: less than {_ROOM_BYTES >> 20} MB are free, so nothing is written"
            )
        self._had_room = has_room
        return has_room

    def _write_means(self, state) -> None:
        means = dict(self.text_log.last_means)
        scalars = {"learning_rate": means.pop("lr"), "momentum": state.momentum[0]}
        for name, value in (scalars | {f"train/{name}": value for name, value in means.items()}).items():
            self._writer.add_scalar(name, value, state.iteration)
        self._writer.flush()

    def _picture(self, state) -> np.ndarray:
        """One row a sample: image, ground truth, teacher if any, student, and its error against what it learns from."""
        max_error = self.max_depth / 10
        images, truths, students = map(self._on_host, (state.batch.image, state.batch.depth, state.prediction.depth))
        # Without a teacher the student learns from the ground truth, which has its column already.
        teachers = self._on_host(state.teacher_depth) if state.recipe.get("teacher") else None
        rows = []
        for i, (image, truth, student) in enumerate(zip(images, truths[:, 0], students[:, 0], strict=True)):
            row = [denormalise(image), colourise(dilate(truth), self.max_depth)]
            if teachers is None:
                error = error_map(student, truth, max_error, radius=2)
            else:
                row.append(colourise(teachers[i, 0], self.max_depth))
                error = error_map(student, teachers[i, 0], max_error)
            rows.append([*row, colourise(student, self.max_depth), error])
        if teachers is None:
            titles = ("image", "ground truth", "student", "|student - ground truth|")
        else:
            titles = ("image", "ground truth", "teacher", "student", "|student - teacher|")
        return panel(rows, titles, self.max_depth, max_error)

    def _on_host(self, values: Tensor) -> np.ndarray:
        return values[: self.num_images].detach().float().cpu().numpy()


build = TensorBoard


def writer_class() -> type:
    """tensorboard's SummaryWriter, which takes a second and 150 MB to import. Raises LaunchError."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LaunchError(f"tensorboard: {error}; pip install tensorboard, or remove the hook") from None
    return SummaryWriter
