"""The benchmarks at toy sizes.

Their counts are right, their reports are complete, and a plain twin learns alike.
"""

import copy
import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.benchmark_options import ALWAYS, arguments

from tiekd.config.recipe import load_recipe
from tiekd.engine import execution
from tiekd.errors import LaunchError, RecipeError
from tiekd.kernels import layouts, reference
from tiekd.models.build import build_network
from tiekd.tools.benchmarks import (
    COMMANDS,
    against_torch,
    engine,
    growth,
    head,
    measure,
    step,
    student,
    teacher,
    training,
)
from tiekd.tools.benchmarks import arguments as choices
from tiekd.tools.benchmarks import layouts as layouts_benchmark
from tiekd.tools.benchmarks.arguments import LIGHT, OF, PUBLISHED
from tiekd.tools.benchmarks.line_plot import COLOURS, draw
from tiekd.tools.benchmarks.training import BatchShape, TrainingStep, make_plain
from tiekd.visualization import figures

ROOT = Path(__file__).parents[4]


def test_argument_choices_equal_modules():
    """The command's choices equal the dtypes, targets, formats and commands of the modules."""
    assert tuple(head.DTYPES) == choices.DTYPES
    assert tuple(training.DTYPES) == choices.AUTOCAST
    assert choices.TARGETS == reference.TARGETS
    assert choices.FORMATS == execution.FORMATS
    assert list(choices.OF) == list(COMMANDS)


def test_multiply_adds_of_published_student():
    """The published student has 17.65 M parameters and, in plain form, 171 GMAC."""
    recipe = load_recipe(PUBLISHED)
    network = build_network(recipe["network"]).eval()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(17.65, abs=0.01)
    # Convolutions count by pixel, so a part of the image tells all of it: 171 GMAC at 352x704.
    image, kernel = torch.zeros(1, 3, 176, 352), network.head.kernel
    ours = student.multiply_adds(network, image)
    plain = student.multiply_adds(make_plain(copy.deepcopy(network)), image)
    assert 4 * plain / 1e9 == pytest.approx(171, rel=0.01)
    # The 1x1 convolution of 320 to 2048 channels and their cost in the next one, against the
    # product of both weights.
    assert (
        plain - ours
        == 22 * 44 * (320 * 2048 + 9 * 512 * (2048 - 320) - 9 * 512) - 9 * 512 * (320 + 1) * 2048
    )
    assert network.head.kernel is kernel is not reference.dpm


def test_student_reports_network_or_teacher():
    """The benchmark reports a recipe's student or, if it names one, its teacher."""
    result = student.run(arguments(student, "--recipe", str(LIGHT)))
    assert result.keys() >= ALWAYS | {
        "parameters_m",
        "gmac",
        "weights_mb",
        "ours_s",
        "ours_peak_mb",
    }
    assert result["parameters_m"] == pytest.approx(2.33, abs=0.01)
    teachers = student.run(arguments(student, "--recipe", str(LIGHT), "--teacher"))
    assert teachers["parameters_m"] > 5 * result["parameters_m"]
    with pytest.raises(RecipeError, match="names no teacher network"):
        student.run(
            arguments(
                student, "--recipe", str(ROOT / "model_configs" / "demo_teacher.yaml"), "--teacher"
            )
        )


def test_head_reports_ratios_and_error():
    """The benchmark reports ratios and a relative error below 1e-4 between two kernels."""
    result = head.run(
        arguments(head, "--bins", "49", "--channels", "8", "--also", "products", "chunks")
    )
    assert result.keys() >= ALWAYS | {"ours_peak_mb", "products", "chunks"}
    assert (
        "chunked / reference, fp32, contiguous, batch 1, 8 channels, 49 bins, 32x64"
        in result["compared"]
    )
    assert 0 < result["worst_relative_error"] < 1e-4
    assert result["products"]["time_ratio"] > 0
    assert "memory_ratio" in result["chunks"]


def test_head_in_chunks_equals_reference():
    """The head computed in chunks of rows gives the reference's training result."""
    *tensors, sigma = head.example(2, 4, 8, 40, 6, torch.float64, torch.device("cpu"))
    inputs = *(t.double() for t in tensors), sigma
    torch.testing.assert_close(
        head.train(head.in_chunks, *inputs, "gaussian"),
        head.train(reference.dpm, *inputs, "gaussian"),
    )


def test_roofline_seconds_takes_slower_bound():
    """The roofline time is the larger of the memory time and the arithmetic time."""
    times = head.roofline_seconds(1, 100, 50, 10, 10, 2, bytes_per_s=1e6, flops_per_s=1e12)
    assert times["forward_s"] == pytest.approx((100 * 100 * 2 + 16 * 100) / 1e6)
    assert head.roofline_seconds(1, 100, 50, 10, 10, 2, 1e12, 1e6)["backward_s"] == pytest.approx(
        3 * 2 * 100 * 100 * 50 / 1e6
    )


def test_step_reports_ratios_and_loss_difference():
    """The benchmark reports throughput and a small loss difference in fp32 and bf16."""
    result = step.run(arguments(step, "--recipe", str(LIGHT), "--batch", "2"))
    assert result.keys() >= ALWAYS | {"ours_images_per_s", "reference_images_per_s", "ours_peak_mb"}
    assert result["first_loss_difference"] < 1e-5
    assert "fp32, contiguous" in result["compared"]
    in_bf16 = step.run(arguments(step, "--recipe", str(LIGHT), "--dtype", "bf16"))
    assert 0 < in_bf16["first_loss_difference"] < 1e-2
    assert "bf16, channels_last" in in_bf16["compared"]


def test_step_plain_twin_gradients_agree():
    """The published student and its plain twin have the same loss and nearly the same gradient."""
    result = step.run(arguments(step, "--batch", "2", "--rounds", "1"))
    assert result["first_loss_difference"] < 1e-5
    ours, plain = (
        TrainingStep(load_recipe(PUBLISHED), torch.device("cpu"), BatchShape(1, 32, 64), plain=p)
        for p in (False, True)
    )
    assert ours.network.head.kernel is not plain.network.head.kernel is reference.dpm
    plain_parts = {
        type(module).__name__
        for module in plain.network.modules()
        if getattr(module, "plain", False)
    }
    assert plain_parts == {"ConvNorm", "TwoConvs", "UpsampledConv"}
    gradients = []
    for each in (ours, plain):
        each.optimizer.zero_grad = lambda: None
        each()
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in each.network.parameters()])
        )
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert 0 < difference < 1e-3


@pytest.mark.parametrize("isa", layouts.ISAS)
def test_layouts_measures_every_row(isa, monkeypatch):
    """Each row of an instruction set's layout table is measured; other devices are rejected."""
    monkeypatch.setattr(layouts, "isa", lambda: isa)
    layouts.set_settings(None)
    parser = ArgumentParser()
    OF["layouts"](parser)
    args = parser.parse_args(["--shrink", "16"])
    args.device, args.rounds = "cpu", 1
    result = layouts_benchmark.run(args)
    measured = {row["row"]: row for row in result["rows"]}
    assert result["isa"] == isa
    assert measured.keys() == layouts.of_isa(isa).keys()
    for name, chosen in layouts.of_isa(isa).items():
        assert measured[name]["table"] == chosen
        assert measured[name][chosen] == 1.0
    training = measured[f"{layouts.LARGE_TRAINING}, fp32"]
    assert training.keys() >= {layouts.KEEP_LAYOUT, layouts.CHANNELS_LAST, layouts.PRODUCTS}
    assert isa in measure.hardware("cpu")["device"]
    args.device = "cuda"
    with pytest.raises(LaunchError, match="allowed: cpu"):
        layouts_benchmark.run(args)


def test_training_step_learns_and_counts_state():
    """Repeated steps lower the loss, and the state's size is weights and two moments."""
    one = TrainingStep(load_recipe(LIGHT), torch.device("cpu"), BatchShape(2, 32, 64))
    one()
    first = one.loss.item()
    for _ in range(5):
        one()
    assert one.loss.item() < first
    count = sum(p.numel() for p in one.network.parameters())
    assert one.state_bytes() == pytest.approx(3 * 4 * count, rel=0.05), "weights and two moments"


def test_step_rejects_unknown_device():
    """An unknown device raises a LaunchError that lists the allowed ones."""
    with pytest.raises(LaunchError, match="allowed: cpu, cuda"):
        step.run(arguments(step, "--device", "tpu"))


def test_teacher_compares_maps_with_network():
    """Cached maps are faster in some round than the running teacher of over 10 M parameters."""
    result = teacher.run(arguments(teacher, "--recipe", str(LIGHT), "--rounds", "5"))
    assert result.keys() >= ALWAYS | {"teacher_parameters_m"}
    assert result["time_ratio_range"][0] < 1
    assert result["teacher_parameters_m"] > 10


def test_amortised_spreads_hooks_over_interval():
    """Hook times are divided by their intervals, and interval 0 adds nothing."""
    times = {"off": [1.0, 1.0], "line": [3.0], "image": [11.0, 11.0, 500.0]}
    assert engine._amortised(times, 50, 500) == pytest.approx(1 + 2 / 50 + 10 / 500)
    assert engine._amortised(times, 50, 0) == pytest.approx(1 + 2 / 50)


def test_combined_uses_slowest_rank():
    """A round's time is its slowest rank's, and memory is summed over ranks."""
    ranks = [
        {
            "engine_s": [1.0, 4.0, 3.0],
            "torch_s": [2.0, 1.0, 1.0],
            "engine_peak": 1e6,
            "torch_peak": 2e6,
        },
        {
            "engine_s": [3.0, 2.0, 3.0],
            "torch_s": [1.0, 1.0, 2.0],
            "engine_peak": 2e6,
            "torch_peak": 4e6,
        },
    ]
    row = against_torch.combined(
        [rank | {"loss_difference": 1e-7 * i} for i, rank in enumerate(ranks)]
    )
    assert row["time_ratio"] == 1.5
    assert row["time_ratio_range"] == [1.5, 4.0]
    assert row["memory_ratio"] == 0.5
    assert row["engine_peak_mb"] == 3.0
    assert row["loss_difference"] == 1e-7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--deepspeed_config", "ds_configs/fp32.json"], "leave --deepspeed_config out"),
        (["--ranks", "0"], "--ranks: got 0; each must be a whole number from 1"),
    ],
)
def test_engine_against_torch_rejects_options(words, told):
    """Comparing with torch rejects an engine config and invalid rank counts."""
    with pytest.raises(LaunchError, match=told):
        engine.run(arguments(engine, "--against", "torch", *words))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1000001", "9" * 5000, "x\x1b", ""])
def test_whole_refuses_sizes_that_nothing_has(text, capsys):
    """A size or a count below 1, or one that no machine holds, is refused by the option's name."""
    with pytest.raises(SystemExit):
        arguments(head, "--height", text)
    told = capsys.readouterr().err
    assert "argument --height: got " in told
    assert told.endswith("it must be a whole number from 1 to 1000000\n")
    assert arguments(head, "--height", "1000000").height == 10**6


def test_growth_tells_linear_from_nonlinear():
    """A near-linear curve and a nonlinear one are judged as such, with the worst size named."""
    curve = growth.compare_with_line([1, 2, 4, 8], [0.11, 0.21, 0.41, 0.81], [100, 200, 400, 1600])
    assert curve["time_by_line"] == pytest.approx([1] * 4)
    told = curve["says"].split("; ")
    assert told[0] == "time: near linear"
    assert told[1].startswith("memory: not linear, ")
    assert " at 8" in told[1]
    assert growth.table({"batch": curve}).count("batch ") == 4


def test_growth_measures_and_plots(tmp_path):
    """The benchmark measures the chosen axes, writes a plot and is JSON serialisable."""
    words = ["--batches", "1", "2", "--crops", "1", "2", "--bins", "32", "64", "--ranks", "--plot"]
    result = growth.run(arguments(growth, *words, str(tmp_path / "growth.png")))
    assert result.keys() >= ALWAYS | {"table", "batch", "crop", "bins"}
    assert "ranks" not in result
    assert result["crop"]["sizes"] == [2048, 4096]
    figure = Image.open(tmp_path / "growth.png")
    assert figure.width > 2 * figure.height
    assert json.loads(json.dumps(result)) == result


def test_draw_has_time_and_memory_colours(monkeypatch):
    """The plot contains the colours of the time and memory curves.

    Axes end at 1.05 times the largest size and at 1.1 times the largest value of the axis.
    """
    curve = growth.compare_with_line([1, 2, 4], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    seen = []
    monkeypatch.setattr(figures, "png_of", seen.append)
    draw({"batch": curve}, growth.UNITS)
    (figure,) = seen
    time_axes, memory_axes = figure.axes
    for axes, key, ratios in (
        (time_axes, "time_s", curve["time_by_line"]),
        (memory_axes, "peak_mb", curve["memory_by_line"]),
    ):
        points, line = axes.lines
        assert points.get_marker() == "o"
        assert points.get_color() == line.get_color() == COLOURS[key]
        assert list(points.get_xdata()) == list(line.get_xdata()) == [1, 2, 4]
        assert list(points.get_ydata()) == curve[key]
        assert line.get_ydata() * ratios == pytest.approx(curve[key])
        assert axes.get_xlim() == pytest.approx((0, 4.2))
        assert axes.get_ylim() == pytest.approx((0, 1.1 * max(curve[key])))


def test_growth_without_matplotlib_measures_nothing(tmp_path, monkeypatch):
    """A plot that can't be drawn is told before minutes of measuring."""
    monkeypatch.setattr(figures, "find_spec", {}.get)
    monkeypatch.setattr(growth, "_curve", None)
    with pytest.raises(LaunchError, match=r"pip install 'tiekd\[plot\]'"):
        growth.run(arguments(growth, "--plot", str(tmp_path / "growth.png")))
