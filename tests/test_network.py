"""Whole networks against the published ones (depth, features, gradients, six steps), and what Network adds."""

from functools import lru_cache
from pathlib import Path

import golden_rules as golden
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from tiekd.config import load_recipe
from tiekd.losses.silog import build as silog
from tiekd.losses.ssim import SSIM
from tiekd.models.factory import build_network
from tiekd.models.network import Network, Prediction
from tiekd.models.weights import dropped, from_published, load_into, to_published

RECIPES = sorted((Path(__file__).parents[1] / "model_configs/_base_/networks").glob("*.yaml"))
MAX_DEPTH = 80.0
MOBILENET = {
    "encoder": {"name": "mobilenet_v2"},
    "decoder": {"name": "densedepth", "widths": [128, 256, 512, 2048], "extra_ups": 2},
}
RESNET18 = {
    "encoder": {"name": "resnet", "depth": 18},
    "decoder": {"name": "densedepth", "widths": [128, 128, 256, 256, 512], "extra_ups": 1},
}
BTS = {"encoder": {"name": "resnet", "depth": 50}, "decoder": {"name": "bts"}}
LIGHT = {
    "encoder": {"name": "mobilenet_v2", "strides": [1, 2, 2, 2, 1, 2, 1], "dilations": [1] * 7, "width": 0.5},
    "decoder": {"name": "densedepth", "widths": [8, 8, 16, 16], "extra_ups": 1},
}
SMALL_BTS = {"encoder": {"name": "resnet", "depth": 18}, "decoder": {"name": "bts", "width": 128}}
DPM = {"name": "dpm", "num_bins": 257, "target": "released", "sigma": 0.5}
SIGMOID = {"name": "sigmoid"}
PUBLISHED = {
    "mobilev2_DPM_kitti": MOBILENET | {"head": DPM},
    "mobilev2_baseKD_kitti": MOBILENET | {"head": SIGMOID},
    "resnet18_DPM_kitti": RESNET18 | {"head": DPM},
    "resnet18_DPM_kitti_odd": RESNET18 | {"head": DPM},
    "bts_r50_kitti": BTS | {"head": SIGMOID},
}


@lru_cache
def cases() -> dict:
    return golden.load_json("networks/cases.json")


@lru_cache
def arrays() -> dict:
    return golden.load_arrays("networks/arrays.npz")


@lru_cache(maxsize=1)
def published_state(published: str) -> dict[str, torch.Tensor]:
    case = cases()["cases"][published]
    return {k: golden.fill(k, shape, case["gain"], case["overrides"]) for k, shape in cases()["keys"][published]}


def small(node: dict, **head) -> Network:
    torch.manual_seed(0)
    head = {"name": "dpm", "num_bins": 100, "sigma": 0.5} | head
    return build_network(node | {"head": head, "min_depth": 1e-3, "max_depth": MAX_DEPTH})


def published_network(name: str) -> Network:
    network = build_network(PUBLISHED[name] | {"min_depth": 1e-3, "max_depth": MAX_DEPTH})
    load_into(network, from_published(published_state(cases()["cases"][name]["published"])))
    return network


def image_of(name: str) -> torch.Tensor:
    return golden.image(f"model:{name}:img", cases()["cases"][name]["shape"])


def teacher_depth(tag: str, shape=(2, 1, 64, 96)) -> torch.Tensor:
    return golden.depth(tag, shape, 1e-3, MAX_DEPTH)


def published_loss(prediction: Prediction, target: torch.Tensor) -> torch.Tensor:
    return 10 * (0.1 * prediction.divergence.mean() + 0.9 * SSIM(released=True)(prediction, target).mean())


@pytest.mark.parametrize("name", PUBLISHED)
def test_eval_depth_and_features_are_the_published_ones(name):
    network, image, expected = published_network(name).eval(), image_of(name), arrays()
    with torch.no_grad():
        features = network.encoder(image)
        depth = network(image).depth
        flipped = network(image.flip(3)).depth.flip(3)
    for i, feature in enumerate(features):
        want = torch.from_numpy(expected[f"{name}:feature{i}"])
        got = feature.flatten()[torch.from_numpy(expected[f"{name}:feature{i}_at"]).long()]
        assert (got - want).abs().max() <= 1e-3 * want.abs().max()
    assert f"{name}:feature{len(features)}" not in expected
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth, torch.from_numpy(expected[f"{name}:depth"]), rtol=0, atol=5e-5 * MAX_DEPTH)
    if f"{name}:depth_tta" in expected:
        want = torch.from_numpy(expected[f"{name}:depth_tta"])
        torch.testing.assert_close((depth + flipped) / 2, want, rtol=0, atol=5e-5 * MAX_DEPTH)
    dead = sum(published_state(cases()["cases"][name]["published"])[key].numel() for key in dropped_from(name))
    assert num_parameters(network) + dead == cases()["cases"][name]["num_parameters"]


@pytest.mark.parametrize("name", ["mobilev2_DPM_kitti", "mobilev2_baseKD_kitti", "resnet18_DPM_kitti"])
def test_one_training_step_has_the_published_loss_gradients_and_statistics(name):
    network, expected = published_network(name).train(), cases()["cases"][name]["train"]
    target = teacher_depth(f"model:{name}:kd_gt")
    prediction = network(image_of(name), target)
    if prediction.divergence is None:
        loss = silog(reduce="batch")(prediction, target).mean()
    else:
        loss = published_loss(prediction, target)
    loss.backward()
    torch.testing.assert_close(loss.item(), expected["loss"], rtol=1e-5, atol=0)
    norms = {key: grad.norm().item() for key, grad in to_published(gradients(network)).items()}
    total = expected["total_grad_norm"]
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(total, rel=2e-3)
    assert sorted(expected["without_grad"]) == dropped_from(name)
    assert norms.keys() == expected["grad_norms"].keys()
    for key, norm in norms.items():
        assert norm == pytest.approx(expected["grad_norms"][key], rel=2e-2, abs=1e-5 * total), key
    state = to_published(network.state_dict())
    for key, norm in expected["bn_l2"].items():
        assert state[key].norm().item() == pytest.approx(norm, rel=1e-5), key


def test_six_optimizer_steps_follow_the_published_trajectory():
    name = "resnet18_DPM_kitti"
    network, expected = published_network(name).train(), cases()["trajectories"][name]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5, betas=(0.95, 0.99), weight_decay=0.01)
    for i, row in enumerate(expected["iterations"]):
        optimizer.param_groups[0]["lr"] = row["lr"]
        target = teacher_depth(f"traj:{name}:{i}:kd_gt")
        loss = published_loss(network(golden.image(f"traj:{name}:{i}:img", (2, 3, 64, 96)), target), target)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 35)
        optimizer.step()
        assert loss.item() == pytest.approx(row["loss"], rel=2e-4), i
        assert norm.item() == pytest.approx(row["grad_norm"], rel=3e-2), i
    for key, value in to_published(network.state_dict()).items():
        if key in expected["l2_after"]:
            assert value.double().norm().item() == pytest.approx(expected["l2_after"][key], rel=1e-3), key
    want = torch.from_numpy(arrays()[f"trajectory_{name}:depth"])
    with torch.no_grad():
        depth = network.eval()(golden.image(f"traj:{name}:0:img", (2, 3, 64, 96))).depth
    assert (depth - want).abs().max() <= 2e-3 * want.max()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_parameter_of_every_network_recipe_gets_a_gradient(path):
    # AdaBins' 128 queries would need 129 patches of 32 x 32 pixels.
    recipe = load_recipe(path, ["network.head.num_queries=3"] if path.stem.startswith("adabins") else [])
    assert list(recipe) == ["network"]
    torch.manual_seed(0)
    network = build_network(recipe["network"])
    # Two images at 64 x 64 leave the deepest norms of stride 32 more than one value per channel.
    target = teacher_depth("recipes", (2, 1, 64, 64))
    prediction = network(golden.image("recipes", (2, 3, 64, 64)), target)
    loss = (prediction.depth - target).abs().mean()
    if prediction.divergence is not None:
        loss = loss + prediction.divergence.mean()
    loss.backward()
    assert prediction.depth.shape == target.shape
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_recipes_cover_the_networks():
    assert [path.stem for path in RECIPES] == [
        "adabins_kitti",
        "adabins_nyu",
        "bts_r18_kitti",
        "bts_r50_kitti",
        "light_kitti",
        "mobilenet_v2_dpm_kitti",
        "mobilenet_v2_sigmoid_kitti",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("node", [LIGHT, SMALL_BTS], ids=["light", "bts"])
def test_half_precision_weights_give_nearly_the_same_float32_depth(node, dtype):
    network = small(node)
    nn.init.normal_(network.head.weight)
    image, target = golden.image("half", (2, 3, 64, 64)), teacher_depth("half", (2, 1, 64, 64))
    expected = network.train()(image, target)
    for parameter in network.parameters():
        # As the engine does it: buffers stay float32.
        parameter.data = parameter.data.to(dtype)
    got = network(image, target)
    assert got.depth.dtype == got.divergence.dtype == torch.float32
    # Norms and heads at 2 x 64 x 64 amplify rounding; a wrong cast moves the depth by tens of metres.
    scale = expected.depth.detach().std()
    assert scale > 1
    rounding = {torch.float16: 0.03, torch.bfloat16: 0.25}[dtype]
    assert (got.depth - expected.depth).square().mean().sqrt() < rounding * scale
    got.divergence.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


class FixedHead(nn.Module):
    """Gives the same coarse depth whatever it sees."""

    def __init__(self, depth: torch.Tensor):
        super().__init__()
        self.depth = nn.Parameter(depth)

    def forward(self, features, image_size, target_depth=None):
        return Prediction(self.depth)


class FixedDecoder(nn.Module):
    def forward(self, features, image_size):
        return features


def test_eval_clamps_before_the_resize_and_training_never():
    coarse = torch.tensor([[-5.0, 3.0], [100.0, 7.0]]).view(1, 1, 2, 2)
    network = Network(nn.Identity(), FixedDecoder(), FixedHead(coarse), 0.5, 10.0)
    image = torch.zeros(1, 3, 5, 7)
    resized = {"mode": "bilinear", "align_corners": True, "size": (5, 7)}
    torch.testing.assert_close(network.eval()(image).depth, interpolate(coarse.clamp(0.5, 10.0), **resized))
    torch.testing.assert_close(network.train()(image).depth, interpolate(coarse, **resized))


@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
@pytest.mark.parametrize("node", [LIGHT, SMALL_BTS, RESNET18], ids=["light", "bts", "densedepth"])
def test_depth_does_not_depend_on_the_target_at_any_size(node, size):
    network = small(node).eval()
    image, target = golden.image("sizes", (1, 3, *size)), teacher_depth("sizes", (1, 1, *size))
    with torch.no_grad():
        alone, taught = network(image), network(image, target)
    assert alone.divergence is None
    assert torch.equal(alone.depth, taught.depth)
    assert alone.depth.shape == taught.divergence.shape == (1, 1, *size)
    assert taught.divergence.isfinite().all() and (taught.divergence > 0).all()


def gradients(network: Network) -> dict[str, torch.Tensor]:
    return {key: parameter.grad for key, parameter in network.named_parameters()}


def num_parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def dropped_from(name: str) -> list[str]:
    return dropped(published_state(cases()["cases"][name]["published"]))
