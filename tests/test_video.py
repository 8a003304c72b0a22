"""Videos: frames with their times in and out, and what is said of files that are none."""

from fractions import Fraction

import numpy as np
import pytest

from tiekd.errors import DataError
from tiekd.predicting import video

pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")


def write(path, times, size=(48, 65), rate=Fraction(25, 2), time_base=Fraction(1, 1000)):
    """Frame i is of level 20 * i."""
    with video.writing(path, rate, time_base) as add:
        for index, pts in enumerate(times):
            add(np.full((*size, 3), 20 * index, np.uint8), pts)


def test_times_uneven_ones_too_come_back_with_their_frames(tmp_path):
    times = [0, 80, 160, 300, 320, 400]
    write(tmp_path / "deep/v.mp4", times)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["v.mp4"]
    read = video.Video(tmp_path / "deep/v.mp4")
    frames = list(read.frames())
    assert read.count == 6 and float(read.rate) == pytest.approx(12.5, rel=0.2)
    assert [frame.time_s for frame in frames] == pytest.approx([pts / 1000 for pts in times])
    assert frames[0].rgb.shape == (48, 66, 3) and frames[0].rgb.dtype == np.uint8  # sides become even
    assert [int(frame.rgb.mean()) for frame in frames] == pytest.approx([20 * i for i in range(6)], abs=4)


@pytest.mark.parametrize("codecs", [("libx264", "mpeg4"), ("mpeg4",)])
def test_times_are_written_from_0_and_grow_in_any_unit(tmp_path, monkeypatch, codecs):
    monkeypatch.setattr(video, "_CODECS", codecs)
    times = [1_000_000, 1_007_200, 1_007_200, 1_007_000, 1_018_000]
    write(tmp_path / "v.mp4", times, time_base=Fraction(1, 90_000))
    found = [frame.time_s for frame in video.Video(tmp_path / "v.mp4").frames()]
    assert found == pytest.approx([0, 0.08, 0.08, 0.08, 0.2], abs=1e-3) and sorted(set(found)) == found


def test_what_can_not_be_encoded_is_told_and_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_CODECS", ("mpeg4",))
    with pytest.raises(DataError, match=r"v\.mp4: can't be encoded \(.*\); ") as error:
        write(tmp_path / "v.mp4", [0], size=(16, 9000))
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), video.writing(tmp_path / "v.mp4", Fraction(25), Fraction(1, 25)) as add:
        add(np.zeros((32, 32, 3), np.uint8), 0)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_video_is_told(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"nothing of the kind" * 50)
    with pytest.raises(DataError, match=r"v\.mp4: can't be read as a video") as error:
        video.Video(tmp_path / "v.mp4")
    assert "\n" not in str(error.value)


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"pip install 'tiekd\[video\]'"):
        video.Video(tmp_path / "v.mp4")


def test_no_frames_make_no_file(tmp_path):
    with video.writing(tmp_path / "v.mp4", Fraction(25), Fraction(1, 25)):
        pass
    assert list(tmp_path.iterdir()) == []
