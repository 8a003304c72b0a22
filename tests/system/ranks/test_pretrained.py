"""Rank 0 alone reads pretrained weights; all ranks have them afterwards."""

import torch
from support import two_ranks
from support.torchvision_weights import node, randomised, refused
from torchvision import models

from tiekd.models.build import build_network
from tiekd.models.weights import pretrained


def loaded_on_a_rank(rank: int, path: str) -> tuple[int, torch.Tensor, str]:
    """Returns how often this rank read a file, a tensor it has then, and a missing file's error."""
    reads, read = [], pretrained.state_dicts.read_checkpoint
    pretrained.state_dicts.read_checkpoint = lambda p: reads.append(p) or read(p)
    torch.manual_seed(rank)
    network = build_network(node(pretrained=path))
    pretrained.load(network)
    return (
        len(reads),
        network.encoder.layer3[0].conv[0].bn.running_var,
        refused(pretrained="nowhere.pth"),
    )


def test_pretrained_read_by_rank_0_only(tmp_path):
    """Only rank 0 reads the file; all ranks get its tensors, or its error."""
    torch.manual_seed(0)
    mobilenet = randomised(models.mobilenet_v2(weights=None))
    torch.save(mobilenet.state_dict(), tmp_path / "mine.pth")
    main, other = two_ranks.run(loaded_on_a_rank, tmp_path, str(tmp_path / "mine.pth"))
    assert (main[0], other[0]) == (1, 0)
    assert torch.equal(main[1], other[1])
    assert torch.equal(main[1], mobilenet.features[4].conv[0][1].running_var)
    assert main[2] == other[2]
    assert "nowhere.pth: no such file" in main[2]
