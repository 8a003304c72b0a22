"""Files of calibrations of sigma: what is written is read, and only what orders errors is used."""

import json

import pytest

from tiekd.data import sigma_calibration
from tiekd.data.sigma_calibration import Calibration
from tiekd.errors import TeacherError

GOOD = Calibration(
    source="flip",
    teacher="ab12",
    flip=True,
    frames=32,
    orders_errors=True,
    correlation=(0.41, 0.36, 0.46),
    at_depth=(0.2, 0.1, 0.3),
    gain=(0.4, 0.3, 0.5),
    factors=((5.0, 1.5), (30.0, 2.5)),
)
BLIND = Calibration(
    "own", "ab12", True, 32, False, (0.0, -0.1, 0.1), (0.0, -0.1, 0.1), (0.0, 0, 0), ()
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / sigma_calibration.NAME
    path.write_bytes(sigma_calibration.to_json({"flip": GOOD, "own": BLIND}))
    return path


def refused(path, source: str) -> str:
    with pytest.raises(TeacherError) as error:
        sigma_calibration.read(path, source, "teacher.sigma.calibration")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_read_returns_what_was_written(path):
    """A calibration is read as it was written, with tuples."""
    assert sigma_calibration.read(path, "flip", "here") == GOOD


def test_read_refuses_blind_source(path):
    """A source that was measured not to order errors is refused, with its figures."""
    told = refused(path, "own")
    assert "own doesn't order this teacher's errors better than chance" in told
    assert "0.00 [-0.10, 0.10]" in told


def test_read_refuses_unmeasured_source(path):
    """A source that the file lacks is refused, and those that it has are named."""
    assert "has no calibration of between, only of flip, own" in refused(path, "between")


def test_read_without_file(tmp_path):
    """A missing file is refused with the command that makes one."""
    assert "bin/audit_teacher.py RECIPE --sigma" in refused(tmp_path / "none.json", "flip")


@pytest.mark.parametrize(
    "change",
    [
        {"factors": [[5.0, 0.0]]},
        {"factors": [[9.0, 1.0], [5.0, 1.0]]},
        {"factors": []},
        {"correlation": [0.4, 0.3]},
        {"at_depth": [0.4, 0.3, float("nan")]},
        {"frames": "many"},
        {"orders_errors": 1},
        {"teacher": 3},
        {"flip": 1},
    ],
)
def test_read_refuses_damaged_file(path, change):
    """A file with another value than the program writes is refused in one line."""
    nodes = json.loads(path.read_text())
    nodes["flip"] |= change
    path.write_text(json.dumps(nodes))
    assert "is no file of calibrations" in refused(path, "flip")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"flip": 3}', '{"flip": {}}'])
def test_read_refuses_other_files(path, text):
    """Files of another kind are refused in one line."""
    path.write_text(text)
    assert "is no file of calibrations" in refused(path, "flip")
