"""Predicts the depth of a video frame by frame; frames are written like images, colours as a video.

The colours have the video's rate and times. A table has each frame's time and how much depth
changed in it where nothing moves (tiekd/inference/predict/flicker.py). Left out: making depth
steadier, which is the network's matter.
"""

import csv
import io
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from math import isnan
from typing import TextIO

import torch

from tiekd.console import Progress
from tiekd.data.image_io import write_durably
from tiekd.errors import DataError
from tiekd.inference.predict.flicker import Flicker
from tiekd.inference.predict.inputs import Input
from tiekd.inference.predict.predictor import THREADS, Predictor, Writes
from tiekd.inference.predict.video import Frame, Video, writing

COLUMNS = ("frame", "time_s", "static_change_m", "static_share")


def predict_video(predictor: Predictor, item: Input, out: TextIO) -> Flicker:
    """Predicts a video's frames, named `<name>/000000` and so on.

    Args:
        predictor: The student with its outputs.
        item: The video.
        out: Progress, rate and flicker are written to it.

    Returns:
        The flicker.

    Raises:
        DataError: If the file is no video, or breaks off. Frames predicted until then are written
            and whole.
    """
    video = Video(item.path)
    outputs = predictor.outputs
    flicker = Flicker()
    rows = []
    started = time.monotonic()
    files = outputs.of_video(item.name)
    progress = Progress(f"{item.path.name}, frames", video.count, lambda: len(rows), out)
    broken: list[DataError] = []
    with (
        writing(files["colour"], video.rate, video.time_base) as add,
        ThreadPoolExecutor(THREADS) as writers,
        Writes() as writes,
    ):
        # Predict and write chunk by chunk; each frame also goes to the colour video and the table.
        for chunk in _chunks(_until_broken(video, broken), predictor.batch_size):
            batch = [
                predictor.prepare(f"{item.name}/{index:06}", item.path, _pixels(frame))
                for index, frame in chunk
            ]
            for (index, frame), image, (depth, confidence) in zip(
                chunk, batch, predictor.depths(batch), strict=True
            ):
                writes.add(writers.submit(predictor.write, image, depth, confidence, colour=False))
                add(outputs.coloured(depth.numpy()), frame.pts)
                change, share = flicker.add(image.pixels, depth)
                rows.append((index, f"{frame.time_s:.6f}", _number(change), _number(share)))
            progress.update()
    progress.finish()
    # Finish what was predicted, even if the video breaks off.
    if rows:
        outputs.remove_frames_from(item.name, len(rows))
        _write_table(files["times"], rows)
    # Report the damage after saving what could be predicted.
    if broken or not rows:
        raise broken[0] if broken else DataError(f"{item.path}: there are no frames in it")
    elapsed_s = time.monotonic() - started
    out.write(
        f"Predicted {len(rows)} frames of {item.path} ({float(video.rate):g} a second) in "
        f"{elapsed_s:.1f} s: {len(rows) / elapsed_s:.2f} images/s\nFlicker: {_told(flicker.mean)}, "
        "the mean change of depth between frames where the image stays as it is\n"
    )
    return flicker


def _chunks(frames: Iterable[Frame], most: int) -> Iterator[list[tuple[int, Frame]]]:
    """Yields numbered frames in lists of up to `most` consecutive frames of one size."""
    for _, alike in groupby(enumerate(frames), lambda numbered: numbered[1].rgb.shape):
        while chunk := list(islice(alike, most)):
            yield chunk


def _pixels(frame: Frame) -> torch.Tensor:
    return torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1)


def _until_broken(video: Video, broken: list[DataError]) -> Iterator[Frame]:
    """Yields a video's frames; an error ends them and is appended to `broken`."""
    try:
        yield from video.frames()
    except DataError as error:
        broken.append(error)


def _write_table(path, rows: list[tuple]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, table.getvalue().encode())


def _number(value: float) -> str:
    return "" if isnan(value) else f"{value:.4f}"


def _told(flicker: float) -> str:
    return "none to be measured" if isnan(flicker) else f"{flicker:.3f} m"
