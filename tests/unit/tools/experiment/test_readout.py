"""A network that an experiment evaluates by its mode."""

import pytest
import torch
from support import recipes

from tiekd.evaluation.compare import EvaluatedPredictor
from tiekd.inference.student import Student
from tiekd.models.build import build_network
from tiekd.models.flip import Predictor
from tiekd.models.readout import READOUTS
from tiekd.tools.experiment import score, spec


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network(recipes.STUDENT).eval()


@pytest.mark.parametrize("readout", ["mode", "local"])
def test_readout_is_that_of_the_student(network, readout):
    """An experiment reads the depth that load_student gives by the same readout."""
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    student = Student(network, "cpu", readout)
    read = score._read(EvaluatedPredictor(Predictor(network, True)), readout)
    given = read.predict(student._normalised(pixels))
    assert torch.equal(given, student.predict_resized(pixels).depth)
    # The mean isn't the same, and is read by the network itself.
    mean = score._read(EvaluatedPredictor(Predictor(network, True)), "mean")
    assert mean.predict.flip
    assert not torch.allclose(mean.predict(student._normalised(pixels)), given, atol=0.5)


def test_readouts_of_specification_are_those_of_the_project():
    """A specification allows all readouts, which it lists without importing torch."""
    assert spec.READOUTS == READOUTS
