"""Swin's ImageNet weights under our names: the encoder computes what torchvision's network does."""

import re

import pytest
import torch
from torchvision.models import swin_t

from tiekd.errors import RecipeError
from tiekd.models.encoders.depthformer import DepthFormer
from tiekd.models.encoders.swin import Swin
from tiekd.models.weights import pretrained


@pytest.fixture(scope="module")
def torchvisions():
    torch.manual_seed(0)
    network = swin_t(weights=None).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return network


def authors(state: dict) -> dict:
    """Renames a state dict of torchvision's as the authors do, with all else their files hold."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        name = name.replace("features.0.0.", "patch_embed.proj.").replace(
            "features.0.2.", "patch_embed.norm."
        )
        for i in range(4):
            name = name.replace(f"features.{2 * i + 1}.", f"layers.{i}.blocks.")
            name = name.replace(f"features.{2 * i + 2}.", f"layers.{i}.downsample.")
        renamed[name] = tensor
    return {"model": renamed | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}}


def loaded(encoder, state: dict, path):
    torch.save(state, path)
    note = pretrained.load(torch.nn.ModuleDict({"encoder": encoder}))
    assert re.fullmatch(rf"Encoder: \d+ tensors from {path}", note)
    return encoder.eval()


@pytest.mark.parametrize("published", [dict, authors], ids=["torchvision", "authors"])
def test_swin_equals_torchvision(torchvisions, published, tmp_path):
    """Swin with torchvision's or the authors' weights computes torchvision's features."""
    path = tmp_path / "swin_t.pth"
    encoder = loaded(Swin(pretrained=str(path)), published(torchvisions.state_dict()), path)
    # Odd sizes at every merging, and windows that don't fill the feature.
    image = torch.randn(1, 3, 228, 300)
    with torch.no_grad():
        ours = encoder(image)
        x, theirs = image, []
        for i, layer in enumerate(torchvisions.features):
            x = layer(x)
            theirs += [x] if i % 2 else []
    for found, wanted in zip(ours, theirs, strict=True):
        # The norm at a tap is new, and starts as the identity behind its own scaling.
        wanted = torch.nn.functional.layer_norm(wanted, wanted.shape[-1:]).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_depthformer_loads_swin_or_own_weights(torchvisions, tmp_path):
    """DepthFormer loads Swin weights into its transformer, or a whole encoder's."""
    torch.manual_seed(0)
    path = tmp_path / "swin_t.pth"
    encoder = DepthFormer(pretrained=str(path))
    stem = encoder.conv1.weight.clone()
    loaded(encoder, torchvisions.state_dict(), path)
    assert torch.equal(encoder.conv1.weight, stem)
    ours, theirs = encoder.swin.stages[2][5].attention, torchvisions.features[5][5].attn
    assert torch.equal(ours.relative_position_bias_table, theirs.relative_position_bias_table)
    ours = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    other = loaded(DepthFormer(pretrained=str(path)), ours, path)
    assert torch.equal(
        other.swin.merges[1].reduction.weight, encoder.swin.merges[1].reduction.weight
    )
    assert torch.equal(other.swin.norms[3].bias, encoder.swin.norms[3].bias)


def test_swin_rejects_weights_of_other_size(torchvisions, tmp_path):
    """Weights of another width raise a RecipeError."""
    path = tmp_path / "swin_t.pth"
    torch.save(torchvisions.state_dict(), path)
    with torch.device("meta"):
        narrow = Swin(48, pretrained=str(path))
    with pytest.raises(RecipeError, match=r"tensors are not in .*swin_t.pth or of another size"):
        pretrained.load(torch.nn.ModuleDict({"encoder": narrow}))
    assert Swin(48).torchvision_name is None
    assert Swin().torchvision_name == "swin_t"
