"""Writes to TensorBoard: the text log's scalars, images, histograms of errors, and the recipe.

Scalars are named as mmcv's TensorboardLoggerHook names them. The hook comes after `text_log` in the
list of hooks and writes the means that `text_log` has computed, so scalars cost no further
collective or host sync. Steps are iterations. When a run resumes from a checkpoint, values that
were written for later iterations are purged.

    train/<loss>, ...      with the text log's lines; also learning_rate, momentum, and
                           train/skipped_steps if any step was skipped
    val/<metric>           at evaluations
    agreement/<metric>     in place of val/<metric> if evaluations compare with the teacher:
                           agreement with it, not accuracy; also abs_rel_0-20m, ... by ranges of
                           the teacher's depth, and abs_rel_at_edges, mid_air_at_edges
    train/pictures_1, ...  every image_interval iterations, of rank 0's newest batch: image, ground
                           truth, teacher, student, error and entropy
    train/why_1            for the first of these images, the predicted distribution over depth at
                           marked pixels
    val/pictures_1, ...    at evaluations, of the same few validation frames each time
    val/why_1, ...
    val/error_0-20m, ...   histograms of student - ground truth in those frames, by ranges of the
                           ground truth
    recipe, ds_config      text, the contents of the work dir's files of that name

Everything is written by rank 0 without a collective. Images of two training samples take about 0.2
s of one CPU core, and a forward of the student, every 500 iterations. With ZeRO-3, where no rank
has all weights, training images show the depth that the training step predicted, and train/why_1 is
not written. Not covered: histograms of weights; graphs; and, in validation images, a teacher from
outside tiekd, which may not support validation frames.
"""

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tiekd.config.teacher_node import has_teacher
from tiekd.data import focal as focals
from tiekd.data import resize as resizes
from tiekd.distributed.comm import is_main
from tiekd.errors import LaunchError, RecipeError
from tiekd.models.network import Network
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog
from tiekd.visualization.validation_frames import ShownFrames
from tiekd.visualization.views import draw_distributions, overview, views
from tiekd.workdir import workdir

_ROOM_BYTES = 8 << 20


class TensorBoard(Hook):
    """Writes scalars, images and texts for TensorBoard to `<work_dir>/tf_logs`, on rank 0.

    Attributes:
        interval: The minimum number of iterations between scalars. Scalars are written only when
            the text log writes a line.
        image_interval: Iterations between training images, which are also written at the last
            iteration; 0 for no images, neither in training nor at evaluations.
        num_images: The number of training images, at most the number of images in a micro-batch.
        max_depth: The depth in metres at the far end of the colour map. The error's colour map ends
            at a tenth of it.
        text_log: The text log whose means are written; None for the first TextLog in `state.hooks`.
        frames: The validation frames whose images are written; None for no images of validation
            frames.
    """

    def __init__(
        self,
        interval: int = 1,
        image_interval: int = 500,
        num_images: int = 2,
        max_depth: float = 80.0,
        text_log: TextLog | None = None,
        frames: ShownFrames | None = None,
    ):
        for name, value, least in (
            ("interval", interval, 1),
            ("image_interval", image_interval, 0),
            ("num_images", num_images, 1),
        ):
            if type(value) is not int or value < least:
                raise RecipeError(f"{name}: got {value!r}; it must be a whole number from {least}")
        self.interval, self.image_interval = interval, image_interval
        self.num_images, self.max_depth, self.text_log = num_images, max_depth, text_log
        self.frames = frames
        self._writer = None
        self._had_room = True
        self._last_iteration = 0

    def before_train(self, state) -> None:
        """Opens TensorBoard's files, and writes recipe and engine config as texts, on rank 0.

        Raises:
            RecipeError: `state.hooks` has no text log, whose means this hook writes.
            LaunchError: The package tensorboard isn't installed.
        """
        if self.text_log is None:
            self.text_log = next((hook for hook in state.hooks if isinstance(hook, TextLog)), None)
        if self.text_log is None:
            raise RecipeError(
                "tensorboard: takes its means from text_log; put text_log before it in hooks"
            )
        if not is_main():
            return
        SummaryWriter = writer_class()
        # Purge values of iterations after the checkpoint's, from which the run resumes. Values of
        # the checkpoint's own iteration were written before it was saved, and are kept.
        self._writer = SummaryWriter(
            str(Path(state.work_dir) / "tf_logs"), purge_step=state.iteration + 1
        )
        if self._has_room():
            for name, file in (("recipe", workdir.RECIPE), ("ds_config", workdir.ENGINE_CONFIG)):
                self._write_text(name, Path(state.work_dir) / file, state.iteration)

    def after_iteration(self, state) -> None:
        """Writes the text log's newest means, and images if they are due, on rank 0.

        Args:
            state: The state of the run.
        """
        if self._writer is None or not self._has_room():
            return
        if self.text_log.last_iteration == state.iteration >= self._last_iteration + self.interval:
            self._last_iteration = state.iteration
            self._write_means(state)
        if self.image_interval and (state.is_due(self.image_interval) or state.is_last):
            self._write_images(state)

    def after_train(self, state) -> None:
        """Closes TensorBoard's files.

        Args:
            state: The state of the run; not used.
        """
        if self._writer is not None and self._has_room():
            self._writer.close()
        self._writer = None

    def _flush(self) -> None:
        """Waits until TensorBoard's writer thread has written everything.

        If the thread has failed with an OSError, which names no file, it is raised with the
        folder's name.
        """
        try:
            self._writer.flush()
        except OSError as error:
            error.filename = error.filename or str(self._writer.log_dir)
            raise

    def state_dict(self) -> dict:
        """Returns a dict for a checkpoint: `last_iteration`, the iteration of the last scalars.

        With it, a resumed run writes the next scalars at least `interval` iterations after the last
        ones.
        """
        return {"last_iteration": self._last_iteration}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the iteration of the last scalars, as `state_dict` returned it."""
        self._last_iteration = state_dict["last_iteration"]

    def after_evaluation(self, state, metrics: dict[str, float]) -> None:
        """Writes the metrics as `val/<metric>`, and images of validation frames, on rank 0.

        Metrics that compare with the teacher are written as `agreement/<metric>`.

        Args:
            state: The state of the run, with the iteration of the evaluation.
            metrics: The metrics by name.
        """
        if self._writer is None or not self._has_room():
            return
        folder, figures = "val", metrics
        if state.teacher_comparison is not None:
            folder, figures = "agreement", metrics | state.teacher_comparison.figures
        for name, of_set in state.set_metrics.items():
            figures = figures | {f"{name}/{key}": value for key, value in of_set.items()}
        for name, value in figures.items():
            self._writer.add_scalar(f"{folder}/{name}", value, state.iteration)
        # Write images of a few validation frames, the same frames at each evaluation.
        if self.image_interval and self.frames is not None:
            shown = self.frames.views()
            for number, view in enumerate(shown, start=1):
                # Draw the error against the same depth as the metrics: the teacher's depth if the
                # metrics compare with it and this frame has it, else the ground truth.
                is_agreement = state.teacher_comparison is not None and view.teacher is not None
                against = "teacher" if is_agreement else "ground truth"
                overall = overview(view, self.max_depth, against)
                self._write_image(f"val/pictures_{number}", overall, state.iteration)
                self._write_image(
                    f"val/why_{number}", draw_distributions(view, self.max_depth), state.iteration
                )
            # Use histogram bins of equal width, the same at each evaluation. NumPy's automatic
            # choice can come to millions of bins.
            bins = np.linspace(-self.max_depth, self.max_depth, 1601)
            for name, errors in self.frames.errors_by_range(shown).items():
                self._writer.add_histogram(f"val/error_{name}", errors, state.iteration, bins)
        self._flush()

    def _has_room(self) -> bool:
        """Returns True if the disk of the work dir has at least 8 MiB of free space.

        With less space nothing is written, since on a full disk TensorBoard's writer thread would
        end with an error. The log reports the first such case.
        """
        has_room = shutil.disk_usage(self._writer.log_dir).free > _ROOM_BYTES
        if self._had_room and not has_room:
            self.text_log.info(
                f"{self._writer.log_dir}: less than {_ROOM_BYTES >> 20} MB are free, so nothing is "
                "written"
            )
        self._had_room = has_room
        return has_room

    def _write_means(self, state) -> None:
        means = dict(self.text_log.last_means)
        scalars = {"learning_rate": means.pop("lr"), "momentum": state.momentum[0]}
        scalars |= {f"train/{name}": value for name, value in means.items()}
        if self.text_log.skipped_steps or "loss_scale" in means:
            scalars["train/skipped_steps"] = self.text_log.skipped_steps
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, state.iteration)
        self._flush()

    def _write_text(self, name: str, path: Path, step: int) -> None:
        if path.is_file():
            # Indent the lines by four spaces, which Markdown, as TensorBoard renders it, shows as a
            # code block.
            lines = path.read_text(encoding="utf-8").splitlines()
            self._writer.add_text(name, "\n".join(f"    {line}" for line in lines), step)

    def _write_images(self, state) -> None:
        few, batch = slice(self.num_images), state.batch
        # Show the teacher's depth only if there is a teacher. Otherwise `teacher_depth` is the
        # ground truth, which the image shows anyway.
        teachers = state.teacher_depth[few] if has_teacher(state.recipe) else None
        # Run the network again, to show the distribution over depth that it predicts at each pixel.
        # Under ZeRO-3 no rank has all weights, so show only the depth of the training step.
        student = _whole_network(state.engine) or state.prediction.depth[few]
        # If the network predicts canonical depth, i.e. metres times a fixed focal length / the
        # image's focal length, convert the depth of the training step to metres.
        camera = getattr(getattr(state.engine, "module", None), "canonical", None)
        focal = None
        if camera is not None:
            resize = resizes.of_data(state.recipe.get("data", {}))
            focal = focals.of_batch(batch, resize)[few]
            if isinstance(student, Tensor):
                student = camera.to_metres(student, focal)
        shown = views(
            student, batch.image[few], batch.depth[few], teachers, num_with_pixels=1, focal=focal
        )
        against = "ground truth" if teachers is None else "teacher"
        for number, view in enumerate(shown, start=1):
            overall = overview(view, self.max_depth, against)
            self._write_image(f"train/pictures_{number}", overall, state.iteration)
        self._write_image(
            "train/why_1", draw_distributions(shown[0], self.max_depth), state.iteration
        )
        self._flush()

    def _write_image(self, tag: str, pixels: np.ndarray | None, step: int) -> None:
        """Writes an image for TensorBoard.

        The PNG is encoded here with fast compression. SummaryWriter.add_image is slower, for a file
        that is only a few percent smaller.

        Args:
            tag: The name under which TensorBoard shows the image, such as `val/pictures_1`.
            pixels: The image, (H, W, 3) uint8, RGB; None to write nothing.
            step: The iteration to which the image belongs.
        """
        if pixels is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        file = BytesIO()
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
        height, width = pixels.shape[:2]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
        )
        self._writer.file_writer.add_summary(
            Summary(value=[Summary.Value(tag=tag, image=image)]), step
        )


build = TensorBoard


def _whole_network(engine) -> Network | None:
    """Returns the student's network if rank 0 can run it by itself and images need it.

    Args:
        engine: The DeepSpeed engine that trains the student.

    Returns:
        The network. None if its parameters are sharded over the ranks (ZeRO-3), so that rank 0
        can't run it alone. Also None if its head predicts no distribution over depth, since images
        then need only the depth of the training step.
    """
    network = getattr(engine, "module", None)
    sharded = not isinstance(network, Network) or any(
        hasattr(p, "ds_id") for p in network.parameters()
    )
    return None if sharded or not hasattr(network.head, "probabilities") else network


def writer_class() -> type:
    """Imports and returns TensorBoard's class SummaryWriter, which takes 1 s and 150 MB of memory.

    Raises:
        LaunchError: The package tensorboard isn't installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LaunchError(f"tensorboard: {error}; pip install tensorboard") from None
    return SummaryWriter
