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
def test_equals_the_reference(target, beyond, stride):
    parameters, edges, depth = case(stride=stride)
    options = {"sigma": 0.8, "target": target, "beyond": beyond, "stride": stride}
    wanted = assert_equals_reference(parameters, edges, depth, **options)
    assert (wanted[1] > 0).any()
    assert (wanted[1] == 0).any()


@pytest.mark.parametrize(
    ("bins", "channels"), [(2, 3), (3, 16), (64, 8), (65, 33), (257, 20), (1024, 4)]
)
def test_any_number_of_bins_and_channels(bins, channels):
    parameters, edges, depth = case(bins, channels, size=(1, 3, 7))
    assert_equals_reference(parameters, edges, depth, sigma=float(edges.diff().max()))


@pytest.mark.parametrize("components", [2, 3, 4])
def test_mixtures_with_a_sigma_and_a_weight_of_their_own(components):
    parameters, edges, depth = case(components=components)
    g = torch.Generator().manual_seed(3)
    options = {
        "sigma": 0.9 + depth.nan_to_num() / 10,
        "target_weight": torch.rand(depth.shape, generator=g),
    }
    assert_equals_reference(parameters, edges, depth, **options)


def test_depths_of_any_layout():
    parameters, edges, depth = case(components=2)
    plain = results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8)
    got = results(
        triton_dpm.dpm, parameters, edges, depth.to(memory_format=torch.channels_last), sigma=0.8
    )
    assert_near(got, plain, 1e-6)


def test_the_published_bins_and_sigma():
    parameters, _, depth = case(257, 8, size=(1, 4, 9))
    edges, depth = bin_edges(257, 1e-3, 80.0), depth * 6
    assert_equals_reference(parameters, edges, depth, sigma=0.5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)])
def test_half_precision_is_off_by_its_own_rounding(dtype, tolerance):
    if dtype == torch.bfloat16 and not on_gpu:
        pytest.skip("Triton's interpreter has no bfloat16")
    parameters, edges, depth = case(70, 24, size=(2, 9, 13))
    assert_equals_reference(parameters, edges, depth, tolerance, dtype=dtype, sigma=0.8)


@pytest.mark.parametrize(("bins", "sigma"), [(64, 0.5), (70, 0.11), (257, 0.2)])
def test_bins_of_one_width_in_half_precision(bins, sigma):
    (features, weight, bias), _, depth = case(bins, 8, size=(1, 7, 10))
    edges = bin_edges(bins, 1e-3, 12.0)
    depth[..., :2] = (
        2e-3  # beside the first edge, near where bins that don't exist have their middle
    )
    assert_equals_reference(
        (features, weight, bias), edges, depth, 2e-3, dtype=torch.float16, sigma=sigma
    )


def test_strip_by_strip(monkeypatch):
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


def test_gradients_that_nobody_asks_for_change_no_other():
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


def test_without_a_target_and_one_output_alone():
    parameters, edges, depth = case()
    for target, needs in ((None, (True, True)), (depth, (True, False)), (depth, (False, True))):
        assert_equals_reference(parameters, edges, target, needs=needs, sigma=0.8)


def test_both_layouts_of_pixels_and_slices_of_them():
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


def test_the_same_numbers_every_time():
    parameters, edges, depth = case(70, 24, size=(3, 20, 31))
    first, second = (results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_images_have_no_gradients():
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


def test_the_published_target_of_narrow_bins_beside_pixels_that_do_not_exist():
    parameters, _, depth = case(128, 4, size=(1, 3, 5))
    assert_equals_reference(
        parameters, bin_edges(128, 1e-3, 0.2), depth / 80, sigma=0.008, target="released"
    )


def test_torch_knows_what_the_operators_return():
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


def test_the_kernels_are_for_gpus_and_for_what_they_support():
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


def test_refuses_what_the_reference_refuses():
    parameters, edges, depth = case()
    with pytest.raises(RecipeError, match="^beyond: 'drop'"):
        results(triton_dpm.dpm, parameters, edges, depth, sigma=0.8, beyond="drop")
