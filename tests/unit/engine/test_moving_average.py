"""The moving average of weights and statistics equals one that a plain loop computes."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tiekd.engine.moving_average import MovingAverage
from tiekd.models.layers.batch_norm import BatchNorm2d


class Net(nn.Module):
    """A convolution in channels_last, a norm, a scalar, and a buffer that isn't a statistic."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.norm, self.scale = BatchNorm2d(5), nn.Parameter(torch.tensor(2.0))
        self.register_buffer("edges", torch.tensor([0.0, math.inf]))


def make_engine() -> SimpleNamespace:
    network = Net()
    optimizer = torch.optim.AdamW(network.parameters())
    return SimpleNamespace(module=network, optimizer=optimizer, zero_optimization_stage=lambda: 0)


def change(network: nn.Module, seed: int) -> None:
    """Gives all weights and statistics new random values, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in (*network.parameters(), network.norm.running_mean, network.norm.running_var):
            tensor.copy_(torch.rand_like(tensor))
    network.norm.num_batches_tracked += 1
    network.edges[0] = seed


def copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("warms_up", [True, False])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_average_equals_plain_loop(warms_up, as_tensor):
    """With skipped steps, on the host and on the device, it equals a plain loop's average."""
    engine = make_engine()
    average = MovingAverage(engine, 0.3, warms_up)
    wanted = copy(engine.module)
    for n in range(7):
        change(engine.module, seed=n + 1)
        skipped = n in (2, 3)
        average.update(torch.tensor(float(skipped)) if as_tensor else skipped)
        decay = min(0.3, (1 + n) / (10 + n)) if warms_up else 0.3
        for name, value in copy(engine.module).items():
            if name in ("edges", "norm.num_batches_tracked"):
                wanted[name] = value
            elif not skipped:
                wanted[name] = decay * wanted[name] + (1 - decay) * value
    got = average.weights()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-7, msg=name)
    assert average.description() == {"decay": 0.3, "warms_up": warms_up, "num_updates": 7}


def test_average_of_skipped_steps_keeps_its_bits():
    """An iteration whose step was skipped doesn't change a bit of the average."""
    engine = make_engine()
    average = MovingAverage(engine, 0.9)
    change(engine.module, seed=1)
    average.update(False)
    before = average.weights()
    change(engine.module, seed=2)
    for skipped in (True, torch.tensor(1.0)):
        average.update(skipped)
    after = average.weights()
    for name in ("conv.weight", "norm.weight", "norm.running_mean", "scale"):
        assert torch.equal(after[name], before[name]), name


def test_average_leaves_weights_alone():
    """Updating, gathering and restoring the average don't change the engine's weights."""
    engine = make_engine()
    average = MovingAverage(engine, 0.9)
    change(engine.module, seed=1)
    before = copy(engine.module)
    average.update(False)
    values = {name: torch.ones_like(value) for name, value in before.items()}
    average.restore(values, num_updates=5)
    got = average.weights()
    assert average.num_updates == 5
    for name, value in before.items():
        assert torch.equal(engine.module.state_dict()[name], value), name
    assert torch.equal(got["conv.weight"], values["conv.weight"])
    assert torch.equal(got["norm.running_var"], values["norm.running_var"])
    assert float(got["scale"]) == 1.0


def test_average_begins_with_present_weights():
    """Before the first update the average is the weights; it takes one fp32 copy of them."""
    engine = make_engine()
    average = MovingAverage(engine, 0.9)
    wanted = copy(engine.module)
    got = average.weights()
    assert all(torch.equal(got[name], value) for name, value in wanted.items())
    num_values = sum(p.numel() for p in engine.module.parameters()) + 2 * 5
    assert average.num_bytes == 4 * num_values


def test_warm_up_rises_to_decay():
    """The decay is 0.1 at first, then (1 + n) / (10 + n), and at most the given one."""
    average = MovingAverage(make_engine(), 0.999)
    decays = []
    for n in (0, 1, 90, 8_990, 100_000):
        average.num_updates = n
        decays.append(average.next_decay)
    assert decays == [0.1, 2 / 11, 0.91, 0.999, 0.999]


def test_short_average_forgets_first_weights():
    """After 20 updates nothing of the first weights is left, and without warm-up nearly all is."""
    left = {}
    for warms_up in (True, False):
        engine = make_engine()
        with torch.no_grad():
            engine.module.scale.fill_(1.0)
        average = MovingAverage(engine, 0.999, warms_up)
        with torch.no_grad():
            engine.module.scale.zero_()
        for _ in range(20):
            average.update(False)
        left[warms_up] = float(average.weights()["scale"])
    assert left[True] < 1e-6
    assert left[False] == pytest.approx(0.999**20)


def test_restored_average_continues_warm_up():
    """An average that is restored after skipped and other steps equals an unbroken one."""
    engine = make_engine()
    unbroken = MovingAverage(engine, 0.999)
    for n in range(8):
        change(engine.module, seed=n)
        unbroken.update(torch.tensor(float(n in (1, 6))))
        if n == 4:
            saved = unbroken.weights(), unbroken.num_updates
            resumed = MovingAverage(engine, 0.999)
            resumed.restore(*saved)
        elif n > 4:
            resumed.update(torch.tensor(float(n == 6)))
    for name, value in unbroken.weights().items():
        assert torch.equal(resumed.weights()[name], value), name
    assert resumed.num_updates == unbroken.num_updates == 8
