"""Collectives and BatchNorm with one rank or no process group; system/ranks has two ranks."""

import pytest
import torch
from support.batch_norms import OnRank, images, norm, step
from torch import nn

from tiekd.distributed.comm import (
    broadcast_object,
    gather_objects,
    is_main,
    max_over_ranks,
    mean_over_ranks,
    rank,
    world_size,
)
from tiekd.models.layers.batch_norm import BatchNorm2d


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_one_rank_equals_torch(training):
    """On one rank BatchNorm2d equals nn.BatchNorm2d bit for bit and shares its keys."""
    ours, theirs = (norm(cls).train(training) for cls in (BatchNorm2d, nn.BatchNorm2d))
    a, b = (step(OnRank(module), [images("equal")[0]]) for module in (ours, theirs))
    assert a.keys() == b.keys()
    for name, value in a.items():
        pairs = zip(value, b[name], strict=True) if isinstance(value, list) else [(value, b[name])]
        assert all(torch.equal(x, y) for x, y in pairs), name
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batch_norm_half_keeps_float32_statistics(dtype):
    """Cast to half precision, the module keeps its running statistics in float32."""
    module = BatchNorm2d(3).eval()
    module.running_var.fill_(1e6)
    module.to(dtype)
    assert module.running_var.tolist() == [1e6] * 3
    assert module.weight.dtype == dtype
    assert module(torch.full((1, 3, 2, 2), 1000.0, dtype=dtype))[
        0, 0, 0, 0
    ].item() == pytest.approx(1, rel=1e-2)
    with torch.device("meta"):
        assert BatchNorm2d(3).to(dtype).to_empty(device="cpu").running_var.shape == (3,)


def test_comm_without_process_group_is_one_rank(monkeypatch):
    """Without a process group, reductions return their input; the rank is RANK's, else 0."""
    monkeypatch.delenv("RANK", raising=False)
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    assert mean_over_ranks({"a": torch.tensor(2.0), "b": 3}) == {"a": 2.0, "b": 3.0}
    assert max_over_ranks(4.0) == 4.0
    assert gather_objects(5) == [5]
    assert broadcast_object(6) == 6
    monkeypatch.setenv("RANK", "3")
    assert rank() == 3
    assert not is_main()
