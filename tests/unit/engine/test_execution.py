"""The layouts of a student's convolutions.

Every layout, compiled or not, gives the same numbers, and nothing else changes.
"""

import json

import pytest
import torch

from tiekd.engine import execution
from tiekd.engine.build import build_engine
from tiekd.engine.config import resolve
from tiekd.errors import LaunchError, RecipeError
from tiekd.models.build import build_network

NETWORK = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25, "taps": [1, 2, 4, 6]},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 16], "extra_ups": 2},
    "head": {"name": "dpm", "num_bins": 33, "sigma": 2.0},
    "min_depth": 0.001,
    "max_depth": 80.0,
}


def network(config: dict):
    torch.manual_seed(0)
    built = build_network(NETWORK).train()
    execution.prepare(built, config)
    return built


def outcome(student) -> list[torch.Tensor]:
    """Depth, divergence and gradients of one step."""
    torch.manual_seed(1)
    image, target = torch.randn(2, 3, 32, 64), torch.rand(2, 1, 32, 64) * 70 + 2
    prediction = student(image, target)
    (prediction.depth.mean() / 80 + prediction.divergence.mean()).backward()
    return [prediction.depth, prediction.divergence, *(p.grad for p in student.parameters())]


@pytest.fixture(scope="module")
def plain() -> list[torch.Tensor]:
    return outcome(network({"tiekd": {"memory_format": "contiguous"}}))


def follows(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-3, atol=2e-5 * float(other.detach().abs().max()) + 1e-7
        )


def test_prepare_channels_last_reaches_head(plain):
    """With channels_last the head's input has that layout, and only rounding differs."""
    student = network({"tiekd": {"memory_format": "channels_last"}})
    seen = []
    student.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    follows(outcome(student), plain)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()
    assert all(parameter.is_contiguous() for parameter in student.parameters())


def test_prepare_compile_keeps_numbers_and_names(plain, monkeypatch):
    """Encoder and decoder are compiled, with the same results and state dict keys."""
    compiled = []

    def compile_as_it_is(part, *_, **__):
        compiled.append(type(part).__name__)
        part._compiled_call_impl = torch.compile(part._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_as_it_is)
    student = network({"tiekd": {"memory_format": "contiguous", "compile": True}})
    assert compiled == ["MobileNetV2", "DenseDepth"], (
        "and not the head, whose kernel is one already"
    )
    follows(outcome(student), plain)
    assert student.state_dict().keys() == build_network(NETWORK).state_dict().keys()


def test_memory_format_auto_is_channels_last_in_half():
    """The auto memory format is channels_last in half precision and contiguous else."""
    auto, asked = execution.Execution(), execution.Execution("contiguous")
    assert execution.memory_format(auto, in_half=True) == torch.channels_last
    assert execution.memory_format(auto, in_half=False) == torch.contiguous_format
    assert execution.memory_format(asked, in_half=True) == torch.contiguous_format
    for config in (
        {"torch_autocast": {"enabled": True}},
        {"fp16": {"enabled": True}},
        {"bf16": {"enabled": True}},
    ):
        assert network(config).memory_format == torch.channels_last
    assert network({"torch_autocast": {"enabled": False}}).memory_format == torch.contiguous_format


@pytest.mark.parametrize(
    ("section", "others", "told"),
    [
        ({"memory_fromat": "auto"}, {}, "did you mean 'memory_format'?"),
        ({"memory_format": "nhwc"}, {}, "allowed: auto, channels_last, contiguous"),
        ({"compile": "yes"}, {}, "tiekd.compile"),
        (
            {"compile": True},
            {"zero_optimization": {"stage": 3}},
            "can't be combined with ZeRO stage 3",
        ),
        ("fast", {}, "engine config: tiekd"),
    ],
)
def test_resolve_rejects_invalid_tiekd_section(section, others, told):
    """An invalid tiekd section of an engine config is a RecipeError of one line."""
    with pytest.raises(RecipeError) as error:
        resolve({"tiekd": section} | others, 2, 35.0, 1)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_resolve_compile_without_compiler(monkeypatch):
    """Without a C++ compiler on PATH, tiekd.compile raises a LaunchError."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match="no C\\+\\+ compiler|there is none on PATH"):
        resolve({"tiekd": {"compile": True}}, 2, 35.0, 1)


def test_build_engine_hides_tiekd_section(monkeypatch):
    """The tiekd section stays in the resolved config but is not passed to DeepSpeed."""
    import deepspeed

    given = {}

    def initialize(config, **_):
        given.update(config)
        raise ValueError("seen")

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    monkeypatch.setattr("tiekd.engine.build._read_by_deepspeed", lambda values: None)
    config = resolve({"tiekd": {"memory_format": "contiguous"}}, 2, 35.0, 1)
    assert json.loads(json.dumps(config.values))["tiekd"] == {"memory_format": "contiguous"}
    with pytest.raises(RecipeError, match="seen"):
        build_engine(build_network(NETWORK), None, config)
    assert "train_batch_size" in given
    assert "tiekd" not in given
