"""DepthFormer against the published one, part by part and whole.

Also what its training and lower precision must keep.
"""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from support import golden
from torch import Tensor, nn

from tiekd.config.recipe import load_recipe
from tiekd.errors import RecipeError
from tiekd.models.build import build_network
from tiekd.models.encoders.depthformer import DepthFormer
from tiekd.models.encoders.swin import PatchMerging, Swin
from tiekd.models.heads.relu import Relu
from tiekd.models.layers import deformable_attention
from tiekd.models.layers.deformable_attention import DeformableAttention, read_points
from tiekd.models.layers.window_attention import WindowAttention
from tiekd.models.necks.hahi import Hahi, sine_positions
from tiekd.models.network import Network
from tiekd.models.weights.state_dicts import dropped, from_published, load_into, to_published
from tiekd.training.optimizer import parameter_groups

MODEL_CONFIGS = Path(__file__).parents[4] / "model_configs"
NAMES = ["depthformer_swint_kitti", "depthformer_swinl_kitti"]
LARGE_IS_LONG = [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.long)]
SMALL = {
    "encoder": {"name": "depthformer", "width": 16, "depths": [1, 1, 2, 1], "heads": [1, 2, 4, 8]},
    "neck": {"name": "hahi", "width": 32},
    "decoder": {"name": "densedepth", "widths": [8, 8, 16, 32, 64], "activation": "leaky_relu"},
    "head": {"name": "relu"},
    "min_depth": 1e-3,
    "max_depth": 80.0,
}


@lru_cache
def cases() -> dict:
    return golden.load_json("depthformer/cases.json")


@lru_cache
def arrays() -> dict[str, Tensor]:
    return {
        key: torch.from_numpy(array)
        for key, array in golden.load_arrays("depthformer/arrays.npz").items()
    }


def recipe_network(name: str) -> Network:
    return build_network(load_recipe(MODEL_CONFIGS / f"_base_/networks/{name}.yaml")["network"])


def filled(module: nn.Module, case: str, prefix: str = "") -> nn.Module:
    """Returns the module with the weights by rule of a published one's keys.

    `prefix` leads to the names that ours have.
    """
    state = {f"{prefix}{key}": golden.fill(key, shape) for key, shape in cases()["keys"][case]}
    if prefix.startswith("neck"):
        state = {
            name.removeprefix("neck."): tensor for name, tensor in from_published(state).items()
        }
    module.load_state_dict({name.removeprefix("w_msa."): tensor for name, tensor in state.items()})
    return module.eval()


def assert_close(got: Tensor, name: str, tolerance: float = 2e-5) -> None:
    want = arrays()[name]
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max(), name


@pytest.mark.parametrize("name", LARGE_IS_LONG)
def test_depthformer_equals_published_in_eval(name):
    """Depth, features and number of parameters equal the published network's."""
    case = cases()["cases"][name]
    state = {
        k: golden.fill(k, shape, case["gain"], case["overrides"])
        for k, shape in cases()["keys"][name]
    }
    network, image = recipe_network(name).eval(), golden.image(f"model:{name}:img", case["shape"])
    load_into(network, from_published(state))
    for key, tensor in to_published(network.state_dict()).items():
        assert torch.equal(tensor, state[key]), key
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    dead = sum(state[key].numel() for key in dropped(state) if not key.endswith("_index"))
    assert num_parameters + dead == case["num_parameters"]
    with torch.no_grad():
        features = network.encoder(image)
        fused = network.neck(features)
        depth = network(image).depth
        flipped = network(image.flip(3)).depth.flip(3)
    for part, got in (("backbone", features), ("neck", fused)):
        for i, feature in enumerate(got):
            at = arrays()[f"{name}:{part}{i}_sample_idx"].long()
            assert_close(feature.flatten()[at], f"{name}:{part}{i}_sample", 1e-3)
    tolerance = {"rtol": 0, "atol": 5e-5 * 80}
    torch.testing.assert_close(depth, arrays()[f"{name}:depth"], **tolerance)
    if f"{name}:depth_tta" in arrays():
        torch.testing.assert_close(
            (depth + flipped) / 2, arrays()[f"{name}:depth_tta"], **tolerance
        )


@pytest.mark.parametrize("name", NAMES)
def test_depthformer_published_names_round_trip(name):
    """Published names map onto the network and back, except for dead tensors."""
    with torch.device("meta"):
        network = recipe_network(name)
        state = {key: torch.empty(shape) for key, shape in cases()["keys"][name]}
    ours, own = from_published(state), network.state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in own.items()
    }
    back = to_published(ours)
    assert all(back[key] is state[key] for key in back)
    blocks = sum(key.endswith("relative_position_bias_table") for key in state)
    dead = [key.rpartition(".")[2] for key in state.keys() - back.keys()]
    assert sorted(dead) == ["bias", *["relative_position_index"] * blocks, "weight"]
    assert dropped(state) == sorted(state.keys() - back.keys())
    assert {"decode_head.conv_out.0.weight", "decode_head.conv_out.0.bias"} < set(dropped(state))


def test_window_attention_equals_published():
    """Shifted window attention equals the published layer's output."""
    attention = filled(WindowAttention(32, 4, window=7, shift=3), "swmsa")
    assert torch.equal(
        attention.relative_position_index, arrays()["relative_position_index"].long()
    )
    with torch.no_grad():
        out = attention(golden.randn("extra:swmsa:x", (2, 120, 32)).view(2, 10, 12, 32))
    assert_close(out.flatten(1, 2), "swmsa_out")


def test_patch_merging_equals_published():
    """Patch merging equals the published layer's output."""
    with torch.no_grad():
        out = filled(PatchMerging(8), "patchmerge")(
            golden.randn("extra:pm:x", (2, 35, 8)).view(2, 5, 7, 8)
        )
    assert_close(out.flatten(1, 2), "patchmerge_out")


def test_sine_positions_equal_published():
    """Sine position encodings equal the published ones."""
    positions = sine_positions((3, 5), 16, torch.device("cpu"))
    assert_close(positions.transpose(1, 2).unflatten(2, (3, 5)), "sinepos")


def test_deformable_attention_equals_published():
    """Deformable attention equals the published layer's output."""
    attention = filled(DeformableAttention(32, num_levels=2, num_heads=4, num_points=3), "msda")
    query, position = (golden.randn(f"extra:msda:{name}", (2, 7, 32)) for name in ("q", "pos"))
    tokens = golden.randn("extra:msda:v", (2, 30, 32))
    with torch.no_grad():
        out = attention(
            query, position, tokens, [(4, 6), (2, 3)], golden.rand("extra:msda:ref", (2, 7, 2, 2))
        )
    assert_close(out, "msda_out")


def test_hahi_equals_published():
    """The HAHI neck's outputs equal the published ones."""
    shapes = cases()["hahi_shapes"]
    neck = filled(Hahi([shape[0] for shape in shapes], width=64), "hahi", "neck.")
    with torch.no_grad():
        out = neck(
            [golden.randn(f"extra:hahi:x{i}", (2, *shape)) for i, shape in enumerate(shapes)]
        )
    for i, feature in enumerate(out):
        assert_close(feature, f"hahi_out{i}")


@pytest.mark.parametrize(
    ("encoder", "channels", "strides"),
    [
        (lambda: Swin(16, (1, 1, 2, 1), (1, 2, 4, 8)), (16, 32, 64, 128), (4, 8, 16, 32)),
        (
            lambda: DepthFormer(16, (1, 1, 2, 1), (1, 2, 4, 8)),
            (64, 16, 32, 64, 128),
            (2, 4, 8, 16, 32),
        ),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 30)])
def test_swin_features_have_declared_shapes(encoder, channels, strides, size):
    """Features of Swin and DepthFormer have the declared channels and strides."""
    encoder = encoder().eval()
    assert encoder.channels == channels
    assert encoder.strides == strides
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, *size))
        neck = Hahi(channels, width=16).eval()
        assert [fused.shape for fused in neck(features)] == [feature.shape for feature in features]
    sizes = [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(channels, strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == sizes


def points(num_queries: int = 50) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    maps = [torch.randn(2 * 4, 8, *size, requires_grad=True) for size in ((9, 13), (5, 7))]
    reference = torch.rand(1, num_queries, 1, 2, requires_grad=True)
    offsets = torch.randn(2, num_queries, 4, 2, 3, 2).mul(2).requires_grad_()
    weights = torch.rand(2, num_queries, 4, 2, 3, requires_grad=True)
    return maps, reference, offsets, weights


def test_read_points_in_parts_equals_whole():
    """Sampling in parts gives the values and gradients of sampling at once."""
    results = []
    for sampled_values in (2**24, 8 * 8 * 3 * 7, 1):
        maps, *rest = points()
        out = read_points(maps, *rest, sampled_values=sampled_values)
        out.square().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(read_points(maps, *rest, sampled_values=sampled_values), out)
        results.append([out, *(tensor.grad for tensor in [*maps, *rest])])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_read_points_limits_values_at_once(monkeypatch):
    """No more values than allowed are sampled at once, forward and backward."""
    read = []

    def spy(*args, **kwargs):
        out = torch.nn.functional.grid_sample(*args, **kwargs)
        read.append(out.numel())
        return out

    monkeypatch.setattr(deformable_attention, "grid_sample", spy)
    maps, *rest = points(50)
    out = read_points(maps, *rest, sampled_values=8 * 8 * 3 * 10)
    assert max(read) == 8 * 8 * 3 * 10
    assert sum(read) == 8 * 8 * 3 * 50 * 2
    # What was read is not kept for the gradient, but read again.
    out.sum().backward()
    assert max(read) == 8 * 8 * 3 * 10
    assert sum(read) == 2 * 8 * 8 * 3 * 50 * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deformable_attention_half_keeps_exact_columns(dtype):
    """In half precision each of 601 columns is read from its own place.

    Every column of a wide map differs from its neighbours, beyond bfloat16's 8 bits.
    """
    attention = DeformableAttention(8, num_levels=1, num_heads=2, num_points=1).to(dtype)
    for layer in (attention.value_proj, attention.output_proj):
        layer.weight.data = torch.eye(8, dtype=dtype)
    attention.sampling_offsets.weight.data.zero_()
    attention.sampling_offsets.bias.data.zero_()
    columns = 601
    tokens = (torch.arange(columns) % 2).to(dtype).view(1, columns, 1).expand(1, columns, 8)
    reference = ((torch.arange(columns) + 0.5) / columns).view(1, columns, 1, 1)
    reference = torch.cat([reference, torch.full_like(reference, 0.5)], dim=3)
    query, position = torch.zeros(1, columns, 8, dtype=dtype), torch.zeros(1, columns, 8)
    with torch.no_grad():
        read = attention(query, position, tokens, [(1, columns)], reference)
    assert read.dtype == dtype
    torch.testing.assert_close(read, tokens, rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_depthformer_half_weights_give_float32_depth(dtype):
    """Half precision weights give nearly the same depth, in float32."""
    torch.manual_seed(0)
    network = build_network(SMALL)
    nn.init.normal_(network.head.conv.weight)
    nn.init.constant_(network.head.conv.bias, 40)
    image = golden.image("half", (2, 3, 64, 96))
    expected = network.train()(image).depth
    for parameter in network.parameters():
        # As the engine does it: buffers stay float32.
        parameter.data = parameter.data.to(dtype)
    got = network(image).depth
    assert got.dtype == torch.float32
    scale = expected.detach().std()
    assert scale > 1
    rounding = {torch.float16: 0.03, torch.bfloat16: 0.25}[dtype]
    assert (got - expected).square().mean().sqrt() < rounding * scale
    got.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_deformable_attention_autocast_keeps_places():
    """Under autocast sampling places stay in float32."""
    torch.manual_seed(0)
    attention, sizes = DeformableAttention(16, num_levels=2).eval(), [(4, 6), (2, 3)]
    query, position, tokens = (
        torch.randn(1, 7, 16),
        100 * torch.randn(1, 7, 16),
        torch.randn(1, 30, 16),
    )
    reference = torch.rand(1, 7, 1, 2)
    with torch.no_grad():
        expected = attention(query, position, tokens, sizes, reference)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = attention(query, position, tokens, sizes, reference)
    # Places wrong by bfloat16's rounding of positions around 100 would read other cells.
    assert (got - expected).abs().max() < 0.02 * (expected - query).abs().max()


def test_deformable_attention_dropout_in_training_only():
    """Sampled values are dropped out in training, with the right share, and not in eval."""
    torch.manual_seed(0)
    attention, sizes = DeformableAttention(64, num_levels=2, dropout=0.25), [(4, 6), (2, 3)]
    query, position, tokens = torch.zeros(2, 50, 64), torch.randn(2, 50, 64), torch.randn(2, 30, 64)
    reference = torch.rand(2, 50, 1, 2)
    with torch.no_grad():
        whole = attention.eval()(query, position, tokens, sizes, reference)
        some = attention.train()(query, position, tokens, sizes, reference)
    kept = some != 0
    assert (whole != 0).all()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(some[kept], whole[kept] / 0.75)


def test_swin_drop_path_in_training_and_reproducible():
    """Drop path acts in training only, and repeats with a restored RNG state."""
    block = Swin(16, (1, 1, 1, 2), (1, 2, 4, 8), drop_path=0.4).stages[3][1]
    ones = torch.ones(4000, 1, 1, 1)
    state = torch.get_rng_state()
    dropped_once = block.train()._drop_path(ones)
    assert torch.equal(dropped_once.unique(), torch.tensor([0, 1 / 0.6]))
    assert dropped_once.mean().item() == pytest.approx(1, abs=0.05)
    torch.set_rng_state(state)
    assert torch.equal(block._drop_path(ones), dropped_once)
    assert torch.equal(block.eval()._drop_path(ones), ones)


def test_swin_drop_path_rises_linearly():
    """The drop path rate rises linearly over the blocks, from 0 to the recipe's."""
    encoder = Swin(16, (2, 2, 6, 2), (1, 2, 4, 8), drop_path=0.3)
    rates = [block.drop_path for stage in encoder.stages for block in stage]
    assert rates == pytest.approx([0.3 * i / 11 for i in range(12)])
    assert [block.attention.shift for stage in encoder.stages for block in stage] == [0, 3] * 6


def test_relu_head_initial_and_least_depth():
    """Depth starts a fifth of max_depth above min_depth, and never is below min_depth."""
    head, features = Relu(8, min_depth=0.5, max_depth=10.0), torch.randn(1, 8, 6, 9)
    depth = head(features, (6, 9)).depth
    assert depth.shape == (1, 1, 6, 9)
    assert depth.mean().item() == pytest.approx(2.5, abs=0.2)
    nn.init.constant_(head.conv.bias, -100)
    assert (head(features, (6, 9)).depth == 0.5).all()


@pytest.mark.parametrize("name", NAMES)
def test_depthformer_recipe_trains_as_published(name):
    """The recipe has the published schedule, dropout and weight decay groups."""
    recipe = load_recipe(MODEL_CONFIGS / f"teachers/{name}.yaml")
    assert recipe["network"]["encoder"]["drop_path"] == 0.3
    assert recipe["network"]["neck"]["dropout"] == 0.1
    assert recipe["train"]["iterations"] == 38400
    assert recipe["train"]["batch_size"] == 16
    assert recipe["evaluation"]["interval"] == 800
    assert recipe["evaluation"]["by"] == "iteration"
    with torch.device("meta"):
        parameters = dict(build_network(recipe["network"]).named_parameters())
    names = {id(parameter): key for key, parameter in parameters.items()}
    groups = parameter_groups(recipe["optimizer"]["groups"], parameters, recipe["optimizer"]["lr"])
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    without_decay = {names[id(parameter)]: parameter for parameter in groups[1]["params"]}
    if name == NAMES[0]:
        assert sorted(to_published(without_decay)) == sorted(cases()["without_decay"])
    norms = [m for m in build_network(SMALL).modules() if isinstance(m, nn.LayerNorm)]
    assert norms
    assert all(norm.eps == 1e-5 for norm in norms)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            {"encoder": {"depths": [2, 2, 6]}},
            "network.encoder.depths: got [2, 2, 6]; 4 whole numbers above 0",
        ),
        (
            {"encoder": {"heads": [1, 2, 4, 5]}},
            "network.encoder.heads: got [1, 2, 4, 5] for stages of [16, 32, 64, 128] channels",
        ),
        ({"encoder": {"window": 1}}, "network.encoder.window: got 1"),
        (
            {"encoder": {"drop_path": 1.0}},
            "network.encoder.drop_path: got 1.0; a probability below 1",
        ),
        (
            {"neck": {"width": 36}},
            "network.neck.width: got 36; a multiple of 4 and of num_heads (8)",
        ),
        ({"neck": {"num_points": 0}}, "network.neck.num_points: got 0"),
        ({"neck": {"dropout": -0.1}}, "network.neck.dropout: got -0.1"),
        (
            {"decoder": {"activation": "gelu"}},
            "network.decoder.activation: got 'gelu'; allowed: relu, leaky_relu",
        ),
    ],
)
def test_depthformer_rejects_invalid_arguments(part, words):
    """Invalid arguments of a part raise a RecipeError that names the key."""
    node = SMALL | {name: SMALL[name] | arguments for name, arguments in part.items()}
    with pytest.raises(RecipeError) as error:
        build_network(node)
    assert words in str(error.value)


def test_hahi_rejects_one_feature():
    """HAHI with one feature raises a RecipeError."""
    with pytest.raises(
        RecipeError, match=r"neck \(hahi\): the encoder has 1 tap; at least 2 are needed"
    ):
        Hahi([8])
