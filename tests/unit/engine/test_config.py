"""Engine configs that are refused, because the numbers would be wrong.

And the step at stage 0.

And the step at stage 0.
"""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from tiekd.engine import patches
from tiekd.engine.config import _NESTED_KEYS, read_engine_config, resolve
from tiekd.engine.step import Step
from tiekd.errors import LaunchError, RecipeError


def test_read_engine_config_expands_home(tmp_path, monkeypatch):
    """`~` is expanded in an engine config; a duplicate key is a LaunchError."""
    monkeypatch.setenv("HOME", "/home/of mine")
    file = tmp_path / "engine.json"
    file.write_text(
        '{"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "~/swap"}}}'
    )
    found = read_engine_config(file)["zero_optimization"]["offload_param"]
    assert found == {"device": "nvme", "nvme_path": "/home/of mine/swap"}
    for text, line in {
        '{"a": {"b": 1, "b": 1}}': "not JSON (the key 'b' is there twice)",
        '{"a": "~nosuchuser/x"}': "engine config: a: ~nosuchuser/x: no home folder is known for "
        "~nosuchuser",
    }.items():
        file.write_text(text)
        with pytest.raises(LaunchError) as caught:
            read_engine_config(file)
        assert line in str(caught.value)


def refused(config: dict) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(config, batch_size=4, clip_norm=35.0, world_size=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ("flops_profiler", "enable", "enabled"),
        ("data_types", "grad_acum_dtype", "grad_accum_dtype"),
        ("activation_checkpointing", "partitioned_activations", "partition_activations"),
        ("aio", "blocksize", "block_size"),
        ("timers", "throughputs", "throughput"),
        ("torch_autocast", "enable", "enabled"),
    ],
)
def test_resolve_refuses_keys_that_deepspeed_ignores(section, key, near):
    """An unknown key in a mapping is refused where DeepSpeed would ignore it."""
    told = refused({section: {key: True}})
    assert told.startswith(f"engine config: {section}: unknown key {key!r}; did you mean {near!r}?")
    # DeepSpeed reads ZenFlow's settings in zero_optimization alone.
    assert refused({"zenflow": {"topk_ratio": 0.1}}).startswith("engine config: unknown key 'zenf")


def test_nested_keys_are_those_of_deepspeed():
    """The keys that are allowed in a mapping are those that DeepSpeed reads."""
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.activation_checkpointing.config import (
        DeepSpeedActivationCheckpointingConfig,
    )
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    profiler = vars(DeepSpeedFlopsProfilerConfig({}))
    checkpointing = vars(DeepSpeedActivationCheckpointingConfig({}))
    for section, read in {
        "flops_profiler": profiler,
        "activation_checkpointing": checkpointing,
        "aio": AIO_DEFAULT_DICT,
    }.items():
        assert set(_NESTED_KEYS[section].split()) == set(read), section


@pytest.fixture
def fp16_device(monkeypatch):
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float16", "fp16", "torch.float16", None])
def test_resolve_rejects_autocast_to_fp16(stage, dtype):
    """Autocast to float16 is rejected at each ZeRO stage; bfloat16 or fp16 is named.

    DeepSpeed would clip gradients that still carry the loss scale; nothing would be learned.
    """
    autocast = {"enabled": True} | ({} if dtype is None else {"dtype": dtype})
    told = refused({"torch_autocast": autocast, "zero_optimization": {"stage": stage}})
    assert f"torch_autocast.dtype is {dtype!r}; only bfloat16 trains rightly" in told
    assert "use fp16.enabled" in told


def test_resolve_accepts_bf16_or_disabled_autocast():
    """Autocast to bfloat16, or autocast that is disabled, is kept as given."""
    for autocast in (
        {"enabled": True, "dtype": "bfloat16"},
        {"enabled": False, "dtype": "float16"},
    ):
        assert (
            resolve({"torch_autocast": autocast}, 4, 35.0, 1).values["torch_autocast"] == autocast
        )


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.usefixtures("fp16_device")
def test_resolve_rejects_fp16_auto_cast(enabled):
    """The key fp16.auto_cast is rejected: it would halve the teacher's depth."""
    told = refused({"fp16": {"enabled": enabled, "auto_cast": True}})
    assert told == "engine config: fp16.auto_cast also halves the teacher's depth; remove it"


@pytest.mark.parametrize(
    "precision", [{"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}, {}]
)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.usefixtures("fp16_device")
def test_resolve_rejects_half_buffers(precision, dtype):
    """A data_types.buffer_dtype is rejected: it would halve BatchNorm statistics."""
    told = refused(precision | {"data_types": {"buffer_dtype": dtype}})
    assert (
        told == "engine config: data_types.buffer_dtype would halve BatchNorm statistics; remove it"
    )
    resolve(precision | {"data_types": {"grad_accum_dtype": "fp32"}}, 4, 35.0, 1)


def test_resolve_rejects_fp16_on_unsupported_device(monkeypatch):
    """A device that doesn't support fp16 makes fp16.enabled a LaunchError."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(LaunchError, match="^fp16 is not supported on this device"):
        resolve({"fp16": {"enabled": True}}, 4, 35.0, 1)


class Stage0:
    """A stand-in for the engine: what a step asks of it at stage 0 in fp32.

    There all but the step itself is done by ours.
    """

    skipped_steps = 0

    def __init__(self):
        self.module = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.zeros_(self.module.weight)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0, fused=True)

    def is_gradient_accumulation_boundary(self) -> bool:
        return True

    def backward(self, loss) -> None:
        self.module.weight.grad = self.gradient.clone()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize(
    ("clip_norm", "moved"), [(0.5, [-0.3, -0.4]), (35.0, [-3.0, -4.0]), (0, [-3.0, -4.0])]
)
def test_step_clips_and_skips_nonfinite_gradients(clip_norm, moved):
    """A step clips gradients, returns their norm, and is skipped if it isn't finite."""
    engine = Stage0()
    step = Step(engine, resolve({}, 1, clip_norm, 1), clip_norm)
    engine.gradient = torch.tensor([[3.0, 4.0]])
    assert step.backward(torch.tensor(1.0)) == 5
    assert not step.skipped
    assert engine.module.weight.tolist() == [pytest.approx(moved, rel=1e-5)]
    for value in (math.nan, math.inf):
        engine.gradient = torch.tensor([[value, 4.0]])
        assert not math.isfinite(step.backward(torch.tensor(1.0)))
        assert step.skipped
        assert engine.module.weight.tolist() == [pytest.approx(moved, rel=1e-5)]
    assert step.num_skipped == 2


def test_patches_name_defect_version_and_existing_test():
    """Each patch's docstring states defect, DeepSpeed version and an existing test."""
    functions = [
        f
        for _, f in inspect.getmembers(patches, inspect.isfunction)
        if f.__module__ == patches.__name__
    ]
    assert len(functions) >= 6
    sources = "".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parents[2].rglob("test_*.py")
    )
    for function in functions:
        told = re.search(
            r"Without (?:it|the patch): .+Seen\s+in:\s+DeepSpeed 0\.\d+\.\d+\.\s+Test:\s+(\w+)\.",
            function.__doc__,
            re.S,
        )
        assert told, function.__name__
        assert f"def {told[1]}(" in sources, function.__name__
