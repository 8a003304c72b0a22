"""Sources of sigma: their values by hand, their limits, and which settings are refused."""

import pytest
import torch

from tiekd.data import sigma_calibration
from tiekd.data.sigma_calibration import Calibration
from tiekd.errors import TeacherError
from tiekd.teachers.outputs import sigma
from tiekd.teachers.outputs.sigma import SigmaOptions, disagreement, options_of

FACTORS = ((5.0, 1.0), (15.0, 3.0), (35.0, 2.0))


@pytest.fixture
def calibration(tmp_path):
    path = tmp_path / sigma_calibration.NAME
    good = Calibration(
        "flip", "ab12", True, 32, True, (0.4, 0.3, 0.5), (0.2, 0.1, 0.3), (0.4, 0.3, 0.5), FACTORS
    )
    path.write_bytes(sigma_calibration.to_json({"flip": good}))
    return path


def refused(node) -> str:
    with pytest.raises(TeacherError) as error:
        options_of(node)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_disagreement_of_two_is_difference_by_root_two():
    """Far from other pixels, two depths of 10 and 12 m have a sigma of 2 / sqrt(2) m."""
    pair = torch.stack((torch.full((20, 30), 10.0), torch.full((20, 30), 12.0)))[None]
    found = disagreement(pair)
    assert found.shape == (1, 1, 20, 30)
    assert torch.allclose(found, torch.full_like(found, 2**0.5))


def test_disagreement_of_independent_errors_is_their_sigma():
    """Two depths with independent errors of 0.5 m give 0.5 m on average."""
    torch.manual_seed(0)
    for count in (2, 4):
        depths = 20 + 0.5 * torch.randn(1, count, 100, 100)
        assert disagreement(depths).square().mean().sqrt().item() == pytest.approx(0.5, rel=0.03)


def test_disagreement_averages_over_window():
    """At 100 rows the window has 5 pixels a side: one pixel's square is spread over 25."""
    pair = torch.full((1, 2, 100, 120), 10.0)
    pair[0, 1, 50, 60] = 15
    found = disagreement(pair)[0, 0]
    inside = found[48:53, 58:63]
    assert torch.allclose(inside, torch.full_like(inside, (5**2 / 2 / 25) ** 0.5))
    assert (found > 1e-4).sum() == 25


def test_disagreement_leaves_out_invalid_depths():
    """Pixels without two valid depths count neither as agreement nor as disagreement."""
    pair = torch.full((1, 2, 40, 40), 10.0)
    pair[0, 1] = 12
    pair[0, 1, :, 20:] = 0
    pair[0, 0, :, 30:] = float("nan")
    found = disagreement(pair)[0, 0]
    assert torch.allclose(found[:, :21], torch.full((40, 21), 2**0.5))
    assert (found[:, 21:] == 0).all()


def test_disagreement_of_equal_depths_is_zero():
    """Where an image and its mirror image agree, sigma is 0, i.e. the head's own sigma."""
    depth = torch.rand(2, 1, 32, 48) * 70 + 1
    assert disagreement(depth.expand(-1, 2, -1, -1)).abs().max() == 0


def test_factor_at_interpolates():
    """The factor is linear between the depths and constant beyond them."""
    depth = torch.tensor([1.0, 5, 10, 15, 25, 35, 80])
    found = sigma.factor_at(depth, FACTORS)
    assert found.tolist() == pytest.approx([1, 1, 2, 3, 2.5, 2, 2])
    assert sigma.factor_at(depth, ((9.0, 1.7),)) == 1.7


def test_finished_multiplies_limits_and_masks():
    """Sigma is multiplied by the factor for its depth, limited to max, and 0 without a depth."""
    options = SigmaOptions("flip", factors=FACTORS, max_m=2.5)
    depth = torch.tensor([0.0, 5, 10, 15]).view(1, 1, 1, 4)
    found = options.finished(torch.ones(1, 1, 1, 4), depth)
    assert found.flatten().tolist() == pytest.approx([0, 1, 2, 2.5])


def test_options_of_constant_and_none():
    """A number is a constant sigma; nothing is no sigma."""
    assert options_of(None) is None
    assert options_of(0.5).constant == 0.5
    assert options_of(0.5).description == 0.5
    assert options_of(0.5).note() is None


def test_options_of_calibration(calibration):
    """A calibration gives the factors, and the log and the manifest its figures."""
    options = options_of({"from": "flip", "calibration": str(calibration), "max": 3})
    assert options.factors == FACTORS
    assert options.max_m == 3
    assert (
        "times 1.00 to 3.00; rank correlation with its errors 0.40 [0.30, 0.50]" in options.note()
    )
    assert options.description["rank_correlation"] == [0.4, 0.3, 0.5]
    options.check_teacher("ab12", flip=True)
    with pytest.raises(TeacherError, match="it is of another teacher"):
        options.check_teacher("cd34", flip=True)
    with pytest.raises(TeacherError, match="it was measured with teacher.flip=true"):
        options.check_teacher("ab12", flip=False)


def test_options_without_calibration_warn():
    """A source that nobody measured is used with a warning."""
    for node in ({"from": "own"}, {"from": "own", "factor": 2}):
        assert options_of(node).note().startswith("Warning: teacher.sigma: nothing shows that own")


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (0, "teacher.sigma: got 0; metres above 0"),
        (True, "teacher.sigma: got True; metres above 0"),
        ("flip", "teacher.sigma: got 'flip'; metres above 0"),
        ({}, "teacher.sigma.from: got None; allowed: flip, between, own, or a number"),
        ({"from": "flap"}, "teacher.sigma.from: got 'flap'"),
        ({"from": "flip", "maximum": 3}, "teacher.sigma.maximum: not a key; allowed: from"),
        ({"from": "flip", "max": -1}, "teacher.sigma.max: got -1; metres above 0"),
        ({"from": "flip", "factor": 0}, "teacher.sigma.factor: got 0; a number above 0"),
        ({"from": "flip", "factor": [[9, 1], [3, 1]]}, "with increasing depths"),
        ({"from": "flip", "factor": [1, 2]}, "pairs [depth in metres, factor]"),
        ({"from": "flip", "factor": []}, "pairs [depth in metres, factor]"),
        ({"from": "flip", "modes": 3}, "teacher.sigma.modes: only for own"),
        ({"from": "own", "modes": 1}, "teacher.sigma.modes: got 1; a whole number of 2 or more"),
        ({"from": "flip", "factor": 1, "calibration": "x"}, "both calibration and factor"),
        ({"from": "own", "modes": 2, "calibration": "x"}, "it is of a single sigma"),
        ({"from": "flip", "calibration": "none.json"}, "teacher.sigma.calibration: no file at"),
    ],
)
def test_options_of_refuses(node, told):
    """Wrong settings end in one line that says what is allowed."""
    assert told in refused(node)
