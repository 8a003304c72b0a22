"""The kinds of a teacher's output, and metres from the metric ones."""

import pytest
import torch

from tiekd.errors import TeacherError
from tiekd.teachers.outputs.output_kind import OUTPUT_KINDS, find_output_kind, to_metres


def test_find_output_kind_returns_each_kind_by_name():
    """All six kinds are found; each relative one names its opposite in the other space."""
    assert list(OUTPUT_KINDS) == [
        *("metres", "canonical", "depth_scale", "depth_affine", "inverse", "inverse_affine")
    ]
    for name, output_kind in OUTPUT_KINDS.items():
        assert find_output_kind(name, has_anchor=True) is output_kind
        if output_kind.is_metric:
            assert output_kind.opposite is None
            continue
        other = OUTPUT_KINDS[output_kind.opposite]
        assert other.opposite == name
        assert other.has_shift == output_kind.has_shift
        assert {other.space, output_kind.space} == {"depth", "inverse"}


def test_find_output_kind_refuses_unknown_name():
    """An unknown kind ends in one line that lists the known ones."""
    with pytest.raises(TeacherError) as raised:
        find_output_kind("disparity", has_anchor=True)
    assert str(raised.value) == (
        "teacher.output: 'disparity' is no kind of output; use metres, canonical, "
        "depth_scale, depth_affine, inverse, inverse_affine"
    )


@pytest.mark.parametrize("name", ["depth_scale", "depth_affine", "inverse", "inverse_affine"])
def test_find_output_kind_refuses_relative_output_without_anchor(name):
    """A relative output without an anchor ends in one line that says what to set."""
    with pytest.raises(TeacherError) as raised:
        find_output_kind(name, has_anchor=False)
    message = str(raised.value)
    assert message.startswith(f"teacher.output: {name} ({OUTPUT_KINDS[name].formula}) isn't metric")
    assert "teacher.anchor" in message
    assert "metres or canonical" in message
    assert "\n" not in message


def test_to_metres_keeps_metres_and_drops_invalid():
    """Metres stay as they are; what isn't finite or not positive becomes 0."""
    output = torch.tensor([2.5, 0.0, -1.0, float("nan"), float("inf")]).view(1, 1, 1, 5)
    depth = to_metres(output.double(), OUTPUT_KINDS["metres"])
    assert depth.dtype == torch.float32
    assert depth.flatten().tolist() == [2.5, 0, 0, 0, 0]


def test_to_metres_scales_canonical_by_each_image_s_focal():
    """Canonical output is multiplied by focal / 300, image by image."""
    output = torch.full((2, 1, 2, 2), 4.0)
    depth = to_metres(output, OUTPUT_KINDS["canonical"], torch.tensor([300.0, 750.0]))
    assert depth[0].unique().tolist() == [4.0]
    assert depth[1].unique().tolist() == [10.0]
    assert to_metres(output, OUTPUT_KINDS["canonical"], 150).unique().tolist() == [2.0]


@pytest.mark.parametrize("focal", [None, 0.0, -5.0, torch.tensor([500.0, float("nan")])])
def test_to_metres_refuses_canonical_without_focal(focal):
    """A missing focal length of one image ends in one line."""
    with pytest.raises(TeacherError, match="needs the focal length of every image") as raised:
        to_metres(torch.ones(2, 1, 2, 2), OUTPUT_KINDS["canonical"], focal)
    assert "\n" not in str(raised.value)
