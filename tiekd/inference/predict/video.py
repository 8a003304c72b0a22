"""Reads and writes videos frame by frame with their times, by PyAV (extra `video`) and its FFmpeg.

Decoding and encoding take some milliseconds a frame. Left out: sound, and frames that a network
would see together.
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

_CODECS = ("libx264", "mpeg4")  # the first available one is used
_KEPT = "; depth of those is there, the rest isn't in the file"
# A last frame may stand still for this share of a video's duration plus this many seconds.
_STANDS_STILL = 0.05
_STANDS_STILL_S = 0.5
_GIF_END = b";"
_GIF_TAIL = 4096
_DEFAULT_RATE = Fraction(25)
# mpeg4 allows up to 65535 units a second; all usual rates divide 60000.
_FINEST_BASE = Fraction(1, 60000)


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        rgb: (H, W, 3) uint8, upright.
        pts: Its time in units of `Video.time_base`.
        time_s: Its time in seconds.
    """

    rgb: np.ndarray
    pts: int
    time_s: float


class Video:
    """A video file to read.

    Attributes:
        path: The file.
        rate: Frames per second.
        time_base: Seconds per unit of time.
        count: About how many frames there are.

    Raises:
        DataError: If PyAV is missing, or the file is no video.
    """

    def __init__(self, path: Path):
        av = _pyav(path)
        check_readable(path, "video", DataError)
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise DataError(f"{path}: there is no video in it")
                # Files may lack any of these; the defaults only affect times and progress.
                stream = container.streams.video[0]
                self.rate = Fraction(stream.average_rate or stream.guessed_rate or _DEFAULT_RATE)
                self.time_base = Fraction(stream.time_base or 1 / self.rate)
                self._duration_s = float((container.duration or 0) / av.time_base)
                self._counted = stream.frames  # by the file's index; 0 if it has none
                self.count = self._counted or round(self._duration_s * self.rate)
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"{path}: can't be read as a video ({_reason(error)}); the file is torn or none"
            ) from None
        self.path = path

    def frames(self) -> Iterator[Frame]:
        """Yields the frames in the order of their times.

        Raises:
            DataError: After the last readable frame, if the file breaks off or is damaged.
        """
        av = _pyav(self.path)
        count = 0
        first_s = 0.0
        last_s = 0.0
        try:
            with av.open(str(self.path)) as container:
                # Decodes one frame after the other. With a frame per thread, the threads deadlock
                # at the end of a damaged file: they wait for Python's lock to log, and Python
                # waits for them.
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
        """Returns True if frames are missing at the end, by the file's own index and duration.

        The index also counts frames that an editor has cut off, and during a part of the duration
        the last frame may be shown, so both must say so.
        """
        if (
            self.path.suffix.lower() == ".gif"
        ):  # PyAV counts a GIF's frames by decoding, so look for its end mark
            with self.path.open("rb") as file:
                file.seek(-min(_GIF_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
                return not file.read().rstrip(b"\0").endswith(_GIF_END)
        few = count < self._counted if self._counted else True
        return few and shown_s < self._duration_s * (1 - _STANDS_STILL) - _STANDS_STILL_S


@contextmanager
def writing(path: Path, rate: Fraction, time_base: Fraction):
    """Opens an MP4 for writing, as a context that gives the function (rgb, pts) that adds a frame.

    The file appears once the context ends without an error and there were frames. rgb is (H, W, 3)
    uint8; a frame of another size than the first one is scaled to it. Times begin at 0 and grow
    with each frame, whatever a damaged video says.

    Args:
        path: The file.
        rate: Frames per second.
        time_base: Seconds per unit of `pts`.

    Raises:
        DataError: If encoding fails.
    """
    av = _pyav(path)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream, add = _encoder(av, container, rate, time_base)
            yield add
            # The encoder opens with the first frame, so without frames there is no file.
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
        # The format wants even sizes.
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
        # Times must increase, even if a damaged video repeats one.
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
    av.logging.set_level(av.logging.PANIC)  # errors are reported by this module
    return av


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
