"""The engine and a plain torch loop learn the same on two ranks."""

from support.benchmark_options import ALWAYS, arguments

from tiekd.tools.benchmarks import engine, measure
from tiekd.tools.benchmarks.arguments import LIGHT


def test_engine_equals_torch_on_two_ranks():
    """The engine and a plain torch loop reach the same losses on two ranks.

    Each rank has another batch, so that losses agree only where both share their gradients.
    """
    words = ["--against", "torch", "--ranks", "2", "--zero", "1", "--block", "3"]
    result = engine.run(arguments(engine, "--recipe", str(LIGHT), *words))
    (row,) = result["table"]
    assert result.keys() >= ALWAYS
    assert result["time_ratio"] == row["time_ratio"]
    assert (row["ranks"], row["zero"]) == (2, 1)
    assert row["loss_difference"] < 1e-5
    assert row["time_ratio_range"][0] <= row["time_ratio"] <= row["time_ratio_range"][1]
    assert measure.as_text(result)
