"""confidence.json: what is read of it, and what is refused."""

import json

import pytest

from tiekd.errors import DataError
from tiekd.tools.report import calibrated

ROWS = [{"confidence": 0.25, "share_within": 0.5, "pixels": 3}]
FIGURES = {"nll": 1.5, "reliability_of_confidence": ROWS, "sparsification": {"gain": None}}
NODE = {
    "temperature": 1.75,
    "band": 0.1,
    "against": "ground truth",
    "remarks": ["a"],
    "weights": "best_abs_rel.pth",
    "iteration": 8,
    "before": FIGURES,
    "after": FIGURES | {"nll": 1.25, "new": 2.0},
}


def test_read_finds_figures_of_both(tmp_path):
    """Numbers that both have stand side by side, and the curve is read."""
    assert calibrated.read(tmp_path) is None
    (tmp_path / calibrated.NAME).write_text(json.dumps(NODE))
    found = calibrated.read(tmp_path)
    assert (found.temperature, found.band, found.iteration) == (1.75, 0.1, 8)
    assert found.figures == {"nll": (1.5, 1.25)}
    assert found.curves == (([0.25], [0.5]), ([0.25], [0.5]))
    assert found.remarks == ["a"]
    assert found.data_set == ""
    (tmp_path / calibrated.NAME).write_text(json.dumps(NODE | {"data_set": "own"}))
    assert calibrated.read(tmp_path).data_set == "own"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps({"temperature": 1.0}),
        json.dumps(NODE | {"temperature": -1.0}),
        json.dumps(NODE | {"before": 3}),
        json.dumps(NODE | {"before": {"reliability_of_confidence": [{}]}}),
    ],
)
def test_read_refuses_what_is_damaged(tmp_path, text):
    """Anything else is refused in one line that names the file."""
    (tmp_path / calibrated.NAME).write_text(text)
    with pytest.raises(
        DataError, match="confidence.json: not the figures of a calibration"
    ) as error:
        calibrated.read(tmp_path)
    assert "\n" not in str(error.value)
