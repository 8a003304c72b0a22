"""Weights, moments and the moving average out of one ZeRO stage, into another stage and ranks."""

import os

import pytest
import torch
from support import two_ranks
from torch import nn

from tiekd.config.recipe import merge
from tiekd.models.layers.batch_norm import BatchNorm2d

STAGES = {
    "0": {"zero_optimization": {"stage": 0}},
    "1": {"zero_optimization": {"stage": 1}},
    "2": {"zero_optimization": {"stage": 2}},
    "3": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
}
SCALE = {"fp16": {"enabled": True, "initial_scale_power": 4}}
STAGES |= {f"{name}_fp16": merge(config, SCALE) for name, config in STAGES.items()}
STEPS, DECAY = 3, 0.3


class Net(nn.Module):
    """Odd sizes, so that shards are padded; a norm over all ranks, for its buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1, bias=False)
        self.norm = BatchNorm2d(7)
        self.register_buffer("made_anew", torch.ones(()), persistent=False)

    def forward(self, x):
        return self.last(self.norm(self.first(x.to(self.first.weight.dtype))).sigmoid()).float()


def start(rank: int, world_size: int) -> None:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_SIZE": str(world_size)}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    get_accelerator().is_fp16_supported = lambda: True


def make(config: dict, world_size: int):
    from tiekd.engine.build import build_engine
    from tiekd.engine.config import resolve
    from tiekd.engine.step import Step

    network = Net()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=0.01, eps=1e-4, fused="fp16" not in config
    )
    resolved = resolve(config, batch_size=4, clip_norm=1.0, world_size=world_size)
    engine = build_engine(network, optimizer, resolved)
    return engine, Step(engine, resolved, 1.0)


def train(engine, step, average, first: int) -> None:
    for i in range(first, first + STEPS):
        samples = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(i))
        mine = samples.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]
        step.backward(engine(mine).square().mean())
        average.update(step.skipped)


def first_half(rank: int, world_size: int = 2) -> dict:
    from tiekd.engine import full_state
    from tiekd.engine.moving_average import MovingAverage

    start(rank, world_size)
    values = {}
    for name, config in STAGES.items():
        engine, step = make(config, world_size)
        before = full_state.moments(engine)
        average = MovingAverage(engine, DECAY)
        train(engine, step, average, 0)
        averaged = average.weights()
        taken = full_state.weights(engine), full_state.moments(engine), averaged
        values[name] = (before, *taken)
    return values


def second_half(rank: int, world_size: int, given: dict) -> dict:
    from tiekd.engine import full_state
    from tiekd.engine.moving_average import MovingAverage

    start(rank, world_size)
    values = {}
    for name, (weights, moments, averaged) in given.items():
        engine, step = make(STAGES[name], world_size)
        full_state.restore(engine, weights, moments)
        average = MovingAverage(engine, DECAY)
        average.restore(averaged, STEPS)
        taken = full_state.weights(engine), full_state.moments(engine)
        got = average.weights()
        train(engine, step, average, STEPS)
        values[name] = (*taken, full_state.weights(engine), got, average.weights())
    return values


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> tuple[dict, dict]:
    """By stage: the state of two ranks after half of the steps, and what other ranks made of it.

    One rank and two took over another stage's state.
    """
    given = two_ranks.run(first_half, tmp_path_factory.mktemp("first"))[0]
    order = list(STAGES)
    # Each stage goes on from the stage before it in the list, so every pair of neighbours is
    # passed.
    others = {name: given[order[i - 1]][1:] for i, name in enumerate(order)}
    made = {
        ranks: two_ranks.run(
            second_half, tmp_path_factory.mktemp("second"), ranks, others, world_size=ranks
        )[0]
        for ranks in (1, 2)
    }
    return given, made


@pytest.mark.parametrize("stage", STAGES)
def test_moments_full_shape_for_every_parameter(halves, stage):
    """The moments of every parameter are gathered in full shape and fp32, with the step."""
    before, weights, moments, _ = halves[0][stage]
    assert before == {}
    assert moments.keys() == {name for name, _ in Net().named_parameters()}
    for name, kept in moments.items():
        assert kept["exp_avg"].shape == kept["exp_avg_sq"].shape == weights[name].shape, name
        assert kept["exp_avg"].dtype == weights[name].dtype == torch.float32
        assert float(kept["step"]) == STEPS
        assert kept["exp_avg"].abs().max() > 0


@pytest.mark.parametrize("stage", STAGES)
def test_weights_equal_across_zero_stages(halves, stage):
    """The weights after training are the same at every ZeRO stage."""
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-7} if "fp16" not in stage else {"rtol": 0.05, "atol": 2e-3}
    )
    for name, weights in halves[0]["0"][1].items():
        torch.testing.assert_close(halves[0][stage][1][name], weights, **tolerance, msg=name)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_restore_keeps_weights_and_moments_bits(halves, stage, ranks):
    """Restored weights, moments and averages are read back bit for bit on one and two ranks."""
    order = list(STAGES)
    _, weights, moments, averaged = halves[0][order[order.index(stage) - 1]]
    got_weights, got_moments, _, got_averaged, _ = halves[1][ranks][stage]
    for name, value in weights.items():
        assert torch.equal(got_weights[name], value), name
    for name, kept in moments.items():
        assert all(torch.equal(got_moments[name][key], value) for key, value in kept.items()), name
    assert averaged.keys() == weights.keys() == got_averaged.keys()
    for name, value in averaged.items():
        assert torch.equal(got_averaged[name], value), name


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_restored_training_independent_of_stage(halves, stage):
    """Training from a restored state gives the same weights at every stage and rank count.

    From stage 0 to 1 to 2 to 3, on two ranks and on one.
    """
    for ranks in (1, 2):
        for name, weights in halves[1][2]["1"][2].items():
            got = halves[1][ranks][stage][2][name]
            torch.testing.assert_close(
                got, weights, rtol=1e-5, atol=1e-6, msg=f"{name} on {ranks} ranks"
            )


def test_restored_training_equals_plain_torch(halves):
    """Two halves of training with a restore between give weights and averages of plain PyTorch."""
    network = Net()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, eps=1e-4)
    averages = {name: value.clone() for name, value in network.state_dict().items()}
    for i in range(2 * STEPS):
        optimizer.zero_grad()
        samples = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(i))
        network(samples).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        # The decay rises from 0.1 to DECAY.
        decay = min(DECAY, (1 + i) / (10 + i))
        for name, value in network.state_dict().items():
            averages[name] = decay * averages[name] + (1 - decay) * value
    averages["norm.num_batches_tracked"] = network.norm.num_batches_tracked
    for stage, ranks in (("3", 1), ("1", 2), ("2", 1), ("3", 2)):
        _, _, weights, _, averaged = halves[1][ranks][stage]
        for got, want in ((weights, network.state_dict()), (averaged, averages)):
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)
