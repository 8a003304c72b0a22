"""Predicts the depth of many images and videos, and writes it to files.

Threads read images ahead and write files while the network runs. Consecutive images that have the
same size after they are resized for the network form a batch. At most one batch plus READ_AHEAD +
WAITING + 1 images are in memory at their own size. An image of 4000x3000 pixels with its depth
needs about 100 MB.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO

from tiekd.console import Progress, printable
from tiekd.data.image_io import read_image_size, read_photo
from tiekd.errors import DataError, UserError
from tiekd.inference.predict.inputs import SEQUENCES, Input, frames_in
from tiekd.inference.predict.predictor import THREADS, LoadedImage, Predictor, Writes
from tiekd.inference.predict.video_prediction import predict_video

READ_AHEAD = 2  # images that are read ahead of the current one


def predict_all(predictor: Predictor, inputs: Sequence[Input], out: TextIO, errors: TextIO) -> int:
    """Predicts the depth of images, then of videos, and writes the output files.

    An input that can't be read, or whose size the network can't process, is reported and skipped.

    Args:
        predictor: The student and the settings of its outputs.
        inputs: The images and videos.
        out: Text stream that receives progress and speed.
        errors: Text stream that receives one line for each failed input.

    Returns:
        The number of failed inputs.

    Raises:
        DataError: A file can't be written.
        OSError: A folder can't be created.
    """
    images = [item for item in inputs if not item.is_video]
    failed = 0
    for item in images:
        # Report image files that contain several images, of which only the first is predicted.
        if item.path.suffix.lower() in SEQUENCES and (count := frames_in(item.path)) > 1:
            message = (
                f"contains {count} images, of which only the first is predicted; to predict all, "
                "save them as separate files, or as a GIF or a video"
            )
            errors.write(f"{printable(str(item.path))}: {message}\n")
    if images:
        started = time.monotonic()
        failed = predict_images(predictor, images, out, errors)
        out.write(
            f"{_rate(len(images) - failed, time.monotonic() - started, predictor.network_s)}\n"
        )
    for item in inputs:
        if item.is_video:
            try:
                predict_video(predictor, item, out)
            except UserError as error:
                failed += 1
                errors.write(f"{_line(error, error)}\n")
    return failed


def predict_images(
    predictor: Predictor, images: Sequence[Input], out: TextIO, errors: TextIO
) -> int:
    """Predicts the depth of images in batches, and writes the output files.

    An image that can't be read, or whose size the network can't process, is reported and skipped.

    Args:
        predictor: The student and the settings of its outputs.
        images: The images, without videos.
        out: Text stream that receives the progress.
        errors: Text stream that receives one line for each failed image or batch.

    Returns:
        The number of failed images.

    Raises:
        DataError: A file can't be written.
        OSError: A folder can't be created.
    """
    done = failed = 0
    progress = Progress("images", len(images), lambda: done + failed, out)
    # Sort by size, so that images of one size are consecutive and batches are full.
    if predictor.batch_size > 1:
        images = sorted(images, key=_size_of)
    with (
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as writers,
        Writes() as writes,
    ):
        # Read and write in threads, and predict batch by batch. For an image that can't be read or
        # a batch that can't be predicted, `_attempt` returns the UserError, which is reported.
        loaded = _read_ahead(readers, lambda item: _attempt(_load, predictor, item), images)
        for batch in _batches(loaded, predictor.batch_size):
            found = batch if isinstance(batch, UserError) else _attempt(predictor.depths, batch)
            if isinstance(found, UserError):
                failed += 1 if isinstance(batch, UserError) else len(batch)
                start = "\n" if out.isatty() else ""  # ends the line of the progress display
                errors.write(f"{start}{_line(found, batch)}\n")
            else:
                for image, reading in zip(batch, found, strict=True):
                    writes.add(writers.submit(predictor.write, image, reading))
                    del image, reading
                done += len(batch)
            # Free the memory of this batch before the next one is read.
            del batch, found
            progress.update()
    progress.finish()
    return failed


def _load(predictor: Predictor, item: Input) -> LoadedImage:
    return predictor.prepare(item.name, item.path, read_photo(item.path))


def _attempt(function: Callable, *arguments):
    """Calls a function, and returns its result, or the UserError that it raises.

    Other exceptions are passed on.

    Args:
        function: The function.
        *arguments: Its arguments.
    """
    try:
        return function(*arguments)
    except UserError as error:
        return error


def _read_ahead(pool: ThreadPoolExecutor, read: Callable, items: Iterable) -> Iterator:
    """Yields read(item) for each item in order, while threads read the next READ_AHEAD items.

    Args:
        pool: The threads.
        read: A function of one item, which is called in a thread.
        items: The items.
    """
    coming: deque = deque()
    for item in items:
        coming.append(pool.submit(read, item))
        if len(coming) > READ_AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _batches(
    loaded: Iterable[LoadedImage | UserError], batch_size: int
) -> Iterator[list[LoadedImage] | UserError]:
    """Groups consecutive images that have the same size after resizing into batches.

    Args:
        loaded: The images, or errors in place of those that couldn't be read.
        batch_size: The largest number of images in a batch.

    Yields:
        A list of images; or an error from `loaded`, which is yielded as soon as it occurs, even if
        a batch isn't complete yet.
    """
    batch: list[LoadedImage] = []
    for image in loaded:
        if isinstance(image, UserError):
            yield image
            continue
        if batch and batch[0].small.shape != image.small.shape:
            yield batch
            batch = []
        batch.append(image)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _size_of(item: Input) -> tuple[int, int]:
    try:
        return read_image_size(item.path)
    except DataError:  # reading the image later raises and reports the error
        return 0, 0


def _line(error: UserError, batch: list[LoadedImage] | UserError) -> str:
    """Returns one line of text about an error: its class and its message.

    Args:
        error: The error.
        batch: The images whose prediction raised the error; the line then also contains their
            paths, the size to which they were resized, and a remedy. If the error concerns a single
            image that couldn't be read, `error` is passed here, too, and the line has the error
            alone.
    """
    text = " ".join(str(error).split())
    if not isinstance(batch, UserError) and str(batch[0].path) not in text:
        size = "x".join(map(str, batch[0].small.shape[1:]))
        text = (
            f"{', '.join(str(image.path) for image in batch)}, as {size}: {text}; --size HxW "
            "scales images"
        )
    return f"{type(error).__name__}: {printable(text)}"


def _rate(count: int, elapsed_s: float, network_s: float) -> str:
    alone = f", the network alone {count / network_s:.2f} images/s" if network_s else ""
    return (
        f"Predicted {count} image(s) in {elapsed_s:.1f} s: {count / elapsed_s:.2f} images/s{alone}"
    )
