"""The weights that a recipe and a checkpoint mean, and the network that takes them."""

import json

import pytest
import torch
from support.small_student import NETWORK, write_recipe

from tiekd.errors import CheckpointError
from tiekd.models import load
from tiekd.models.build import build_network
from tiekd.workdir import weights_file


def test_load_network_from_work_dir_or_checkpoint(tmp_path):
    """A work dir or a checkpoint folder is accepted as the checkpoint."""
    recipe, network = write_recipe(tmp_path), build_network(NETWORK)
    for path in (
        tmp_path / "run" / "best_abs_rel.pth",
        tmp_path / "run" / "checkpoints" / "iter_3" / "student.pth",
    ):
        path.parent.mkdir(parents=True)
        weights_file.write_weights(path, network.state_dict(), NETWORK, 3)
        loaded, found, _ = load.load_network(recipe, str(path.parent))
        assert found == path
        assert torch.equal(next(loaded.parameters()), next(network.parameters()))


def test_load_network_defaults_to_best_weights(tmp_path):
    """Without a checkpoint the best weights are loaded; if there are none, it raises."""
    recipe, network = write_recipe(tmp_path), build_network(NETWORK)
    (tmp_path / "work").mkdir()
    with pytest.raises(CheckpointError, match="train it with bin/train.py"):
        load.load_network(recipe, None)
    weights_file.write_weights(
        tmp_path / "work" / "best_abs_rel.pth", network.state_dict(), NETWORK, 7
    )
    loaded, path, _ = load.load_network(recipe, None)
    assert path == tmp_path / "work" / "best_abs_rel.pth"
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True)
    )


def test_load_network_override_of_whole_network(tmp_path):
    """An override of the whole network is accepted like one of its keys."""
    recipe, node = write_recipe(tmp_path), {**NETWORK, "max_depth": 10.0}
    weights_file.write_weights(tmp_path / "w.pth", build_network(node).state_dict(), node, 3)
    for override in ("network.max_depth=10.0", f"network={json.dumps(node)}"):
        assert (
            load.load_network(recipe, str(tmp_path / "w.pth"), [override, "data.root=x"])[
                0
            ].max_depth
            == 10.0
        )
