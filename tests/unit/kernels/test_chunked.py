"""The tiled DPM head against its plain definition.

Numbers and gradients are the same for every kind of target.
"""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tiekd import kernels
from tiekd.errors import RecipeError
from tiekd.kernels import chunked, in_threads, reference
from tiekd.kernels.target import bin_edges


@pytest.fixture(autouse=True)
def one_row_per_tile(monkeypatch):
    monkeypatch.setitem(chunked.TILE_BYTES, "cpu", 1)
    monkeypatch.setattr(chunked, "TILES_PER_BLOCK", 2)


def case(stride: int = 1, dtype: torch.dtype = torch.float64) -> tuple:
    """Returns features, weight, bias, uneven edges, and a target.

    The target has holes, an empty image, far depths and an odd size.
    """
    g = torch.Generator().manual_seed(stride)
    edges = torch.cat((torch.tensor([0.5]), 0.5 + torch.linspace(0.6, 1.4, 12).cumsum(0))).double()
    height, width = 7, 10
    features = torch.randn(
        3,
        5,
        math.ceil(height / stride),
        math.ceil(width / stride),
        generator=g,
        dtype=torch.float64,
    )
    weight, bias = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((12, 5, 1, 1), (12,))
    )
    target = torch.rand(3, 1, height, width, generator=g) * 16 + 0.01
    target[torch.rand(target.shape, generator=g) < 0.4] = 0
    target[1] = 0
    target[2, 0, -1, -1] = math.nan
    parameters = [t.to(dtype).requires_grad_() for t in (features, weight, bias)]
    return parameters, edges if dtype == torch.float64 else edges.float(), target


def values_and_gradients(dpm, parameters, *arguments, **options) -> tuple[torch.Tensor, ...]:
    depth, divergence = dpm(*parameters, *arguments, **options)
    g = torch.Generator().manual_seed(9)
    loss = 0.0
    for output in (depth, divergence):
        if output is not None:
            loss = (
                loss
                + (
                    output
                    * torch.randn(output.shape, generator=g, dtype=torch.float64).to(output.dtype)
                ).sum()
            )
    values = [output.detach() for output in (depth, divergence) if output is not None]
    return (*values, *torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize(
    ("target", "beyond", "stride"),
    list(itertools.product(["gaussian", "released"], ["clamp", "ignore"], [1, 2, 3])),
)
def test_chunked_equals_reference(target, beyond, stride):
    """Depth, divergence and gradients equal the reference for each target and stride."""
    parameters, edges, depth = case(stride)
    results = [
        values_and_gradients(dpm, parameters, edges, depth, 0.8, target, beyond, stride)
        for dpm in (chunked.dpm, reference.dpm)
    ]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    assert len(results[0]) == 5
    assert (results[0][1] > 0).any()


@pytest.mark.parametrize("seed", range(12))
def test_chunked_equals_reference_for_random_cases(seed):
    """Random bins, mixtures, weights and holes give the reference's results.

    2 to 1024 bins of any widths, and a target, at random. Targets have up to 4 components with
    weights or without, holes, and depths beyond both ends.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    bins, components, stride = [2, 3, 31, 49, 257, 1024][seed % 6], draw(1, 4), draw(1, 3)
    size = draw(1, 9), draw(1, 40)
    edges = (0.5 + torch.rand(bins + 1, generator=g, dtype=torch.float64)).cumsum(0)
    edges *= 80 / edges[-1]  # in float32 the numbers' own rounding grows with the range
    channels, cells = draw(1, 40), [-(-side // stride) for side in size]
    shapes = ((2, channels, *cells), (bins, channels, 1, 1), (bins,))
    parameters = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]
    depth = torch.rand(2, components, *size, generator=g) * float(edges[-1]) * 1.2
    depth[torch.rand(depth.shape, generator=g) < 0.3] = 0
    weight = torch.rand(depth.shape, generator=g) if seed % 2 else None
    sigma = max(0.5, 0.51 * float(edges.diff().max()))
    sigma = sigma + torch.rand(depth.shape, generator=g) if seed % 3 == 0 else sigma
    parameters, edges = [p.detach().float() for p in parameters], edges.float()
    options = depth, sigma, "gaussian", ("clamp", "ignore")[seed % 2], stride, weight

    def compute(dpm, dtype):
        return values_and_gradients(
            dpm, [p.to(dtype).requires_grad_() for p in parameters], edges.to(dtype), *options
        )

    wanted, rounded = (compute(reference.dpm, dtype) for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(compute(chunked.dpm, torch.float64), wanted, rtol=1e-10, atol=1e-10)
    for got, exact, plain in zip(compute(chunked.dpm, torch.float32), wanted, rounded, strict=True):
        # Sums of few terms of both signs lose digits in any order: then it is as near as the
        # definition in float32.
        tolerance = max(
            1e-5 * max(1.0, float(exact.abs().max())), 2 * float((plain - exact).abs().max())
        )
        assert float((got - exact).abs().max()) <= tolerance


def test_chunked_features_of_any_memory_layout():
    """Transposed and channels_last features give the reference's results."""
    (features, weight, bias), edges, depth = case()
    wanted = values_and_gradients(reference.dpm, (features, weight, bias), edges, depth, 0.8)
    turned = features.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    last = features.detach().to(memory_format=torch.channels_last).requires_grad_()
    for other in (turned, last):
        got = values_and_gradients(chunked.dpm, (other, weight, bias), edges, depth, 0.8)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunked_any_number_of_threads(monkeypatch, threads):
    """With 1, 2 or 3 threads the results equal the reference."""
    monkeypatch.setattr(in_threads, "num_threads", lambda: threads)
    parameters, edges, depth = case()
    got, wanted = (
        values_and_gradients(dpm, parameters, edges, depth, 0.8)
        for dpm in (chunked.dpm, reference.dpm)
    )
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        torch.testing.assert_close(
            chunked.dpm(*parameters, edges, depth, 0.8)[0].clone(), wanted[0]
        )


@pytest.mark.parametrize("stride", [1, 2])
def test_chunked_mixture_with_sigma_and_weight_maps(stride):
    """A mixture with a sigma and a weight per pixel gives the reference's results."""
    parameters, edges, depth = case(stride)
    depth = torch.cat((depth, (depth + 1) * (depth > 3)), 1)
    sigma, weight = (
        0.7 + depth.nan_to_num() / 10,
        torch.rand(depth.shape, generator=torch.Generator().manual_seed(3)),
    )
    results = [
        values_and_gradients(
            dpm, parameters, edges, depth, sigma, stride=stride, target_weight=weight
        )
        for dpm in (chunked.dpm, reference.dpm)
    ]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_chunked_equals_reference_at_257_bins_float32():
    """With 257 bins in float32 the results equal the reference."""
    g = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(s, generator=g).requires_grad_()
        for s in ((1, 8, 6, 20), (257, 8, 1, 1), (257,))
    ]
    depth = torch.linspace(0.01, 90, 120).view(1, 1, 6, 20)
    results = [
        values_and_gradients(dpm, parameters, bin_edges(257, 1e-3, 80.0), depth, 0.5)
        for dpm in (chunked.dpm, reference.dpm)
    ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_chunked_half_precision_is_near_reference(dtype):
    """In half precision outputs are float32 and gradients are near the reference's."""
    parameters, edges, depth = case(dtype=dtype)
    results = [
        values_and_gradients(dpm, parameters, edges, depth, 0.8)
        for dpm in (chunked.dpm, reference.dpm)
    ]
    assert [t.dtype for t in results[0]] == [torch.float32] * 2 + [dtype] * 3
    torch.testing.assert_close(*results, rtol=0.05, atol=0.1)


def test_chunked_equals_reference_under_autocast():
    """Under autocast results are float32 and near the reference's."""
    parameters, edges, depth = case(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [
            values_and_gradients(dpm, parameters, edges, depth, 0.8)
            for dpm in (chunked.dpm, reference.dpm)
        ]
    assert all(t.dtype == torch.float32 for t in results[0])
    torch.testing.assert_close(*results, rtol=0.05, atol=0.1)


def test_chunked_gradients_of_one_output_or_parameter():
    """Gradients of one output, or for one parameter alone, equal the reference's."""
    parameters, edges, depth = case()
    for index in (0, 1):
        got, wanted = (
            torch.autograd.grad(dpm(*parameters, edges, depth, 0.8)[index].sum(), parameters)
            for dpm in (chunked.dpm, reference.dpm)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    features, weight, bias = (p.detach() for p in parameters)
    weight.requires_grad_()
    (alone,) = torch.autograd.grad(
        chunked.dpm(features, weight, bias, edges, depth, 0.8)[1].sum(), weight
    )
    torch.testing.assert_close(alone, wanted[1], rtol=1e-10, atol=1e-10)


def test_chunked_without_target_gives_depth_only():
    """Without a target the divergence is None and depth equals the reference's."""
    parameters, edges, _ = case()
    results = [values_and_gradients(dpm, parameters, edges) for dpm in (chunked.dpm, reference.dpm)]
    assert len(results[0]) == 4
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        depth, divergence = chunked.dpm(*parameters, edges)
    assert divergence is None
    torch.testing.assert_close(depth.clone(), results[0][0])


def test_chunked_trains_after_inference_mode():
    """Training works after a first call in inference mode, with the same divergence."""
    parameters, edges, depth = case()
    with torch.inference_mode():
        evaluated = chunked.dpm(*parameters, edges, depth, 0.8)[1].clone()
    values = values_and_gradients(chunked.dpm, parameters, edges, depth, 0.8)
    torch.testing.assert_close(values[1], evaluated)


def test_chunked_weights_freed_before_backward():
    """Gradients are right where ZeRO-3 frees the weights between forward and backward.

    ZeRO-3 takes the weights' storage away after forward. Before backward it brings them back in
    another one.
    """
    (features, weight, bias), edges, depth = case()
    divergence = chunked.dpm(features, weight, bias, edges, depth, 0.8)[1]
    parameters, whole = (weight, bias), (weight.data.clone(), bias.data.clone())
    for parameter in parameters:
        parameter.data.fill_(math.nan)
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    for parameter, values in zip(parameters, whole, strict=True):
        parameter.data = values
    gradients = torch.autograd.grad(divergence.sum(), (features, weight, bias))
    again = chunked.dpm(features, weight, bias, edges, depth, 0.8)[1]
    expected = torch.autograd.grad(again.sum(), (features, weight, bias))
    torch.testing.assert_close(gradients, expected)


def test_chunked_never_makes_full_size_tensor(monkeypatch):
    """No tensor is larger than the features, so none holds an image by all bins."""
    monkeypatch.setattr(in_threads, "num_threads", lambda: 1)  # the watch sees its own thread only
    (features, weight, bias), edges, depth = case()
    parameters = [t.detach().requires_grad_() for t in (features[:, :2], weight[:, :2], bias)]
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    reference.cell_target(
        depth[:, :, :1], 0.8, None, edges
    )  # The table of the target is made once, before.
    with Watch():
        values_and_gradients(chunked.dpm, parameters, edges, depth, 0.8)
    assert 0 < largest <= parameters[0].numel() < depth[0].numel() * 12


def test_implementation_on_cpu_is_chunked():
    """On a CPU the head uses the chunked kernel, which rejects unknown options."""
    parameters, edges, depth = case()
    assert kernels.implementation(parameters[0], depth, edges) is chunked.dpm
    with pytest.raises(RecipeError, match="^beyond: 'drop'"):
        chunked.dpm(*parameters, edges, depth, 0.8, beyond="drop")
