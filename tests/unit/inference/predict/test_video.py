"""Videos: frames with their times in and out, and what is said of files that are none."""

import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from support.videos import encode

from tiekd.errors import DataError
from tiekd.inference.predict import inputs, video

pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")


def write(path, times, size=(48, 65), rate=Fraction(25, 2), time_base=Fraction(1, 1000)):
    """Frame i is of level 20 * i."""
    with video.mp4_writer(path, rate, time_base) as add:
        for index, pts in enumerate(times):
            add(np.full((*size, 3), 20 * index, np.uint8), pts)


def test_video_round_trip_keeps_frame_times(tmp_path):
    """A written video returns its frames with their uneven times, rate, count and even sides."""
    times = [0, 80, 160, 300, 320, 400]
    write(tmp_path / "deep/v.mp4", times)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["v.mp4"]
    read = video.Video(tmp_path / "deep/v.mp4")
    frames = list(read.frames())
    assert read.count == 6
    assert float(read.rate) == pytest.approx(12.5, rel=0.2)
    assert [frame.time_s for frame in frames] == pytest.approx([pts / 1000 for pts in times])
    assert frames[0].rgb.shape == (48, 66, 3)  # sides become even
    assert frames[0].rgb.dtype == np.uint8
    assert [int(frame.rgb.mean()) for frame in frames] == pytest.approx(
        [20 * i for i in range(6)], abs=4
    )


@pytest.mark.parametrize("codecs", [("libx264", "mpeg4"), ("mpeg4",)])
def test_writing_times_start_at_0_and_increase(tmp_path, monkeypatch, codecs):
    """Written times start at 0 and increase strictly, also if the given ones repeat or fall."""
    monkeypatch.setattr(video, "_CODECS", codecs)
    times = [1_000_000, 1_007_200, 1_007_200, 1_007_000, 1_018_000]
    write(tmp_path / "v.mp4", times, time_base=Fraction(1, 90_000))
    found = [frame.time_s for frame in video.Video(tmp_path / "v.mp4").frames()]
    assert found == pytest.approx([0, 0.08, 0.08, 0.08, 0.2], abs=1e-3)
    assert sorted(set(found)) == found


def test_writing_encode_error_leaves_no_file(tmp_path, monkeypatch):
    """Frames that can't be encoded raise a one-line DataError, and no file is left."""
    monkeypatch.setattr(video, "_CODECS", ("mpeg4",))
    with pytest.raises(DataError, match=r"v\.mp4: can't be encoded \(.*\); ") as error:
        write(tmp_path / "v.mp4", [0], size=(16, 9000))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_writing_exception_leaves_no_file(tmp_path):
    """An exception inside the writing context leaves no file."""

    def write_and_fail():
        with video.mp4_writer(tmp_path / "v.mp4", Fraction(25), Fraction(1, 25)) as add:
            add(np.zeros((32, 32, 3), np.uint8), 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_video_rejects_other_file(tmp_path):
    """A file that is not a video raises a one-line DataError."""
    (tmp_path / "v.mp4").write_bytes(b"nothing of the kind" * 50)
    with pytest.raises(DataError, match=r"v\.mp4: can't be read as a video") as error:
        video.Video(tmp_path / "v.mp4")
    assert "\n" not in str(error.value)


def test_video_without_pyav_names_extra(tmp_path, monkeypatch):
    """Without PyAV the error names the pip extra to install."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"pip install 'tiekd\[video\]'"):
        video.Video(tmp_path / "v.mp4")


def test_writing_without_frames_makes_no_file(tmp_path):
    """Writing no frames creates no file."""
    with video.mp4_writer(tmp_path / "v.mp4", Fraction(25), Fraction(1, 25)):
        pass
    assert list(tmp_path.iterdir()) == []


def frames_and_error(path) -> tuple[int, str]:
    count, error = 0, ""
    try:
        for _ in video.Video(path).frames():
            count += 1
    except DataError as raised:
        error = str(raised)
    assert "\n" not in error
    return count, error


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_video_truncated_yields_frames_then_raises(tmp_path, name):
    """A truncated video yields its readable frames, then states where it breaks off."""
    encode(tmp_path / name, **({"movflags": "faststart"} if name == "v.mp4" else {}))
    whole = (tmp_path / name).read_bytes()
    assert frames_and_error(tmp_path / name) == (20, "")
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    count, error = frames_and_error(tmp_path / name)
    assert 5 < count < 15
    assert error.startswith(
        f"{tmp_path / name}: breaks off after {count} frames, {count / 10:.1f} of 2.0 s; "
    )


def test_video_long_last_frame_is_complete(tmp_path):
    """A long last frame doesn't count as a truncated video."""
    encode(tmp_path / "v.mp4", count=5, last_s=8.0)
    assert frames_and_error(tmp_path / "v.mp4") == (5, "")


def test_video_animated_gif_is_video(tmp_path):
    """An animated GIF is read as a video with frame times, and a single-frame GIF as an image."""
    images = [Image.fromarray(np.full((48, 64, 3), 40 * level, np.uint8)) for level in range(6)]
    images[0].save(tmp_path / "moves.gif", save_all=True, append_images=images[1:], duration=100)
    images[0].save(tmp_path / "stands.gif")
    moves, stands = inputs.find(
        [str(tmp_path / "moves.gif"), str(tmp_path / "stands.gif")], tmp_path / "out"
    )
    assert moves.is_video
    assert not stands.is_video
    frames = list(video.Video(moves.path).frames())
    assert [int(frame.rgb.mean()) for frame in frames] == pytest.approx(
        [40 * level for level in range(6)], abs=2
    )
    assert [frame.time_s for frame in frames] == pytest.approx([0.1 * index for index in range(6)])
    whole = moves.path.read_bytes()
    moves.path.write_bytes(whole[: len(whole) // 2])
    count, error = frames_and_error(moves.path)
    assert 0 < count < 6
    assert f"moves.gif: breaks off after {count} frames; " in error


def test_video_without_frames_raises(tmp_path):
    """A file without video frames, or with sound only, raises a DataError."""
    import av

    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate = 44100
        container.mux(stream.encode(sound) + stream.encode())
    for name in ("none.mp4", "sound.mp4"):
        with pytest.raises(DataError, match=rf"{name}: there is no video in it"):
            video.Video(tmp_path / name)
