"""Whole networks against the published ones (depth, features, gradients), and what Network adds."""

from pathlib import Path

import pytest
import torch
from support import golden
from support import published_networks as published
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from tiekd.config.recipe import load_recipe
from tiekd.data.target import Target
from tiekd.errors import RecipeError
from tiekd.losses.silog import build as silog
from tiekd.losses.ssim import SSIM
from tiekd.models.build import build_network
from tiekd.models.network import Network, Prediction
from tiekd.models.weights.state_dicts import to_published

RECIPES = sorted((Path(__file__).parents[3] / "model_configs/_base_/networks").glob("*.yaml"))
MAX_DEPTH = 80.0
LIGHT = {
    "encoder": {
        "name": "mobilenet_v2",
        "strides": [1, 2, 2, 2, 1, 2, 1],
        "dilations": [1] * 7,
        "width": 0.5,
    },
    "decoder": {"name": "densedepth", "widths": [8, 8, 16, 16], "extra_ups": 1},
}
COARSE = LIGHT | {"decoder": {"name": "separable", "widths": [8, 8, 16, 16]}}
SMALL_BTS = {"encoder": {"name": "resnet", "depth": 18}, "decoder": {"name": "bts", "width": 128}}
TRAINED = [name for name, case in published.cases()["cases"].items() if "train" in case]
# What takes longer than its like, or than all others together.
SLOW = ("depthformer_swinl_kitti", "resnet50_sigmoid_kitti", "resnet50_baseKD_nyu")


def marked(name: str):
    return pytest.param(name, marks=pytest.mark.long) if name in SLOW else name


def small(node: dict, **head) -> Network:
    torch.manual_seed(0)
    head = {"name": "dpm", "num_bins": 100, "sigma": 0.5} | head
    return build_network(node | {"head": head, "min_depth": 1e-3, "max_depth": MAX_DEPTH})


def teacher_depth(tag: str, shape=(2, 1, 64, 96), max_depth_m: float = MAX_DEPTH) -> torch.Tensor:
    return golden.depth(tag, shape, 1e-3, max_depth_m)


@pytest.mark.parametrize("name", [marked(name) for name in published.NODES])
def test_network_equals_published_in_eval(name):
    """Depth, features and number of parameters equal the published network's."""
    network, image, expected = (
        published.network(name).eval(),
        published.image(name),
        published.arrays(),
    )
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
    tolerance = {"rtol": 0, "atol": 5e-5 * published.max_depth_m(name)}
    torch.testing.assert_close(depth, torch.from_numpy(expected[f"{name}:depth"]), **tolerance)
    if f"{name}:depth_tta" in expected:
        want = torch.from_numpy(expected[f"{name}:depth_tta"])
        torch.testing.assert_close((depth + flipped) / 2, want, **tolerance)
    dead = sum(published.state_of(name)[key].numel() for key in published.dropped_from(name))
    assert num_parameters(network) + dead == published.cases()["cases"][name]["num_parameters"]


@pytest.mark.parametrize("name", TRAINED)
def test_network_training_step_equals_published(name):
    """One training step has the published loss, gradient norms and statistics."""
    network, expected = published.network(name).train(), published.cases()["cases"][name]["train"]
    target = teacher_depth(f"model:{name}:kd_gt", max_depth_m=published.max_depth_m(name))
    prediction = network(published.image(name), target)
    if prediction.divergence is None:
        loss = silog(reduce="batch")(prediction, target).mean()
    else:
        loss = 10 * (
            0.1 * prediction.divergence.mean()
            + 0.9 * SSIM(released=True)(prediction, target).mean()
        )
    loss.backward()
    torch.testing.assert_close(loss.item(), expected["loss"], rtol=1e-5, atol=0)
    norms = {key: grad.norm().item() for key, grad in to_published(gradients(network)).items()}
    total = expected["total_grad_norm"]
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(total, rel=2e-3)
    assert sorted(expected["without_grad"]) == published.dropped_from(name)
    assert norms.keys() == expected["grad_norms"].keys()
    for key, norm in norms.items():
        assert norm == pytest.approx(expected["grad_norms"][key], rel=2e-2, abs=1e-5 * total), key
    state = to_published(network.state_dict())
    for key, norm in expected["bn_l2"].items():
        assert state[key].norm().item() == pytest.approx(norm, rel=1e-5), key


# The recipes for NYU and folders have other depths and bins only, see
# test_network_recipes_nyu_match_kitti.
@pytest.mark.parametrize(
    "stem", [marked(path.stem) for path in RECIPES if not path.stem.endswith(("_nyu", "_folder"))]
)
def test_network_recipes_every_parameter_gets_gradient(stem):
    """Each parameter of each network recipe gets a finite, nonzero gradient."""
    # AdaBins' 128 queries would need 129 patches of 32 x 32 pixels.
    smaller = ["network.head.num_queries=3"] if stem.startswith("adabins") else []
    recipe = load_recipe(RECIPES[0].with_stem(stem), smaller)
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
    without = [
        key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_network_recipes_nyu_match_kitti():
    """The network recipes are those listed; NYU's differ in depth, bins and sigma only."""
    assert [path.stem for path in RECIPES] == [
        "adabins_kitti",
        "adabins_nyu",
        "bts_r18_kitti",
        "bts_r50_kitti",
        "bts_r50_nyu",
        "depthformer_swinl_kitti",
        "depthformer_swinl_nyu",
        "depthformer_swint_kitti",
        "depthformer_swint_nyu",
        "light_kitti",
        "lite0_folder",
        "lite0_kitti",
        "lite0_nyu",
        "lite2_folder",
        "lite2_kitti",
        "lite2_nyu",
        "mobilenet_v2_dpm_kitti",
        "mobilenet_v2_dpm_nyu",
        "mobilenet_v2_sigmoid_kitti",
        "mobilenet_v2_sigmoid_nyu",
        "resnet18_dpm_kitti",
        "resnet18_dpm_nyu",
        "resnet18_sigmoid_kitti",
        "resnet18_sigmoid_nyu",
        "resnet50_dpm_kitti",
        "resnet50_dpm_nyu",
        "resnet50_sigmoid_kitti",
        "resnet50_sigmoid_nyu",
    ]
    for path in RECIPES:
        if path.stem.endswith("_nyu"):
            nyu, kitti = (
                load_recipe(p)["network"] for p in (path, path.with_stem(f"{path.stem[:-4]}_kitti"))
            )
            assert nyu["max_depth"] == 10, path
            assert kitti["max_depth"] == 80, path
            assert nyu.keys() == kitti.keys(), path
            head_options = {"num_bins", "sigma"}
            assert {k: v for k, v in nyu["head"].items() if k not in head_options} == {
                k: v for k, v in kitti["head"].items() if k not in head_options
            }
            assert all(nyu[part] == kitti[part] for part in nyu.keys() - {"head", "max_depth"}), (
                path
            )
        if path.stem.endswith("_folder"):
            folder, kitti = (
                load_recipe(p)["network"]
                for p in (path, path.with_stem(path.stem.replace("folder", "kitti")))
            )
            assert folder["head"] == kitti["head"] | {"spacing": "log", "sigma": 0.9}
            assert folder | {"head": {}, "min_depth": 0.001} == kitti | {"head": {}}


@pytest.mark.parametrize(
    ("node", "dtype"),
    [
        (LIGHT, torch.float16),
        (LIGHT, torch.bfloat16),
        (SMALL_BTS, torch.bfloat16),
        pytest.param(
            SMALL_BTS, torch.float16, marks=pytest.mark.long
        ),  # a CPU convolves slowly in fp16
    ],
    ids=["light-fp16", "light-bf16", "bts-bf16", "bts-fp16"],
)
def test_network_half_weights_give_float32_depth(node, dtype):
    """Half precision weights give nearly the same depth, in float32."""
    network = small(node)
    nn.init.normal_(network.head.weight)
    image, target = golden.image("half", (2, 3, 64, 64)), teacher_depth("half", (2, 1, 64, 64))
    expected = network.train()(image, target)
    for parameter in network.parameters():
        # As the engine does it: buffers stay float32.
        parameter.data = parameter.data.to(dtype)
    got = network(image, target)
    assert got.depth.dtype == got.divergence.dtype == torch.float32
    # Norms and heads at 2 x 64 x 64 amplify rounding; a wrong cast moves the depth by tens of
    # metres.
    scale = expected.depth.detach().std()
    assert scale > 1
    rounding = {torch.float16: 0.03, torch.bfloat16: 0.25}[dtype]
    assert (got.depth - expected.depth).square().mean().sqrt() < rounding * scale
    got.divergence.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
def test_network_convex_depth_is_between_cells_around(size):
    """With learned upsampling a pixel's depth is between those of the nine cells around it."""
    network = small(COARSE, upsampling="convex").eval()
    nn.init.normal_(network.head.weight)
    nn.init.normal_(network.head.upsampling.logits.weight)
    image = golden.image("convex", (2, 3, *size))
    with torch.no_grad():
        features = network.features(image)
        cells = network.in_metres(network.head(features, size).depth)
        depth = network(image).depth
    assert depth.shape == (2, 1, *size)
    assert tuple(cells.shape[2:]) == (-(-size[0] // 4), -(-size[1] // 4))
    # Beyond the border no cell is 0.
    high, low = max_pool2d(cells, 3, 1, 1), -max_pool2d(-cells, 3, 1, 1)
    for bound, sign in ((high, 1), (low, -1)):
        fine = bound.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., : size[0], : size[1]]
        assert (sign * (fine - depth) > -1e-4).all()
    bilinear = interpolate(cells, size, mode="bilinear", align_corners=True)
    assert (depth - bilinear).abs().max() > 0.1


def test_network_convex_learns_target_of_several():
    """With learned upsampling, a mixture's divergence is the bilinear head's; depth has weights."""
    depth = torch.tensor([5.0, 20.0]).view(1, 2, 1, 1).expand(2, 2, 64, 64)
    target = Target(depth, depth / 10, torch.tensor([3.0, 1.0]))
    torch.manual_seed(0)
    network, plain = small(COARSE, upsampling="convex"), small(COARSE)
    plain.load_state_dict(network.state_dict(), strict=False)
    image = golden.image("convex", (2, 3, 64, 64))
    found, wanted = (each.train()(image, target) for each in (network, plain))
    torch.testing.assert_close(found.divergence, wanted.divergence)
    assert found.depth.shape == (2, 1, 64, 64)
    (found.divergence.mean() + found.depth.mean()).backward()
    assert network.head.upsampling.logits.weight.grad.abs().sum() > 0


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


def test_network_eval_clamps_before_resize():
    """In eval depth is clamped before it is resized; in training it isn't clamped."""
    coarse = torch.tensor([[-5.0, 3.0], [100.0, 7.0]]).view(1, 1, 2, 2)
    network = Network(nn.Identity(), FixedDecoder(), FixedHead(coarse), 0.5, 10.0)
    image = torch.zeros(1, 3, 5, 7)
    resized = {"mode": "bilinear", "align_corners": True, "size": (5, 7)}
    torch.testing.assert_close(
        network.eval()(image).depth, interpolate(coarse.clamp(0.5, 10.0), **resized)
    )
    torch.testing.assert_close(network.train()(image).depth, interpolate(coarse, **resized))


@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
@pytest.mark.parametrize(
    "node", [LIGHT, SMALL_BTS, published.RESNET18], ids=["light", "bts", "densedepth"]
)
def test_network_depth_ignores_target(node, size):
    """A target adds a divergence and doesn't change the depth, at any image size."""
    network = small(node).eval()
    image, target = golden.image("sizes", (1, 3, *size)), teacher_depth("sizes", (1, 1, *size))
    with torch.no_grad():
        alone, taught = network(image), network(image, target)
    assert alone.divergence is None
    assert torch.equal(alone.depth, taught.depth)
    assert alone.depth.shape == taught.divergence.shape == (1, 1, *size)
    assert taught.divergence.isfinite().all()
    assert (taught.divergence > 0).all()


def gradients(network: Network) -> dict[str, torch.Tensor]:
    return {key: parameter.grad for key, parameter in network.named_parameters()}


def num_parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


ONE_VALUE = (
    r"train.batch_size: 1 image\(s\) of {} a rank and micro-batch leave a norm one value.*set 2 "
    r"images or more"
)


@pytest.mark.parametrize(
    ("images", "height", "width", "line"),
    [
        (
            1,
            32,
            32,
            ONE_VALUE.format("32x32") + ".*or data.augment.crop with a side of 64 or more$",
        ),
        (1, 8, 20, ONE_VALUE.format("8x20") + ".*a side of 64 or more$"),
        (1, 32, 33, None),
        (2, 32, 32, None),
    ],
)
def test_network_norm_with_one_value_is_one_line(images, height, width, line):
    """A norm that would get one value is an error that says which size would do."""
    network, image = small(LIGHT), torch.rand(images, 3, height, width)
    if line is None:
        assert network.train()(image).depth.isfinite().all()
    else:
        with pytest.raises(RecipeError, match=line):
            network.train()(image)
    assert network.eval()(image).depth.isfinite().all()


class _Pooled(nn.Module):
    """A user's own decoder, with a norm over the mean of the whole image."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, features, image_size):
        return features[0] + self.norm(features[0].mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda channels: nn.GroupNorm(channels, channels)]
)
def test_network_external_norm_with_one_value(norm):
    """A norm of an external part that would get one value raises the same error."""
    network = small(LIGHT)
    network.decoder = _Pooled(norm(network.encoder.channels[0]))
    with pytest.raises(RecipeError, match=ONE_VALUE.format("64x64") + r" a rank and micro-batch$"):
        network.train()(torch.rand(1, 3, 64, 64))
