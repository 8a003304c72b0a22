"""AdaBins against the published numbers and names, its bins, its training, and what it refuses."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from support import golden

from tiekd.config.recipe import load_recipe
from tiekd.errors import RecipeError
from tiekd.models.build import build_network
from tiekd.models.encoders.efficientnet import EfficientNet
from tiekd.models.flip import predict
from tiekd.models.heads.adabins import bin_centres
from tiekd.models.layers.mini_vit import MiniViT
from tiekd.models.network import Network
from tiekd.models.weights.state_dicts import dropped, from_published, load_into, to_published
from tiekd.training import criterion
from tiekd.training.optimizer import build_optimizer

TEACHERS = Path(__file__).parents[4] / "model_configs" / "teachers"
VIT = "decode_head.adaptive_bins_layer."
DEAD = [
    f"backbone.original_model.bn2.{p}"
    for p in ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
]
DEAD += ["decode_head.conv_depth.bias", "decode_head.conv_depth.weight"]
SMALL = {
    "encoder": {"name": "efficientnet", "variant": "b0"},
    "decoder": {"name": "adabins", "widths": [16, 16, 24, 24, 32]},
    "head": {
        "name": "adabins",
        "num_bins": 12,
        "num_queries": 8,
        "width": 16,
        "patch": 8,
        "num_positions": 40,
    },
    "min_depth": 0.001,
    "max_depth": 10.0,
}


@lru_cache
def case() -> dict:
    return golden.load_json("adabins/case.json")


@lru_cache
def arrays() -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(value)
        for key, value in golden.load_arrays("adabins/arrays.npz").items()
    }


@lru_cache
def published_state() -> dict[str, torch.Tensor]:
    return {
        key: golden.fill(key, shape, case()["gain"], case()["overrides"])
        for key, shape in shapes().items()
    }


@lru_cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shape of every entry of the published checkpoint, by its name."""
    lines = str(golden.load_arrays("networks/keys.npz")["adabins_kitti"]).splitlines()
    pairs = (line.rpartition(" ")[::2] for line in lines)
    return {key: tuple(int(n) for n in shape.split("x") if n) for key, shape in pairs}


def small(**head) -> Network:
    torch.manual_seed(0)
    return build_network(SMALL | {"head": SMALL["head"] | head})


def test_adabins_equals_published():
    """Depth, features, bins and names of AdaBins equal the published network's."""
    with torch.device("meta"):  # 78 million random numbers that nobody needs
        network = build_network(load_recipe(TEACHERS / "adabins_kitti.yaml")["network"]).eval()
    network.to_empty(device="cpu")
    report = load_into(network, from_published(published_state()))
    assert report.missing == report.unexpected == report.misfit == []
    image = golden.image("model:adabins_kitti:img", case()["shape"])
    seen = []
    network.encoder.register_forward_hook(lambda module, inputs, features: seen.extend(features))
    with torch.no_grad():
        prediction = network(image)
    for i, feature in enumerate(seen):
        want, at = arrays()[f"feature{i}"], arrays()[f"feature{i}_at"].long()
        assert (feature.flatten()[at] - want).abs().max() <= 1e-4 * want.abs().max(), i
    assert len(seen) == 5
    torch.testing.assert_close(
        prediction.depth[:, :, ::3, ::3], arrays()["depth"], rtol=0, atol=3e-4 * 80
    )
    edges = arrays()["bin_edges"]
    torch.testing.assert_close(
        prediction.bin_centres, (edges[:, 1:] + edges[:, :-1]) / 2, rtol=0, atol=3e-4 * 80
    )
    back, state = to_published(network.state_dict()), published_state()
    assert back.keys() == state.keys() - set(DEAD)
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.items())
    # Its BatchNorm follows the last tap, and the depth convolution is a leftover of the sigmoid
    # head.
    assert dropped(state) == sorted(DEAD)
    dead = sum(state[key].numel() for key in DEAD if "running" not in key and "tracked" not in key)
    assert sum(p.numel() for p in network.parameters()) + dead == case()["num_parameters"]["total"]


def test_mini_vit_equals_published():
    """The mini-ViT's widths and maps equal the published ones."""
    state = {VIT + key: golden.fill(key, shape) for key, shape in case()["mini_vit_keys"]}
    vit = MiniViT(
        32, num_bins=20, num_queries=16, width=32, patch=4, num_positions=500, dropout=0.1
    ).eval()
    vit.load_state_dict(
        {key.removeprefix("head.vit."): tensor for key, tensor in from_published(state).items()}
    )
    with torch.no_grad():
        widths, maps = vit(golden.randn("extra:mvit:x", (2, 32, 20, 28)))
    for got, want in ((widths, arrays()["mini_vit_widths"]), (maps, arrays()["mini_vit_maps"])):
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()


def test_from_published_wrapped_or_encoder_only():
    """Wrapped AdaBins checkpoints and lone EfficientNets map to our names."""
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes().items()}
    wrapped = {"meta": {}, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    assert from_published(wrapped).keys() == from_published(state).keys()
    assert dropped(wrapped) == sorted(DEAD)
    prefix = "backbone.original_model."
    alone = {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }
    alone["classifier.weight"] = torch.empty(1000, 2048, device="meta")
    with torch.device("meta"):
        own = EfficientNet("b5").state_dict()
    ours = from_published(alone)
    assert {key: t.shape for key, t in ours.items()} == {
        f"encoder.{key}": t.shape for key, t in own.items()
    }
    assert dropped(alone) == sorted(
        [key for key in DEAD if key.startswith(prefix)] + [f"{prefix}classifier.weight"]
    )


@pytest.mark.parametrize(
    ("variant", "num_parameters"),
    # The classifiers' sizes (5,288,548; 30,389,784; 66,347,960) less the last norm and layer.
    [("b0", 4_004_988), ("b5", 28_336_688), ("b7", 63_781_840)],
)
def test_efficientnet_number_of_parameters(variant, num_parameters):
    """Each EfficientNet has the classifier's parameters up to the last convolution."""
    with torch.device("meta"):
        encoder = EfficientNet(variant)
    assert sum(p.numel() for p in encoder.parameters()) == num_parameters


def test_efficientnet_has_no_parameters_behind_last_tap():
    """Each parameter gets a gradient, so none is behind the last tap."""
    encoder = EfficientNet("b0", taps=(0, 2))
    sum(feature.square().mean() for feature in encoder(torch.randn(2, 3, 32, 32))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_efficientnet_features_have_declared_shapes(size):
    """Features have the declared channels and strides, also at odd image sizes."""
    encoder = EfficientNet("b0", taps=(0, 1, 2, 4, 6, 7)).eval()
    assert encoder.channels == (16, 24, 40, 112, 320, 1280)
    assert encoder.strides == (
        2,
        4,
        8,
        16,
        32,
        32,
    )
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, *size))
    declared = zip(encoder.channels, encoder.strides, strict=True)
    assert [tuple(f.shape) for f in features] == [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in declared
    ]


def test_bin_centres_fill_range_in_order():
    """Bins of the given shares fill the range from min_depth to max_depth in order."""
    shares = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    torch.testing.assert_close(
        bin_centres(shares, 2.0, 10.0), torch.tensor([[4.0, 7.0, 9.0], [2.4, 3.6, 7.2]])
    )


def test_adabins_bins_are_per_image():
    """Each image has its own ascending bins, and depth is within them."""
    network, image = small().eval(), golden.image("bins", (2, 3, 64, 96))
    with torch.no_grad():
        prediction = network(image)
        alone = network(image[1:])
    centres = prediction.bin_centres
    assert prediction.depth.shape == (2, 1, 64, 96)
    assert centres.shape == (2, 12)
    assert prediction.depth.dtype == centres.dtype == torch.float32
    assert (centres.diff(dim=1) > 0).all()
    assert centres.min() > 0.001
    assert centres.max() < 10
    assert (centres[0] - centres[1]).abs().max() > 1e-3
    torch.testing.assert_close(alone.bin_centres, centres[1:], rtol=1e-4, atol=1e-5)
    low, high = (getattr(centres, name)(1).view(2, 1, 1, 1) for name in ("amin", "amax"))
    assert (prediction.depth >= low).all()
    assert (prediction.depth <= high).all()


def test_predict_flip_averages_depth_not_bins():
    """Flip averaging means two depths, each from the bins of its own image."""
    network, image = small().eval(), golden.image("flip", (1, 3, 64, 96))
    with torch.no_grad():
        plain, mirrored = network(image), network(image.flip(3))
    assert (plain.bin_centres - mirrored.bin_centres).abs().max() > 1e-4
    torch.testing.assert_close(
        predict(network, image, flip=True), (plain.depth + mirrored.depth.flip(3)) / 2
    )


def test_adabins_every_parameter_gets_gradient():
    """The recipe's losses reach every parameter; the bins' loss only what makes bins."""
    network = small().train()
    terms = criterion.build(
        load_recipe(TEACHERS / "adabins_kitti.yaml")["losses"], has_teacher=False
    )
    target = golden.depth("losses", (2, 1, 64, 96), 0.5, 9.0)
    losses = terms(
        network(golden.image("losses", (2, 3, 64, 96))), type("Batch", (), {"depth": target}), None
    )
    torch.testing.assert_close(losses["loss"], losses["loss_depth"] + losses["loss_bins"])
    losses["loss"].backward()
    without = [
        key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert without == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.zero_grad()
    prediction = network(golden.image("losses", (2, 3, 64, 96)))
    terms.terms["bins"].loss(prediction, target).mean().backward()
    # The bins' loss reaches the transformer and what feeds it, not what weighs the bins.
    reached = {
        key
        for key, p in network.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert "head.vit.regressor.0.weight" in reached
    assert "encoder.conv_stem.weight" in reached
    assert "head.weight" not in reached
    assert "head.vit.features.weight" not in reached


def test_mini_vit_dropout_in_training_only():
    """Dropout acts in training only, and never at rate 0."""
    x = torch.randn(1, 16, 32, 48, generator=torch.Generator().manual_seed(0))
    vit = small().head.vit
    with torch.no_grad():
        assert not torch.equal(vit.train()(x)[0], vit(x)[0])
        assert torch.equal(vit.eval()(x)[0], vit(x)[0])
        still = small(dropout=0.0).head.vit.train()
        assert torch.equal(still(x)[0], vit(x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adabins_half_weights_give_float32_results(dtype):
    """Half precision weights give nearly the same depth and bins, in float32."""
    network, image = small().eval(), golden.image("half", (2, 3, 64, 96))
    with torch.no_grad():
        expected = network(image)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
        got = network(image)
    assert got.depth.dtype == got.bin_centres.dtype == torch.float32
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    assert (got.depth - expected.depth).abs().max() < tolerance
    assert (got.bin_centres - expected.bin_centres).abs().max() < tolerance


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            (32, 64),
            r"features of 16x32 give 8 patches of 8x8; it takes 9 to 40: change the crop .* the "
            r"head's patch",
        ),
        ((8, 64), "features of 4x32 give 0 patches of 8x8; it takes 9 to 40"),
        ((96, 128), "features of 48x64 give 48 patches of 8x8; it takes 9 to 40"),
    ],
)
def test_adabins_rejects_wrong_number_of_patches(size, words):
    """Too few or too many patches raise a RecipeError of one line."""
    with pytest.raises(RecipeError, match=words) as error:
        small()(torch.zeros(2, 3, *size))
    assert "\n" not in str(error.value)


def test_adabins_head_accepts_published_sizes():
    """The published head accepts each training and evaluation size of the recipes."""
    for recipe, sizes in (
        ("kitti", [(352, 704), (352, 1216), (352, 384)]),
        ("nyu", [(416, 544), (427, 565)]),
    ):
        node = load_recipe(TEACHERS.parent / f"_base_/networks/adabins_{recipe}.yaml")["network"]
        with torch.device("meta"):
            head = build_network(node).head.eval()
            for height, width in sizes:
                features = torch.empty(1, 128, -(-height // 2), -(-width // 2))
                assert head(features, (height, width)).depth.shape == (1, 1, *features.shape[2:])


@pytest.mark.parametrize(
    ("part", "arguments", "words"),
    [
        ("encoder", {"variant": "b8"}, r"network.encoder.variant: got 'b8'; allowed: b0, b1"),
        ("encoder", {"taps": [0, 8]}, r"network.encoder.taps: got \[0, 8\]"),
        ("encoder", {"taps": [2, 1]}, r"network.encoder.taps: got \[2, 1\]"),
        ("decoder", {"widths": [8, 8]}, r"network.decoder.widths: got \[8, 8\]; 5 whole numbers"),
        ("head", {"num_bins": 1}, "network.head.num_bins: got 1; it must be at least 2"),
        ("head", {"num_positions": 8}, "network.head.num_positions: got 8; it must be at least 9"),
        ("head", {"width": 18}, "network.head.width: got 18; it must be a multiple of 4"),
        ("head", {"dropout": 1.0}, "network.head.dropout: got 1.0; it must be from 0 to below 1"),
    ],
)
def test_adabins_rejects_invalid_arguments(part, arguments, words):
    """Invalid arguments of a part raise a RecipeError that names the key."""
    with pytest.raises(RecipeError, match=words), torch.device("meta"):
        build_network(SMALL | {part: SMALL[part] | arguments})


def test_adabins_recipe_optimizer_groups():
    """The recipe has one parameter group as published; a tenfold rate can be set."""
    recipe = load_recipe(TEACHERS / "adabins_kitti.yaml")
    with torch.device("meta"):
        network = build_network(recipe["network"])
    (group,) = build_optimizer(recipe["optimizer"], network, 16, "none").param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (3.57e-4, 0.1, (0.95, 0.99))
    as_written = recipe["optimizer"] | {
        "groups": [{"match": ["decoder.*", "head.*"], "lr_mult": 10}]
    }
    groups = build_optimizer(as_written, network, 16, "none").param_groups
    # 504 and 91 parameters as published, less the dead ones.
    assert [(len(g["params"]), round(g["lr"], 9)) for g in groups] == [
        (502, 3.57e-4),
        (89, 3.57e-3),
    ]
