"""A loss or gradient that isn't finite leaves no trace, at every stage, precision and rank."""

import math
import os

import pytest
import torch
from support import two_ranks
from torch import nn

from tiekd.models.layers.batch_norm import BatchNorm2d

PRECISIONS = {
    "fp32": {},
    "autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 12, "hysteresis": 1}},
}
CONFIGS = {
    f"{name}_zero{stage}": (name, stage)
    for name in ("fp32", "autocast", "fp16")
    for stage in range(4)
}
CONFIGS |= {
    "bf16_zero2": ("bf16", 2),
    "fp32_zero2_offload": ("fp32", 2),
    "fp32_zero3_offload": ("fp32", 3),
}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
FAULTS = ("image", "gradient", "mean of nothing", "constant")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1, bias=False)
        self.norm = BatchNorm2d(7)

    def forward(self, x):
        return self.last(self.norm(self.first(x.to(self.first.weight.dtype))).sigmoid()).float()


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[0, 0, 0, 0] = math.inf
        return gradient


def make(precision: str, stage: int, offload: bool = False):
    from tiekd.engine.build import build_engine
    from tiekd.engine.config import resolve
    from tiekd.engine.step import Step

    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    config = PRECISIONS[precision] | {"zero_optimization": zero, "gradient_accumulation_steps": 2}
    if offload:
        config |= {"zero_optimization": zero | OFFLOAD, "zero_force_ds_cpu_optimizer": False}
    network = Net()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, eps=1e-4, fused=True)
    resolved = resolve(config, batch_size=8, clip_norm=1.0, world_size=2)
    engine = build_engine(network, optimizer, resolved)
    return engine, Step(engine, resolved, 1.0)


def iterate(engine, step, number: int, fault: str | None = None) -> bool:
    """Runs two micro-batches on two ranks, with the fault in the first one of rank 1.

    Returns whether the step was skipped.
    """
    rank = torch.distributed.get_rank()
    for micro in range(2):
        here = fault if rank == 1 and micro == 0 else None
        samples = torch.randn(
            4, 3, 2, 2, generator=torch.Generator().manual_seed(10 * number + micro)
        )
        mine = samples.chunk(2)[rank].clone()
        if here == "image":
            mine[0, 0, 0, 0] = math.nan
        values = engine(mine)
        if here == "gradient":
            values = BadGradient.apply(values)
        loss = values.square().mean()
        if here == "mean of nothing":  # its gradient is 0
            loss = values[values > math.inf].mean()
        if here == "constant":
            loss = loss + math.inf
        step.backward(loss)
    return bool(step.skipped)


def learned(engine) -> dict:
    from tiekd.engine import full_state

    module = {f"own {name}": value.clone() for name, value in engine.module.state_dict().items()}
    moments = full_state.moments(engine)
    moments = {
        f"{key} of {name}": torch.as_tensor(kept[key])
        for name, kept in moments.items()
        for key in kept
    }
    return module | full_state.weights(engine) | moments


def work(rank: int) -> dict:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    get_accelerator().is_fp16_supported = lambda: True
    results = {}
    for name, (precision, stage) in CONFIGS.items():
        straight, straight_step = make(precision, stage, "offload" in name)
        for number in range(3):
            iterate(straight, straight_step, number)
        engine, step = make(precision, stage, "offload" in name)
        iterate(engine, step, 0)
        seen = {}
        for fault in FAULTS:
            before = learned(engine)
            skipped = iterate(engine, step, 9, fault)
            seen[fault] = before, skipped, learned(engine)
        for number in (1, 2):
            assert not iterate(engine, step, number)
        results[name] = seen, learned(engine), learned(straight)
    results["loss scale"] = halve_to_one()
    return results


def halve_to_one() -> list[tuple[float, bool]]:
    rows = []
    PRECISIONS["fp16"]["fp16"]["initial_scale_power"] = 2
    for stage in (0, 1, 3):
        engine, step = make("fp16", stage)
        for _ in range(4):
            iterate(engine, step, 0, "gradient")
            rows.append((step.loss_scale, step.searches_loss_scale))
    return rows


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return two_ranks.run(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_step_nonfinite_is_skipped_on_all_ranks(ranks, name, fault):
    """A fault on one rank skips the step on both, and no weight or moment changes."""
    for rank in ranks:
        before, skipped, after = rank[name][0][fault]
        assert skipped
        for key, value in before.items():
            if (
                "running" in key
            ):  # of the images that were well; of none where one is bad on any rank
                assert after[key].isfinite().all(), key
            elif "num_batches" not in key:
                assert torch.equal(value, after[key]), key


@pytest.mark.parametrize("name", CONFIGS)
def test_step_after_skipped_ones_is_unaffected(ranks, name):
    """After skipped steps, weights and moments equal those of a run without faults."""
    _, after, straight = ranks[0][name]
    compared = [key for key in straight if "running" not in key and "num_batches" not in key]
    assert len(compared) > 10
    for key in compared:
        assert torch.equal(after[key], straight[key]), key


def test_loss_scale_halves_down_to_one(ranks):
    """The fp16 loss scale is halved at each skipped step and stops at 1."""
    for stage in range(3):
        rows = ranks[0]["loss scale"][4 * stage : 4 * stage + 4]
        assert rows == [(2.0, True), (1.0, False), (1.0, False), (1.0, False)]
