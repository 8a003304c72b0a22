"""The meanings of a teacher's output, and metres from the metric ones."""

import pytest
import torch

from tiekd.errors import TeacherError
from tiekd.teachers.outputs.meaning import OUTPUTS, find_meaning, to_metres


def test_find_meaning_returns_each_meaning_by_name():
    """All six meanings are found; each relative one names its opposite in the other space."""
    assert list(OUTPUTS) == [
        *("metres", "canonical", "depth_scale", "depth_affine", "inverse", "inverse_affine")
    ]
    for name, meaning in OUTPUTS.items():
        assert find_meaning(name, has_anchor=True) is meaning
        if meaning.is_metric:
            assert meaning.opposite is None
            continue
        other = OUTPUTS[meaning.opposite]
        assert other.opposite == name
        assert other.has_shift == meaning.has_shift
        assert {other.space, meaning.space} == {"depth", "inverse"}


def test_find_meaning_refuses_unknown_name():
    """An unknown meaning ends in one line that lists the known ones."""
    with pytest.raises(TeacherError) as raised:
        find_meaning("disparity", has_anchor=True)
    assert str(raised.value) == (
        "teacher.output: 'disparity' is no meaning of an output; use metres, canonical, "
        "depth_scale, depth_affine, inverse, inverse_affine"
    )


@pytest.mark.parametrize("name", ["depth_scale", "depth_affine", "inverse", "inverse_affine"])
def test_find_meaning_refuses_relative_output_without_anchor(name):
    """A relative output without an anchor ends in one line that says what to set."""
    with pytest.raises(TeacherError) as raised:
        find_meaning(name, has_anchor=False)
    message = str(raised.value)
    assert message.startswith(f"teacher.output: {name} ({OUTPUTS[name].formula}) isn't metric")
    assert "teacher.anchor" in message
    assert "metres or canonical" in message
    assert "\n" not in message


def test_to_metres_keeps_metres_and_drops_invalid():
    """Metres stay as they are; what isn't finite or not positive becomes 0."""
    output = torch.tensor([2.5, 0.0, -1.0, float("nan"), float("inf")]).view(1, 1, 1, 5)
    depth = to_metres(output.double(), OUTPUTS["metres"])
    assert depth.dtype == torch.float32
    assert depth.flatten().tolist() == [2.5, 0, 0, 0, 0]


def test_to_metres_scales_canonical_by_each_image_s_focal():
    """Canonical output is multiplied by focal / 300, image by image."""
    output = torch.full((2, 1, 2, 2), 4.0)
    depth = to_metres(output, OUTPUTS["canonical"], torch.tensor([300.0, 750.0]))
    assert depth[0].unique().tolist() == [4.0]
    assert depth[1].unique().tolist() == [10.0]
    assert to_metres(output, OUTPUTS["canonical"], 150).unique().tolist() == [2.0]


@pytest.mark.parametrize("focal", [None, 0.0, -5.0, torch.tensor([500.0, float("nan")])])
def test_to_metres_refuses_canonical_without_focal(focal):
    """A missing focal length of one image ends in one line."""
    with pytest.raises(TeacherError, match="needs the focal length of every image") as raised:
        to_metres(torch.ones(2, 1, 2, 2), OUTPUTS["canonical"], focal)
    assert "\n" not in str(raised.value)
