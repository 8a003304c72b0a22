"""The last lines of a distillation."""

import json

from tiekd.tools.distill import plan as plans
from tiekd.tools.distill import summary


def test_summary_labels_agreement(tmp_path):
    """Figures against the teacher carry their label, and only files that are there are named."""
    plan = plans.new({"images": "/x", "teacher": {}, "epochs": 1}, threads=2)
    node = {
        "protocol": {"figures_are": "agreement with the teacher, not accuracy"},
        "networks": {"recipe": {"metrics": {"abs_rel": 0.123456, "a1": 0.9}}},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(node))
    (tmp_path / "recipe.yaml").touch()
    text = "\n".join(summary.lines(plan, tmp_path))
    assert "abs_rel 0.1235, a1 0.9000 (agreement with the teacher, not accuracy)" in text
    assert "recipe.yaml" in text
    assert "student.onnx" not in text
    assert "OMP_NUM_THREADS=2" in text


def test_summary_has_floor_beside_student(tmp_path):
    """The figures are the student's, and the map that ignores the image stands beside them."""
    networks = {"median map": 0.4, "recipe": 0.1}
    node = {"networks": {name: {"metrics": {"abs_rel": x}} for name, x in networks.items()}}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(node))
    told = summary.metrics_text(path)
    assert told == "abs_rel 0.1000; median map of training frames: abs_rel 0.4000"


def test_summary_says_how_confidence_is_calibrated(tmp_path):
    """The temperature stands with the calibration error before and after, or that there is none."""
    plan = plans.new({"images": "/x", "teacher": {}, "epochs": 1}, threads=2)
    assert "confidence: not calibrated, temperature 1" in "\n".join(summary.lines(plan, tmp_path))
    errors = [{"calibration_error": value} for value in (0.25, 0.0625)]
    node = {"temperature": 1.5, "against": "the teacher", "before": errors[0], "after": errors[1]}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "confidence.json").write_text(json.dumps(node))
    told = "temperature 1.5: calibration error 0.2500 before, 0.0625 after (against the teacher)"
    assert told in "\n".join(summary.lines(plan, tmp_path))
