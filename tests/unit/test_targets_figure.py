"""The figure of the targets' bias."""

import draw_targets
import pytest
import torch


def test_targets_figure_equals_script_output():
    """The stored figure is what its script draws."""
    assert draw_targets.FIGURE.read_text(encoding="utf-8") == draw_targets.draw()


@pytest.mark.parametrize(
    ("num_bins", "max_depth", "depth", "wanted"),
    [(257, 80.0, 2.0, 0.9), (257, 80.0, 20.0, 0.1), (49, 10.0, 2.0, 1.0), (49, 10.0, 9.5, -1.5)],
)
def test_bias_of_targets(num_bins, max_depth, depth, wanted):
    """The released target's mean is biased near the ends of the bins, the Gaussian's isn't."""
    found = draw_targets.bias(torch.tensor([depth]), num_bins, max_depth)
    assert found["released"].item() == pytest.approx(wanted, abs=0.07)
    assert found["gaussian"].item() == pytest.approx(0, abs=1e-3)
