"""Reads and writes videos frame by frame with timestamps, using PyAV (extra `video`) and FFmpeg.

Decoding and encoding cost some milliseconds per frame. Not covered: sound, and clips, i.e. several
consecutive frames as one input of the network.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd.errors import DataError
from tiekd.files import check_readable

_CODECS = ("libx264", "mpeg4")  # the first codec that FFmpeg has is used
_KEPT = "; depth of those is there, the rest isn't in the file"
# Largest time between the end of the last frame of an intact video and the file's duration: this
# fraction of the duration plus these seconds.
_STANDS_STILL = 0.05
_STANDS_STILL_S = 0.5
_GIF_END = b";"  # byte with which a complete GIF ends, perhaps followed by zero bytes
_GIF_TAIL = 4096  # number of bytes at the end of a GIF in which _GIF_END is searched
_DEFAULT_RATE = Fraction(25)  # frames per second if the file doesn't specify a rate
# Finest time base, in seconds per unit: mpeg4 allows up to 65535 units per second. With 60000,
# timestamps of 24, 25, 30, 50, 60 and 30000/1001 frames per second are exact; others are rounded to
# a unit.
_FINEST_BASE = Fraction(1, 60000)


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        rgb: (H, W, 3) uint8, upright.
        pts: Presentation timestamp in units of `Video.time_base`.
        time_s: The same timestamp in seconds.
    """

    rgb: np.ndarray
    pts: int
    time_s: float


class Video:
    """A video file to read.

    Attributes:
        path: The file.
        rate: Average frames per second.
        time_base: Seconds per unit of `Frame.pts`.
        count: Approximate number of frames, from the file's index or its duration.

    Raises:
        DataError: PyAV is missing, or the file isn't a video.
    """

    def __init__(self, path: Path):
        av = _pyav(path)
        check_readable(path, "video", DataError)
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise DataError(f"{path}: there is no video in it")
                # Read frame rate, time base and number of frames. A file may lack them; the
                # defaults affect only timestamps and the display of progress.
                stream = container.streams.video[0]
                self.rate = Fraction(stream.average_rate or stream.guessed_rate or _DEFAULT_RATE)
                self.time_base = Fraction(stream.time_base or 1 / self.rate)
                self._duration_s = float((container.duration or 0) / av.time_base)
                # The number of frames in the file's index; 0 if it has none.
                self._counted = stream.frames
                self.count = self._counted or round(self._duration_s * self.rate)
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"{path}: can't be read as a video ({_reason(error)}); the file is torn or none"
            ) from None
        self.path = path

    def frames(self) -> Iterator[Frame]:
        """Yields each frame as a `Frame`, in presentation order.

        Raises:
            DataError: The file is truncated or corrupt; raised after the last readable frame.
        """
        av = _pyav(self.path)
        count = 0
        first_s = 0.0
        last_s = 0.0
        try:
            with av.open(str(self.path)) as container:
                # Decode without frame threading, as is PyAV's default. It deadlocks at the end of a
                # corrupt file: FFmpeg's threads need Python's global lock for logging, and the
                # thread that holds the lock waits for them.
                for frame in container.decode(container.streams.video[0]):
                    pts = (
                        round(count / self.rate / self.time_base)
                        if frame.pts is None
                        else frame.pts
                    )
                    rgb = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                    last_s = float(pts * self.time_base)
                    first_s = first_s if count else last_s
                    yield Frame(rgb, pts, last_s)
                    count += 1
        except (av.error.FFmpegError, OSError) as error:
            kept = f"damaged after {count} frames ({_reason(error)}){_KEPT}"
            none = f"can't be decoded from its first frame on ({_reason(error)}); the file is torn"
            raise DataError(f"{self.path}: {kept if count else none}") from None
        shown_s = last_s - first_s + float(1 / self.rate)
        if count and self._is_short(count, shown_s):
            part = (
                f", {shown_s:.1f} of {self._duration_s:.1f} s" if shown_s < self._duration_s else ""
            )
            raise DataError(f"{self.path}: breaks off after {count} frames{part}{_KEPT}")

    def _is_short(self, count: int, shown_s: float) -> bool:
        """Returns True if frames are missing at the end of the file, as in a truncated one.

        Both the file's index and its duration must indicate missing frames: the index also counts
        frames that an editor has cut off, and the duration may include a time in which the last
        frame stays on screen. For a GIF, its last byte decides instead.

        Args:
            count: Number of decoded frames.
            shown_s: Seconds from the first frame to the end of the last one.
        """
        if (
            self.path.suffix.lower() == ".gif"
        ):  # a GIF has no frame count of its own, so its last byte decides
            with self.path.open("rb") as file:
                file.seek(-min(_GIF_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
                return not file.read().rstrip(b"\0").endswith(_GIF_END)
        few = count < self._counted if self._counted else True
        return few and shown_s < self._duration_s * (1 - _STANDS_STILL) - _STANDS_STILL_S


@contextmanager
def mp4_writer(path: Path, rate: Fraction, time_base: Fraction):
    """Context manager that writes an MP4 and yields the function `add(rgb, pts)`.

    `add` appends a frame, rgb (H, W, 3) uint8, with the timestamp pts. A frame of another size than
    the first is scaled to the first one's size. Timestamps start at 0 and are made strictly
    increasing, even if those of a corrupt video are not. The file is created at `path` when the
    context ends, if there was no exception and at least one frame.

    Args:
        path: The file to write.
        rate: Frames per second.
        time_base: Seconds per unit of `pts`.

    Yields:
        The function `add`.

    Raises:
        DataError: Encoding fails.
    """
    av = _pyav(path)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream, add = _encoder(av, container, rate, time_base)
            yield add
            # Finish the file if the encoder is open, i.e. if there was a frame; otherwise keep no
            # file.
            written = stream.codec_context.is_open
            if written:
                container.mux(stream.encode())
        if written:
            partial.replace(path)
    except av.error.FFmpegError as error:
        raise DataError(
            f"{path}: can't be encoded ({_reason(error)}); check the disk and the video's size"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _encoder(av, container, rate: Fraction, time_base: Fraction):
    codec = next(name for name in _CODECS if name in av.codecs_available)
    stream = container.add_stream(
        codec, rate=rate, options={"crf": "16"} if codec == "libx264" else {"qscale": "2"}
    )
    stream.pix_fmt = "yuv420p"
    base = time_base if time_base.denominator <= _FINEST_BASE.denominator else _FINEST_BASE
    stream.codec_context.time_base = base
    first = last = None

    def add(rgb: np.ndarray, pts: int) -> None:
        nonlocal first, last
        # Pad to an even height and width, which yuv420p needs, by repeating the last row or column.
        height = rgb.shape[0] + rgb.shape[0] % 2
        width = rgb.shape[1] + rgb.shape[1] % 2
        padded = np.pad(
            rgb, ((0, height - rgb.shape[0]), (0, width - rgb.shape[1]), (0, 0)), mode="edge"
        )
        if not stream.codec_context.is_open:
            stream.width = width
            stream.height = height
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        first = pts if first is None else first
        last = 0 if last is None else max(round((pts - first) * time_base / base), last + 1)
        # Set the timestamp `last`, which increases by at least 1, even if a corrupt video repeats a
        # timestamp.
        frame.pts = last
        frame.time_base = base
        container.mux(stream.encode(frame))

    return stream, add


def _pyav(path: Path):
    try:
        import av
        import av.error
    except ImportError:
        raise DataError(
            f"{path}: videos need PyAV, which is not installed; pip install 'tiekd[video]'"
        ) from None
    # Silence FFmpeg's log, since this module reports errors itself.
    av.logging.set_level(av.logging.PANIC)
    return av


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
