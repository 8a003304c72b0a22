"""Names of published checkpoints, loading with a reckoning, and files that must not be loaded."""

import pickle
import re

import pytest
import torch
from support import golden
from torch import nn

from tiekd.errors import CheckpointError
from tiekd.models.build import build_network
from tiekd.models.weights.state_dicts import (
    dropped,
    from_published,
    load_into,
    read_checkpoint,
    to_published,
)

RANGE = {"min_depth": 1e-3, "max_depth": 80.0}
MOBILENET = RANGE | {
    "encoder": {"name": "mobilenet_v2"},
    "decoder": {"name": "densedepth", "widths": [128, 256, 512, 2048], "extra_ups": 2},
}
RESNET18 = RANGE | {
    "encoder": {"name": "resnet", "depth": 18},
    "decoder": {"name": "densedepth", "widths": [128, 128, 256, 256, 512], "extra_ups": 1},
}
BTS = RANGE | {
    "encoder": {"name": "resnet", "depth": 50},
    "decoder": {"name": "bts"},
    "head": {"name": "sigmoid"},
}
DPM, SIGMOID = {"head": {"name": "dpm", "num_bins": 257}}, {"head": {"name": "sigmoid"}}
CONV_DEPTH = ["decode_head.conv_depth.bias", "decode_head.conv_depth.weight"]
CONV_OUT = ["decode_head.conv_out.0.bias", "decode_head.conv_out.0.weight"]
SECOND_UP = [
    f"decode_head.upsample_custom2.conv{x}.conv.{p}" for x in "AB" for p in ("bias", "weight")
]
CASES = [
    ("mobilev2_DPM_kitti", MOBILENET | DPM, CONV_DEPTH),
    ("mobilev2_baseKD_kitti", MOBILENET | SIGMOID, CONV_OUT),
    ("resnet18_DPM_kitti", RESNET18 | DPM, CONV_DEPTH + SECOND_UP),
    ("bts_r50_kitti", BTS, []),
]


def published(name: str) -> dict[str, torch.Tensor]:
    """The names and shapes of a published checkpoint, without memory behind them."""
    keys = golden.load_json("networks/cases.json")["keys"][name]
    return {key: torch.empty(shape, device="meta") for key, shape in keys}


def small_network() -> nn.Module:
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            "head": nn.Conv2d(4, 5, 1),
        }
    )


@pytest.mark.parametrize(("name", "node", "dead"), CASES, ids=[case[0] for case in CASES])
def test_from_published_maps_one_to_one(name, node, dead):
    """Published names map one to one onto the network and back, except dead ones."""
    state = published(name)
    with torch.device("meta"):
        own = build_network(node).state_dict()
    ours = from_published(state)
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in own.items()}
    assert dropped(state) == sorted(dead)
    back = to_published(ours)
    assert {key: id(t) for key, t in back.items()} == {
        key: id(t) for key, t in state.items() if key not in dead
    }


def test_from_published_unwraps_state_dict():
    """A `state_dict` wrapper and the prefix `module.` are removed."""
    state = published("resnet18_DPM_kitti")
    wrapped = {
        "meta": {"epoch": 24},
        "state_dict": {f"module.{key}": t for key, t in state.items()},
    }
    assert from_published(wrapped).keys() == from_published(state).keys()
    assert dropped(wrapped) == dropped(state)


def test_from_published_encoder_only():
    """A lone encoder's names are mapped, and its classifier is dropped."""
    whole = published("bts_r50_kitti")
    backbone = {
        key.removeprefix("backbone."): t for key, t in whole.items() if key.startswith("backbone.")
    }
    state = backbone | {"fc.weight": torch.empty(1000, 2048, device="meta")}
    ours = from_published(state)
    assert ours.keys() == {f"encoder.{key}" for key in backbone}
    assert dropped(state) == ["backbone.fc.weight"]


def test_from_published_head_can_be_named():
    """With `head: dpm` a checkpoint of both heads keeps the DPM output."""
    state = published("mobilev2_baseKD_kitti")
    assert "head.conv.weight" in from_published(state)
    assert "head.weight" not in from_published(state)
    assert "head.weight" in from_published(state, head="dpm")
    assert dropped(state, head="dpm") == CONV_DEPTH


def test_from_published_rejects_unknown_names():
    """Unknown names raise a CheckpointError in both directions."""
    with pytest.raises(
        CheckpointError, match="not a published checkpoint: it holds decode_head.a, decode_head.b;"
    ):
        from_published({"decode_head.a": torch.zeros(1), "decode_head.b": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="other.weight: has no published name"):
        to_published({"other.weight": torch.zeros(1)})


def test_load_into_copies_every_tensor_and_casts():
    """Each tensor is copied and cast to the network's dtype."""
    torch.manual_seed(0)
    network, source = small_network(), small_network()
    report = load_into(network, {key: t.double() for key, t in source.state_dict().items()})
    assert report.matched == sorted(source.state_dict())
    assert report.missing == report.unexpected == report.misfit == []
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key])
    assert network["head"].weight.dtype == torch.float32


def test_load_into_misfit_changes_nothing():
    """Tensors that don't fit are named in the error, and the network is unchanged."""
    network = small_network()
    before = {key: t.clone() for key, t in network.state_dict().items()}
    state = {key: t + 1 for key, t in before.items()}
    state["head.weight"] = torch.zeros(7, 4, 1, 1)
    del state["encoder.0.bias"]
    state["tail.weight"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as error:
        load_into(network, state)
    assert str(error.value) == (
        "3 of 9 tensors don't fit: head.weight (got 7x4x1x1, wanted 5x4x1x1), encoder.0.bias "
        "(missing), tail.weight (not in the network); use the recipe that the checkpoint was "
        "made with, or another checkpoint"
    )
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())


def test_load_into_lists_first_four_misfits():
    """The error names four tensors that don't fit and counts the others."""
    with pytest.raises(
        CheckpointError, match=r"^8 of 9 tensors don't fit: (?:[^,]*, ){3}[^,]* and 4 more; "
    ):
        load_into(small_network(), {})


def test_load_into_skips_ignored_patterns():
    """Tensors that match an ignored pattern are skipped and reported; others raise."""
    network = small_network()
    head = network["head"].weight.clone()
    state = {key: t + 1 for key, t in network.state_dict().items()}
    state["head.weight"], state["tail.weight"] = torch.zeros(7, 4, 1, 1), torch.zeros(2)
    report = load_into(network, state, ignore=["head.w*", "tail.*"])
    assert report.misfit == ["head.weight"]
    assert report.unexpected == ["tail.weight"]
    assert report.missing == []
    assert torch.equal(network["head"].weight, head)
    assert torch.equal(network["head"].bias, state["head.bias"])
    with pytest.raises(CheckpointError, match="^1 of 9 tensors don't fit: tail.weight"):
        load_into(network, state, ignore=["head.*"])


def test_read_checkpoint_returns_saved_content(tmp_path):
    """`read_checkpoint` returns tensors and values as they were saved."""
    path = tmp_path / "best.pth"
    torch.save({"state_dict": {"w": torch.arange(3)}, "epoch": 3}, path)
    state = read_checkpoint(path)
    assert state["epoch"] == 3
    assert torch.equal(state["state_dict"]["w"], torch.arange(3))


class RunsCode:
    """Pickles to a call, as a malicious checkpoint would."""

    def __reduce__(self):
        return eval, ("1 + 1",)


def test_read_checkpoint_rejects_torn_or_unsafe_files(tmp_path):
    """A truncated, foreign or unsafe file raises a CheckpointError of one line."""
    whole = tmp_path / "whole.pth"
    torch.save({"w": torch.zeros(1000)}, whole)
    (tmp_path / "torn.pth").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"w": RunsCode()}, tmp_path / "code.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"w": RunsCode()}))
    torch.save([1, 2], tmp_path / "list.pth")
    reasons = {
        "none.pth": "no such file",
        "torn.pth": "truncated, or not a torch file",
        "empty.pth": "truncated, or not a torch file",
        "text.pth": "truncated, or not a torch file",
        "code.pth": "more than tensors and plain values .*eval",
        "pickle.pth": "truncated, or not a torch file|more than tensors",
        "list.pth": "holds a list; it must be a dict",
        "": "a folder, no checkpoint",
    }
    for name, reason in reasons.items():
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(tmp_path / name)
        message = str(error.value)
        assert message.startswith(str(tmp_path / name))
        assert "\n" not in message
        assert len(message) < 300
        assert re.search(reason, message), message


@pytest.mark.parametrize("kept", [10, 400, 5000, 200_000])
def test_read_checkpoint_calls_a_cut_file_truncated(kept, tmp_path):
    """A file that is cut anywhere is called truncated, whatever the error of torch's reader."""
    path = tmp_path / "torn.pth"
    torch.save({f"w{index}": torch.zeros(1000) for index in range(100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match="truncated, or not a torch file .*copy or save it again"
    ):
        read_checkpoint(path)
