"""The fused DPM head against its plain definition.

In Triton's interpreter, and compiled where there is a GPU.
"""

import itertools

import pytest
import torch

on_gpu = torch.cuda.is_available()
pytest.importorskip("triton")

from tiekd import kernels  # noqa: E402
from tiekd.errors import RecipeError  # noqa: E402
from tiekd.kernels import chunked, reference, triton_dpm  # noqa: E402
from tiekd.kernels.target import bin_edges  # noqa: E402

DEVICE = "cuda" if on_gpu else "cpu"
NAMES = ("depth", "divergence", "features' gradient", "weight's gradient", "bias's gradient")


def case(
    bins: int = 12,
    channels: int = 5,
    components: int = 1,
    stride: int = 1,
    uneven: bool = True,
    size=(2, 7, 10),
) -> tuple:
    """Returns float64 features, weight and bias, the edges and a target.

    The target has holes, depths beyond both ends and an odd size.
    """
    g = torch.Generator().manual_seed(bins + 7 * components + stride)
    images, height, width = size
    steps = 0.6 + 0.8 * torch.rand(bins, generator=g) if uneven else torch.ones(bins)
    edges = torch.cat((torch.zeros(1), steps.cumsum(0))) * (12.0 / bins) + 0.3
    cells = -(-height // stride), -(-width // stride)
    features = torch.randn(images, channels, *cells, generator=g, dtype=torch.float64)
    weight, bias = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((bins, channels, 1, 1), (bins,))
    )
    target = torch.rand(images, components, height, width, generator=g) * 15 + 0.01
    target[torch.rand(target.shape, generator=g) < 0.3] = 0
    target[-1, :, : height // 2] = 0
    target[-1, 0, -1, -1] = torch.nan
    return (features, weight, bias), edges, target


def results(
    dpm, parameters, edges, depth, dtype=torch.float32, needs=(True, True), **options
) -> list:
    """Returns depth, divergence and the gradients of a sum of both with random factors.

    Computed in float64 on the CPU.
    """
    where = "cpu" if dpm is reference.dpm else DEVICE
    # The reference is given what the others round their inputs to, but computes in float64.
    leaves = [
        t.to(dtype).to(torch.float64 if dpm is reference.dpm else dtype).to(where)
        for t in parameters
    ]
    leaves = [t.detach().requires_grad_() for t in leaves]
    edges = edges.to(torch.float64 if dpm is reference.dpm else torch.float32).to(where)
    options = {k: v.to(where) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    outputs = dpm(*leaves, edges, None if depth is None else depth.to(where), **options)
    g = torch.Generator().manual_seed(9)
    loss = 0.0
    for output, needed in zip(outputs, needs, strict=True):
        factors = None if output is None else torch.randn(output.shape, generator=g)
        if output is not None and needed:
            loss = loss + (output * factors.to(output)).sum()
    values = [o.detach() for o in outputs if o is not None]
    return [t.double().cpu() for t in (*values, *torch.autograd.grad(loss, leaves))]


def assert_equals_reference(parameters, edges, depth, tolerance=1e-5, **options) -> list:
    got, wanted = (
        results(dpm, parameters, edges, depth, **options) for dpm in (triton_dpm.dpm, reference.dpm)
    )
    assert_near(got, wanted, tolerance)
    return wanted


def assert_near(got: list, wanted: list, tolerance: float) -> None:
    """Within `tolerance` of the largest value of each result."""
    for name, a, b in zip(
        NAMES if len(got) == 5 else (NAMES[0], *NAMES[2:]), got, wanted, strict=True
    ):
        error = float((a - b).abs().max() / b.abs().max())
        assert error <= tolerance, f"{name} is off by {error:.2e} of its largest value"


@pytest.mark.parametrize(
    ("target", "beyond", "stride"),
    list(itertools.product(["gaussian", "released"], ["clamp", "ignore"], [1, 2])),
)
def test_triton_equals_reference(target, beyond, stride):
    """Depth, divergence and gradients equal the reference for each target and stride."""
    parameters, edges, depth = case(stride=stride)
    options = {"sigma": 0.8, "target": target, "beyond": beyond, "stride": stride}
    wanted = assert_equals_reference(parameters, edges, depth, **options)
    assert (wanted[1] > 0).any()
    assert (wanted[1] == 0).any()


@pytest.mark.parametrize(
    ("bins", "channels"), [(2, 3), (3, 16), (64, 8), (65, 33), (257, 20), (1024, 4)]
)
def test_triton_any_number_of_bins_and_channels(bins, channels):
    """From 2 to 1024 bins and 3 to 33 channels the results equal the reference."""
    parameters, edges, depth = case(bins, channels, size=(1, 3, 7))
    assert_equals_reference(parameters, edges, depth, sigma=float(edges.diff().max()))


@pytest.mark.parametrize("components", [2, 3, 4])
def test_triton_mixture_with_sigma_and_weight_maps(components):
    """A mixture with a sigma and a weight per pixel gives the reference's results."""
    parameters, edges, depth = case(components=components)
    g = torch.Generator().manual_seed(3)
    options = {
        "sigma": 0.9 + depth.nan_to_num() / 10,
        "target_weight": torch.rand(depth.shape, generator=g),
    }
    assert_equals_reference(parameters, edges, depth, **options)


def test_triton_target_depth_of_any_memory_layout():
    """A target in channels_last gives the results of a contiguous one."""
    parameters, edges, depth = case(components=2)
    plain = results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8)
    got = results(
        triton_dpm.dpm, parameters, edges, depth.to(memory_format=torch.channels_last), sigma=0.8
    )
    assert_near(got, plain, 1e-6)


def test_triton_published_bins_and_sigma():
    """With the published 257 bins and sigma the results equal the reference."""
    parameters, _, depth = case(257, 8, size=(1, 4, 9))
    edges, depth = bin_edges(257, 1e-3, 80.0), depth * 6
    assert_equals_reference(parameters, edges, depth, sigma=0.5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)])
def test_triton_half_precision_within_rounding(dtype, tolerance):
    """In half precision the results differ from the reference by rounding only."""
    if dtype == torch.bfloat16 and not on_gpu:
        pytest.skip("Triton's interpreter has no bfloat16")
    parameters, edges, depth = case(70, 24, size=(2, 9, 13))
    assert_equals_reference(parameters, edges, depth, tolerance, dtype=dtype, sigma=0.8)


@pytest.mark.parametrize(("bins", "sigma"), [(64, 0.5), (70, 0.11), (257, 0.2)])
def test_triton_uniform_bins_in_half_precision(bins, sigma):
    """Uniform bins in float16 give the reference's results, also beside the first edge."""
    (features, weight, bias), _, depth = case(bins, 8, size=(1, 7, 10))
    edges = bin_edges(bins, 1e-3, 12.0)
    depth[..., :2] = (
        2e-3  # beside the first edge, near where bins that don't exist have their middle
    )
    assert_equals_reference(
        (features, weight, bias), edges, depth, 2e-3, dtype=torch.float16, sigma=sigma
    )


def test_triton_strips_equal_whole(monkeypatch):
    """Gradients computed in strips equal those computed at once."""
    parameters, edges, depth = case(70, 24, size=(3, 20, 31))
    whole = results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8)
    assert_near(whole, results(reference.dpm, parameters, edges, depth, sigma=0.8), 1e-5)
    rows = []
    launch = triton_dpm.features_gradient.run
    monkeypatch.setattr(
        triton_dpm, "STRIP_BYTES", 7 * 64 * 80 * 4
    )  # seven tiles of thirty, in float32
    monkeypatch.setattr(
        triton_dpm.features_gradient,
        "run",
        lambda *a, **k: (rows.append(k["grid"][0]), launch(*a, **k)),
    )
    assert_near(results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8), whole, 1e-6)
    assert rows == [6] * 5


def test_triton_partial_gradients_equal_full_ones():
    """Gradients for some inputs alone equal, bit for bit, those for all of them."""
    parameters, edges, depth = case(70, 24)
    *_, whole_features, whole_weight, whole_bias = results(
        triton_dpm.dpm, parameters, edges, depth, sigma=0.8
    )
    for wanted, whole in (((0,), [whole_features]), ((1, 2), [whole_weight, whole_bias])):
        leaves = [
            t.float().to(DEVICE).requires_grad_(i in wanted) for i, t in enumerate(parameters)
        ]
        outputs = triton_dpm.dpm(*leaves, edges.to(DEVICE), depth.to(DEVICE), 0.8)
        g = torch.Generator().manual_seed(9)
        loss = sum(
            (output * torch.randn(output.shape, generator=g).to(output)).sum() for output in outputs
        )
        got = torch.autograd.grad(loss, [leaves[i] for i in wanted])
        assert all(torch.equal(a.double().cpu(), b) for a, b in zip(got, whole, strict=True))


def test_triton_without_target_or_with_one_output():
    """Without a target, or from one output alone, gradients equal the reference's."""
    parameters, edges, depth = case()
    for target, needs in ((None, (True, True)), (depth, (True, False)), (depth, (False, True))):
        assert_equals_reference(parameters, edges, target, needs=needs, sigma=0.8)


def test_triton_features_of_any_memory_layout():
    """Features in channels_last or sliced from others give the same results."""
    (features, weight, bias), edges, depth = case(channels=16)
    plain = results(triton_dpm.dpm, (features, weight, bias), edges, depth, sigma=0.8)
    last = features.to(memory_format=torch.channels_last)
    wide = torch.cat((features, features), 3)[
        ..., : features.shape[3]
    ]  # rows don't follow one another
    among_others = torch.cat((features, features), 1)[
        :, : features.shape[1]
    ]  # elements of others lie between
    for other in (last, wide, among_others):
        got = results(triton_dpm.dpm, (other, weight, bias), edges, depth, sigma=0.8)
        assert_near(got, plain, 1e-6)


def test_triton_results_are_deterministic():
    """Two runs give the same results bit for bit."""
    parameters, edges, depth = case(70, 24, size=(3, 20, 31))
    first, second = (results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_triton_empty_batch_has_zero_gradients():
    """An empty batch gives empty outputs and zero gradients."""
    (features, weight, bias), edges, depth = case()
    for needs in ((True, True, True), (False, True, True), (True, False, False)):
        leaves = [
            t.float().to(DEVICE).requires_grad_(n)
            for t, n in zip((features[:0], weight, bias), needs, strict=True)
        ]
        outputs = triton_dpm.dpm(*leaves, edges.to(DEVICE), depth[:0].to(DEVICE), 0.8)
        assert all(output.shape == (0, 1, *features.shape[2:]) for output in outputs)
        sum(output.sum() for output in outputs).backward()
        assert all(
            leaf.grad.shape == leaf.shape and not leaf.grad.any()
            for leaf in leaves
            if leaf.requires_grad
        )


def test_triton_released_target_of_narrow_bins():
    """With narrow bins and a partly filled tile the released target equals the reference."""
    parameters, _, depth = case(128, 4, size=(1, 3, 5))
    assert_equals_reference(
        parameters, bin_edges(128, 1e-3, 0.2), depth / 80, sigma=0.008, target="released"
    )


def test_triton_operators_pass_opcheck():
    """The operators' schemas and fake tensors pass torch.library.opcheck."""
    parameters, edges, depth = case()
    leaves = [t.float().to(DEVICE).requires_grad_() for t in parameters]
    arguments = (
        *leaves,
        edges.to(DEVICE),
        depth.to(DEVICE),
        0.8,
        None,
        None,
        "gaussian",
        "clamp",
        1,
    )
    torch.library.opcheck(
        triton_dpm.dpm_forward, arguments, test_utils=("test_schema", "test_faketensor")
    )
    _, divergence, *saved = (t.detach() for t in triton_dpm.dpm_forward(*arguments))
    for needs in ((True, True), (False, True), (True, False)):
        gradients = torch.ones_like(divergence), torch.ones_like(divergence)
        given = (
            *gradients,
            *leaves,
            edges.to(DEVICE),
            [torch.ones_like(divergence), *saved],
            0.8,
            "gaussian",
            *needs,
        )
        torch.library.opcheck(
            triton_dpm.dpm_backward, given, test_utils=("test_schema", "test_faketensor")
        )


def test_implementation_chooses_triton_on_gpu_only():
    """Triton is chosen on a GPU for supported inputs, and the chunked kernel otherwise."""
    features, edges = torch.zeros(1, 8, 2, 2), bin_edges(49, 1e-3, 10.0)
    assert kernels.implementation(features, None, edges) is chunked.dpm
    if on_gpu:
        there, edges = features.cuda(), edges.cuda()
        assert kernels.implementation(there, None, edges) is triton_dpm.dpm
        for other in (there.double(), torch.zeros(1, 200, 2, 2, device="cuda")):
            assert kernels.implementation(other, None, edges) is chunked.dpm
        assert (
            kernels.implementation(there, torch.zeros(1, 5, 2, 2, device="cuda"), edges)
            is chunked.dpm
        )


def test_triton_rejects_unknown_options():
    """An unknown `beyond` raises the reference's RecipeError."""
    parameters, edges, depth = case()
    with pytest.raises(RecipeError, match="^beyond: 'drop'"):
        results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8, beyond="drop")
