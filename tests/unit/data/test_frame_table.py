"""The table of a data set's frames: what a list of frames says, in arrays."""

import numpy as np
import pytest

from tiekd.data.cameras.calibration import Camera
from tiekd.data.frame_table import Cameras, Frame, FrameTable, Texts, spaced

FRAMES = [
    Frame("a/1.png", "/data/a/1.png", None, Camera(5.0, 5.0)),
    Frame("b\udcff.png", "/data/b\udcff.png", "/depth/b.png", None),
    Frame("ä/3.jpg", "/data/ä/3.jpg", "/depth/3.npy", Camera(5.0, 5.0)),
]


def test_frame_table_is_the_list_of_its_frames():
    """A table gives the frames that it was made of, one, several or all."""
    table = FrameTable.of(FRAMES)
    assert list(table) == FRAMES
    assert table[1] == FRAMES[1]
    assert table[-1] == FRAMES[2]
    assert list(table[1:]) == FRAMES[1:]
    assert list(table.take(np.array([2, 0]))) == [FRAMES[2], FRAMES[0]]
    assert FrameTable.of(table) is table
    assert table.has_depth.tolist() == [False, True, True]
    assert table.cameras.are_known.tolist() == [True, False, True]
    assert len(table.cameras.distinct) == 2
    with pytest.raises(IndexError):
        table[3]
    assert len(FrameTable.of(())) == 0


def test_frame_table_with_cameras():
    """Other cameras replace those of all frames and nothing else."""
    table = FrameTable.of(FRAMES).with_cameras(Cameras.same(None, 3))
    assert list(table) == [frame._replace(camera=None) for frame in FRAMES]


def test_texts_begins_with():
    """A beginning is compared with each text, also with a shorter one, and without the prefix."""
    texts = Texts.of(["day/1", "da", "day2/1", ""], prefix="/images/")
    assert texts.begins_with("day").tolist() == [True, False, True, False]
    assert texts.begins_with("day/").tolist() == [True, False, False, False]
    assert texts.begins_with("").all()
    assert texts[0] == "/images/day/1"
    assert texts.below("x/").take(np.array([1]))[0] == "x/da"


def test_spaced_has_first_and_last():
    """Evenly spaced indices have the first and the last one, each once."""
    assert spaced(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spaced(1, 3).tolist() == [0]
    assert spaced(0, 3).tolist() == []
    rows = spaced(1_000_001, 1000)
    assert rows[0] == 0
    assert rows[-1] == 1_000_000
    assert len(rows) == 1000
