"""Ranks: BatchNorm over two of them equals one with all images; reductions are one collective."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import two_ranks
from support.batch_norms import SHAPES, OnOne, OnRank, images, norm, step
from torch import nn

from tiekd.distributed.comm import (
    broadcast_object,
    gather_objects,
    is_main,
    max_over_ranks,
    mean_over_ranks,
    missing_ranks,
    rank,
    set_default_timeout,
    world_size,
)
from tiekd.models.layers.batch_norm import BatchNorm2d

DTYPES = {
    "float32": (torch.float32, torch.float32),
    "half": (torch.float16, torch.float16),
    "mixed": (torch.bfloat16, torch.float32),
    "autocast": (torch.float32, torch.bfloat16),
    "double": (torch.float64, torch.float64),
}


def normalise_on_ranks(rank):
    results = {}
    for case in SHAPES:
        for name, (dtype, image_dtype) in DTYPES.items():
            x = images(case)[rank].to(image_dtype)
            if name == "autocast":  # the layout that half precision has
                x = x.contiguous(memory_format=torch.channels_last)
            results[case, name] = step(OnRank(norm(BatchNorm2d, dtype)), [x])
    results["kept"] = bytes_kept(norm(BatchNorm2d), images("equal")[rank].bfloat16())
    results["own"] = step(OnRank(norm(BatchNorm2d, sync=False)), [images("equal")[rank]])
    evaluating = norm(BatchNorm2d).eval()
    calls = collectives(lambda: evaluating(images("equal")[rank]))
    results["calls in eval"] = calls
    return results


def bytes_kept(module, x):
    """Returns the bytes of the largest tensors that backward needs, each once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t
    ):
        module(x.requires_grad_())
    return sorted(size for size in kept.values() if size >= x.nbytes)


def collectives(function):
    """The names of the collectives that a function makes."""
    calls, originals = [], {}
    for name in (
        "all_reduce",
        "all_gather",
        "all_gather_object",
        "broadcast",
        "reduce",
        "gather",
        "barrier",
    ):
        originals[name] = getattr(dist, name)
        setattr(
            dist,
            name,
            lambda *a, _name=name, **k: (calls.append(_name), originals[_name](*a, **k))[1],
        )
    try:
        function()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return calls


def reduce_on_ranks(this):
    values = {
        "a": torch.tensor(float(this)),
        "b": 10.0 * this,
        "c": torch.tensor(3 + this, dtype=torch.float16),
    }
    means = {}
    calls = collectives(lambda: means.update(mean_over_ranks(values)))
    return {
        "means": means,
        "floats": mean_over_ranks({"x": float(this)}),
        "none": mean_over_ranks({}),
        "calls": calls,
        "max": max_over_ranks(-5.0 + this),
        "gathered": gather_objects({"rank": this}),
        "broadcast": broadcast_object(f"from {this}"),
        "who": (rank(), world_size(), is_main()),
    }


@pytest.fixture(scope="module")
def norms(tmp_path_factory):
    return two_ranks.run(normalise_on_ranks, tmp_path_factory.mktemp("norms"))


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("case", SHAPES)
def test_batch_norm_two_ranks_equal_one_with_all_images(norms, case, dtypes):
    """BatchNorm2d over two ranks equals stock BatchNorm over the images of both."""
    dtype, image_dtype = DTYPES[dtypes]
    # The reference is stock BatchNorm in float64, with parameters and images of the lower
    # precision's values.
    reference = norm(nn.BatchNorm2d, dtype).double()
    whole = step(OnOne(reference), [x.to(image_dtype).double() for x in images(case)])
    tight = {"float32": 1e-6, "half": 2e-3, "mixed": 1e-6, "autocast": 1e-3, "double": 1e-6}[dtypes]
    for r, result in enumerate(norms):
        mine = result[case, dtypes]
        assert mine["outputs"][0].dtype == image_dtype
        assert mine["weight_grad"].dtype == dtype
        close(mine["outputs"][0], whole["outputs"][r], 10 * tight)
        close(mine["input_grads"][0], whole["input_grads"][r], 10 * tight)
        for name in ("running_mean", "running_var"):
            assert mine[name].dtype == torch.float32
            close(mine[name], whole[name], 1e-6)
        assert mine["batches"] == 2
    for name in ("weight_grad", "bias_grad"):
        # Sums of over a hundred terms of either sign, each of size 1, which mostly cancel.
        low = {"float32": 1e-5, "half": 2e-3, "mixed": 1e-2, "autocast": 1e-2, "double": 1e-5}[
            dtypes
        ]
        close(sum(result[case, dtypes][name].double() for result in norms), whole[name], low)


def close(ours, reference, share):
    assert (ours.double() - reference.double()).abs().max() <= share * max(
        1, reference.abs().max()
    ), share


def test_batch_norm_saves_input_once_in_its_dtype(norms):
    """On two ranks, backward keeps each image once and in its own dtype."""
    assert [result["kept"] for result in norms] == [[images("equal")[0].numel() * 2]] * 2


def test_batch_norm_without_sync_uses_own_images(norms):
    """With `sync=False`, a rank normalizes by the statistics of its own images."""
    for r, result in enumerate(norms):
        alone = step(OnRank(norm(nn.BatchNorm2d)), [images("equal")[r]])
        assert torch.equal(result["own"]["running_mean"], alone["running_mean"])
        assert torch.equal(result["own"]["outputs"][0], alone["outputs"][0])


def test_batch_norm_eval_makes_no_collective(norms):
    """In eval mode BatchNorm2d makes no collective call."""
    assert norms[0]["calls in eval"] == norms[1]["calls in eval"] == []


def test_reductions_over_two_ranks(tmp_path):
    """Means, maxima, gathers and broadcasts are right; a dict of means is one all_reduce."""
    for r, result in enumerate(two_ranks.run(reduce_on_ranks, tmp_path)):
        assert result["means"] == {"a": 0.5, "b": 5.0, "c": 3.5}
        assert result["calls"] == ["all_reduce"]
        assert result["floats"] == {"x": 0.5}
        assert result["none"] == {}
        assert result["max"] == -4.0
        assert result["broadcast"] == "from 0"
        assert result["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert result["who"] == (r, 2, r == 0)


def lose_a_rank(this, lost, folder):
    """Returns what the rank that is left says, and after how many seconds.

    The other one waits for its file.
    """
    set_default_timeout(timedelta(seconds=2))
    dist.barrier()  # the ranks have two seconds for a group, too
    group = dist.new_group()
    if this == lost:
        end = time.monotonic() + 60
        while not Path(folder, f"rank_{1 - lost}.pt").exists() and time.monotonic() < end:
            time.sleep(0.1)
        return None
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="Timed out waiting 2000ms"):
        dist.all_reduce(torch.ones(()), group=group)
    return missing_ranks(wait_s=2.0), time.monotonic() - began


@pytest.mark.parametrize("lost", [0, 1])
def test_missing_ranks_names_lost_rank_in_time(tmp_path, lost):
    """After a timeout `missing_ranks` names the rank that is lost, within 40 s."""
    missing, taken_s = two_ranks.run(lose_a_rank, tmp_path, lost, tmp_path)[1 - lost]
    assert missing == [lost]
    assert 4 <= taken_s < 40


def meet(_this):
    missing = missing_ranks(wait_s=60.0)
    dist.barrier()  # the store ends with rank 0
    return missing


def test_missing_ranks_none_if_all_present(tmp_path):
    """`missing_ranks` is empty where every rank arrives."""
    assert two_ranks.run(meet, tmp_path) == [[], []]
