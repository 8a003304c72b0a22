"""Every ZeRO stage trains the optimizer's groups as torch alone does."""

import os

import pytest
import torch
from support import two_ranks
from support.grouped_network import CYCLE, GROUPS, Net, optimizer
from torch import nn

from tiekd.training import schedules

STEPS = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[dict[str, dict[str, torch.Tensor]]]:
    return two_ranks.run(train_at_every_stage, tmp_path_factory.mktemp("ranks"))


def train_at_every_stage(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and first moments after four steps, by stage; each of two ranks has half a batch."""
    import deepspeed

    from tiekd.engine import full_state
    from tiekd.engine.build import build_engine
    from tiekd.engine.config import resolve
    from tiekd.engine.step import Step

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    weights = {}
    for stage in range(4):
        zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
        config = resolve({"zero_optimization": zero}, batch_size=4, clip_norm=0.1, world_size=2)
        network = Net()
        engine = build_engine(network, optimizer(GROUPS, network), config)
        step, schedule = Step(engine, config, 0.1), a_cycle()
        for i in range(STEPS):
            lrs, _ = schedule.apply(engine.optimizer, i)
            assert lrs == pytest.approx([schedule.lr(i), schedule.lr(i), 10 * schedule.lr(i)])
            step.backward(engine(samples(i)[2 * rank : 2 * rank + 2]).square().mean())
        weights[f"stage {stage}"] = full_state.weights(engine)
        moments = full_state.moments(engine)
        weights[f"stage {stage}"] |= {
            f"{name} exp_avg": kept["exp_avg"] for name, kept in moments.items()
        }
    return weights


def a_cycle() -> schedules.Schedule:
    return schedules.build(
        CYCLE, base_lr=0.01, base_momentum=0.9, total_iterations=STEPS, iterations_per_epoch=2
    )


def samples(i: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(i))


@pytest.mark.parametrize("stage", range(4))
def test_zero_stages_train_groups_as_torch(trained, stage):
    """Every ZeRO stage on two ranks gives torch's weights and first moments."""
    network = Net()
    built, schedule = optimizer(GROUPS, network), a_cycle()
    for i in range(STEPS):
        schedule.apply(built, i)
        built.zero_grad()
        network(samples(i)).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        built.step()
    got = trained[0][f"stage {stage}"]
    for name, value in network.named_parameters():
        torch.testing.assert_close(got[name], value.detach(), rtol=1e-4, atol=1e-6, msg=name)
        moment = built.state[value]["exp_avg"]
        torch.testing.assert_close(got[f"{name} exp_avg"], moment, rtol=1e-4, atol=1e-6, msg=name)
