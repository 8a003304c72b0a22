"""Videos, frame by frame and with their times, by PyAV (the extra `video`), which brings FFmpeg's libraries along.

Decoding and encoding take some milliseconds a frame. Left out: sound, and frames that a network would see together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd.errors import DataError

_CODECS = ("libx264", "mpeg4")  # the first that is there
_DEFAULT_RATE = Fraction(25)
_FINEST_BASE = Fraction(1, 60000)  # mpeg4 takes up to 65535 units a second; this divides all usual rates


class Frame(NamedTuple):
    """rgb: (H, W, 3) uint8, upright; pts: its time in units of `Video.time_base`; time_s: in seconds."""

    rgb: np.ndarray
    pts: int
    time_s: float


class Video:
    """A video file to read. rate: frames a second; time_base: seconds a unit of time; count: about how many frames.

    Raises DataError where PyAV is missing, and for a file that is no video.
    """

    def __init__(self, path: Path):
        av = _pyav(path)
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise DataError(f"{path}: there is no video in it")
                stream = container.streams.video[0]
                self.rate = Fraction(stream.average_rate or stream.guessed_rate or _DEFAULT_RATE)
                self.time_base = Fraction(stream.time_base or 1 / self.rate)
                duration_s = float((container.duration or 0) / av.time_base)
                self.count = stream.frames or round(duration_s * self.rate)
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{path}: can't be read as a video ({_reason(error)}); the file is torn or none") from None
        self.path = path

    def frames(self) -> Iterator[Frame]:
        """The frames in the order of their times. Raises DataError where the file breaks off or is damaged."""
        av = _pyav(self.path)
        index = 0
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for index, frame in enumerate(container.decode(stream)):
                    pts = round(index / self.rate / self.time_base) if frame.pts is None else frame.pts
                    rgb = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                    yield Frame(rgb, pts, float(pts * self.time_base))
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path}: can't be decoded after frame {index} ({_reason(error)})") from None


@contextmanager
def writing(path: Path, rate: Fraction, time_base: Fraction):
    """A function (rgb (H, W, 3) uint8, pts) that adds a frame to an MP4 of this rate, which is there once all went
    well and there were any. Of another size than the first one it is scaled to that.

    Times begin at 0 and grow with each frame, whatever a damaged video says. Raises DataError where that fails.
    """
    av = _pyav(path)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream, add = _encoder(av, container, rate, time_base)
            yield add
            written = stream.codec_context.is_open
            if written:
                container.mux(stream.encode())
        if written:
            partial.replace(path)
    except av.error.FFmpegError as error:
        raise DataError(f"{path}: can't be encoded ({_reason(error)}); check the disk and the video's size") from None
    finally:
        partial.unlink(missing_ok=True)


def _encoder(av, container, rate: Fraction, time_base: Fraction):
    codec = next(name for name in _CODECS if name in av.codecs_available)
    stream = container.add_stream(codec, rate=rate, options={"crf": "16"} if codec == "libx264" else {"qscale": "2"})
    stream.pix_fmt = "yuv420p"
    base = time_base if time_base.denominator <= _FINEST_BASE.denominator else _FINEST_BASE
    stream.codec_context.time_base = base
    first = last = None

    def add(rgb: np.ndarray, pts: int) -> None:
        nonlocal first, last
        height, width = rgb.shape[0] + rgb.shape[0] % 2, rgb.shape[1] + rgb.shape[1] % 2  # the format wants even sizes
        padded = np.pad(rgb, ((0, height - rgb.shape[0]), (0, width - rgb.shape[1]), (0, 0)), mode="edge")
        if not stream.codec_context.is_open:
            stream.width, stream.height = width, height
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        first = pts if first is None else first
        last = 0 if last is None else max(round((pts - first) * time_base / base), last + 1)
        frame.pts, frame.time_base = last, base
        container.mux(stream.encode(frame))

    return stream, add


def _pyav(path: Path):
    try:
        import av
        import av.error
    except ImportError:
        raise DataError(f"{path}: videos need PyAV, which is not installed; pip install 'tiekd[video]'") from None
    av.logging.set_level(av.logging.PANIC)  # what goes wrong is told in our own words
    return av


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
