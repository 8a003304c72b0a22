"""Predicts the depth of a video frame by frame.

Depth is written per frame as for images, and the coloured depth as one video with the frame rate
and timestamps of the input. A CSV table lists each frame's timestamp and its flicker, i.e. the
change of depth where the image doesn't change (tiekd/inference/predict/flicker.py). Not covered:
temporal smoothing of the depth.
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
from tiekd.inference.predict.video import Frame, Video, mp4_writer

COLUMNS = ("frame", "time_s", "static_change_m", "static_share")


def predict_video(predictor: Predictor, item: Input, out: TextIO) -> Flicker:
    """Predicts a video's frames, and writes their outputs.

    The output files of single frames are named `<name>/000000` and so on.

    Args:
        predictor: The student and the settings of its outputs.
        item: The video.
        out: Text stream that receives progress, speed and flicker.

    Returns:
        A `Flicker`, whose `mean` is the mean change of depth in static pixels over all frames,
        metres.

    Raises:
        DataError: The file is not a video, or is truncated or corrupt. The outputs of the frames
            before the corruption are complete then.
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
        mp4_writer(files["colour"], video.rate, video.time_base) as add,
        ThreadPoolExecutor(THREADS) as writers,
        Writes() as writes,
    ):
        # Predict batch by batch. Write each frame's files, and add the frame to the coloured video
        # and the table.
        for chunk in _chunks(_until_broken(video, broken), predictor.batch_size):
            batch = [
                predictor.prepare(f"{item.name}/{index:06}", item.path, _pixels(frame))
                for index, frame in chunk
            ]
            for (index, frame), image, reading in zip(
                chunk, batch, predictor.depths(batch), strict=True
            ):
                writes.add(writers.submit(predictor.write, image, reading, colour=False))
                add(outputs.coloured(reading.depth.numpy()), frame.pts)
                change, share = flicker.add(image.pixels, reading.depth)
                rows.append((index, f"{frame.time_s:.6f}", _number(change), _number(share)))
            progress.update()
    progress.finish()
    # Remove files of frames that only an earlier, longer version of the video had, and write the
    # table, also for a corrupt video.
    if rows:
        outputs.remove_frames_from(item.name, len(rows))
        _write_table(files["times"], rows)
    # Raise a decoding error here, when the outputs of the readable frames are complete.
    if broken or not rows:
        raise broken[0] if broken else DataError(f"{item.path}: there are no frames in it")
    elapsed_s = time.monotonic() - started
    out.write(
        f"Predicted {len(rows)} frames of {item.path} ({float(video.rate):g} a second) in "
        f"{elapsed_s:.1f} s: {len(rows) / elapsed_s:.2f} images/s\n"
        f"Flicker: {_metres(flicker.mean)}, "
        "the mean change of depth between frames where the image stays as it is\n"
    )
    return flicker


def _chunks(frames: Iterable[Frame], most: int) -> Iterator[list[tuple[int, Frame]]]:
    """Groups a video's frames into lists of consecutive frames of one size.

    Args:
        frames: The frames of a video, in order.
        most: The largest number of frames in a list.

    Yields:
        Lists of (frame number, frame); frames are numbered from 0.
    """
    for _, alike in groupby(enumerate(frames), lambda numbered: numbered[1].rgb.shape):
        while chunk := list(islice(alike, most)):
            yield chunk


def _pixels(frame: Frame) -> torch.Tensor:
    return torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1)


def _until_broken(video: Video, broken: list[DataError]) -> Iterator[Frame]:
    """Yields a video's frames before the first one that can't be decoded, without raising an error.

    Args:
        video: The video.
        broken: A list to which the decoding error, if there is one, is appended.
    """
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


def _metres(flicker: float) -> str:
    return "none to be measured" if isnan(flicker) else f"{flicker:.3f} m"
