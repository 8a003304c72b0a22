"""Which frames a report shows, and what their pictures are."""

import math

import numpy as np
import pytest
import torch

from tiekd.evaluation.metrics import METRIC_NAMES
from tiekd.evaluation.per_frame import FrameTable
from tiekd.tools.report import shown_frames
from tiekd.visualization import pictures


def table(values) -> FrameTable:
    rows = torch.zeros(len(values), 9, dtype=torch.float64)
    rows[:, METRIC_NAMES.index("abs_rel")] = torch.tensor(values, dtype=torch.float64)
    return FrameTable(
        [f"{i}.png" for i in range(len(values))], rows, torch.zeros(len(values), 3, 4)
    )


def kinds(values, each=3):
    found = shown_frames.choose(table(values), each)
    return [(chosen.kind, chosen.index) for chosen in found]


def test_choose_takes_worst_median_and_best():
    """Frames are ordered by their error; one without ground truth is never shown."""
    values = [0.1 * i for i in (4, 0, 8, 2, 6, 1, 5, 3, 7)]
    assert kinds([*values, math.nan], 1) == [("worst", 2), ("median", 0), ("best", 1)]
    found = kinds([*values, math.inf])
    assert found[0] == ("worst", 9)
    assert found[-3:] == [("best", 1), ("best", 5), ("best", 3)]
    assert len({index for _, index in found}) == 9


@pytest.mark.parametrize("count", range(12))
def test_choose_takes_no_frame_twice(count):
    """With few frames there are fewer of each kind, and none is repeated."""
    found = kinds([0.1 * i for i in range(count)])
    indices = [index for _, index in found]
    assert len(set(indices)) == len(indices) == min(count, 9)


def test_pictures_show_the_difference_from_the_target():
    """The difference is from what figures compare with; sigma has the colours of the difference."""
    image, sigma = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 1.0)
    truth, teacher, student = np.zeros((4, 6)), np.full((4, 6), 5.0), np.full((4, 6), 6.0)
    known = {"ground truth": truth, "teacher": teacher}
    drawn = shown_frames._draw_pictures(image, known, student, sigma, "teacher", 40.0)
    names = ["image", "teacher", "student", "difference from teacher", "excess width"]
    assert list(drawn) == names
    # An error of 1 m and a sigma of 1 m have the same colour, a fifth up their scale.
    assert np.array_equal(drawn["difference from teacher"], drawn["excess width"])
    assert np.array_equal(drawn["excess width"], pictures.paint_error(sigma, 5.0))
    truth[0, 0] = 2.0
    drawn = shown_frames._draw_pictures(image, known, student, None, "ground truth", 40.0)
    names = ["image", "ground truth", "teacher", "student", "difference from ground truth"]
    assert list(drawn) == names
    assert tuple(drawn[names[-1]][3, 5]) == pictures.UNKNOWN
    # Where there is both, agreement is still compared with the teacher.
    drawn = shown_frames._draw_pictures(image, known, student, None, "teacher", 40.0)
    assert list(drawn)[-1] == "difference from teacher"


def test_draw_shows_frames_that_were_chosen(accurate):
    """Pictures are of the images of the chosen frames, and no wider than a page needs."""
    names = {each.chosen.name for each in accurate.frame_pictures}
    assert names == set(accurate.validation.measured.result.frames.names)
    shown = accurate.frame_pictures[0]
    assert shown.pictures["image"].shape == (48, 64, 3)
    # The image is noise at its own size, not resized.
    assert shown.pictures["image"].std() > 60
    wide = shown_frames._scaled({"x": np.zeros((100, 1000, 3), np.uint8)})
    assert wide["x"].shape == (48, 480, 3)
    assert shown_frames._scaled({"x": np.zeros((480, 640, 3), np.uint8)})["x"].shape[1] == 320


def test_draw_without_a_frame_draws_nothing(accurate):
    """Where no frame counts there is nothing to draw."""
    assert shown_frames.draw([], None, None, False, None, accurate.resize, None) == []


def test_draw_asks_the_teacher_for_the_mirrored_image(accurate):
    """The teacher's change under a flip is that of its network, frame by frame."""
    assert all(0 < each.teacher_flip < 1 for each in accurate.frame_pictures)
