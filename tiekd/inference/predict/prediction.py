"""Predicts the depth of many pictures and videos, and writes it.

Pictures are read ahead and written by threads beside the network. Those that follow each other with one working size go
through it together, each at the working resolution. In memory are, at their own size, no more than a batch of pictures
and READ_AHEAD + WAITING + 1 beside it, with their depth of 4000x3000 pixels some 100 MB each.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO

from tiekd.console import Progress
from tiekd.data.image_io import read_image_size, read_photo
from tiekd.errors import DataError, UserError
from tiekd.inference.predict.inputs import SEQUENCES, Input, frames_in
from tiekd.inference.predict.predictor import THREADS, Picture, Predictor, Writes
from tiekd.inference.predict.video_prediction import predict_video

READ_AHEAD = 2


def predict_all(predictor: Predictor, inputs: Sequence[Input], out: TextIO, errors: TextIO) -> int:
    """Predicts pictures, then videos. `out` is told how far it is and how fast it was, `errors` a line about each input
    that can't be read, or is of a size that the network can't take, after which it goes on; returns how many.

    Raises DataError and OSError where the disk doesn't take the files.
    """
    pictures = [item for item in inputs if not item.is_video]
    failed = 0
    for item in pictures:
        if item.path.suffix.lower() in SEQUENCES and (count := frames_in(item.path)) > 1:
            told = (
                f"holds {count} pictures; only the first is predicted (of a video or GIF all are)"
            )
            errors.write(f"{item.path}: {told}\n")
    if pictures:
        started = time.monotonic()
        failed = predict_pictures(predictor, pictures, out, errors)
        out.write(
            f"{_rate(len(pictures) - failed, time.monotonic() - started, predictor.network_s)}\n"
        )
    for item in inputs:
        if item.is_video:
            try:
                predict_video(predictor, item, out)
            except UserError as error:
                failed += 1
                errors.write(f"{_line(error, error)}\n")
    return failed


def predict_pictures(
    predictor: Predictor, pictures: Sequence[Input], out: TextIO, errors: TextIO
) -> int:
    """See `predict_all`."""
    done = failed = 0
    progress = Progress("pictures", len(pictures), lambda: done + failed, out)
    if predictor.batch_size > 1:
        pictures = sorted(pictures, key=_size_of)
    with (
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as writers,
        Writes() as writes,
    ):
        loaded = _read_ahead(readers, lambda item: _attempt(_load, predictor, item), pictures)
        for batch in _batches(loaded, predictor.batch_size):
            found = batch if isinstance(batch, UserError) else _attempt(predictor.depths, batch)
            if isinstance(found, UserError):
                failed += 1 if isinstance(batch, UserError) else len(batch)
                start = "\n" if out.isatty() else ""  # the line there is rewritten
                errors.write(f"{start}{_line(found, batch)}\n")
            else:
                for picture, (depth, confidence) in zip(batch, found, strict=True):
                    writes.add(writers.submit(predictor.write, picture, depth, confidence))
                    del picture, depth, confidence
                done += len(batch)
            del batch, found  # before the next ones are read: they are of the pictures' own size
            progress.update()
    progress.finish()
    return failed


def _load(predictor: Predictor, item: Input) -> Picture:
    return predictor.prepare(item.name, item.path, read_photo(item.path))


def _attempt(function: Callable, *arguments):
    """What it returns, or the user's error that it raises."""
    try:
        return function(*arguments)
    except UserError as error:
        return error


def _read_ahead(pool: ThreadPoolExecutor, read: Callable, items: Iterable) -> Iterator:
    """`map` in threads, a few items ahead."""
    coming: deque = deque()
    for item in items:
        coming.append(pool.submit(read, item))
        if len(coming) > READ_AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _batches(
    loaded: Iterable[Picture | UserError], batch_size: int
) -> Iterator[list[Picture] | UserError]:
    """Up to `batch_size` pictures of one working size that follow each other; errors pass through."""
    batch: list[Picture] = []
    for picture in loaded:
        if isinstance(picture, UserError):
            yield picture
            continue
        if batch and batch[0].small.shape != picture.small.shape:
            yield batch
            batch = []
        batch.append(picture)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _size_of(item: Input) -> tuple[int, int]:
    try:
        return read_image_size(item.path)
    except DataError:  # told when it is read
        return 0, 0


def _line(error: UserError, batch: list[Picture] | UserError) -> str:
    """The error with the files that it is about, and what helps there, both of which a network doesn't know."""
    text = " ".join(str(error).split())
    if not isinstance(batch, UserError) and str(batch[0].path) not in text:
        size = "x".join(map(str, batch[0].small.shape[1:]))
        text = (
            f"{', '.join(str(picture.path) for picture in batch)}, as {size}: {text}; --size HxW "
            "scales pictures"
        )
    return f"{type(error).__name__}: {text}"


def _rate(count: int, elapsed_s: float, network_s: float) -> str:
    alone = f", the network alone {count / network_s:.2f} images/s" if network_s else ""
    return (
        f"Predicted {count} picture(s) in {elapsed_s:.1f} s: {count / elapsed_s:.2f} "
        f"images/s{alone}"
    )
