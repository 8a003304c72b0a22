"""The working resolution: sizes and exact grey levels.

Depth is never made up, and padding counts for nothing.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from tiekd.data import resize as resizes
from tiekd.data.augment.augment import Augment
from tiekd.data.loading.reader import BatchReader
from tiekd.data.loading.sampler import size_groups
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.sample import Sample
from tiekd.errors import DataError, RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d, statistics_of

PLAIN = Augment(rotate_p=0.0, flip_p=0.0, colour_p=0.0)


def sample_of(height=40, width=60, depth=None, teacher=None, seed=0):
    pixels = torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    depth = torch.full((1, height, width), 5.0) if depth is None else depth
    inside = torch.ones(1, height, width, dtype=torch.bool)
    camera = torch.tensor([[50.0, 0, 30], [0, 60.0, 10], [0, 0, 1]])
    return Sample(pixels, depth, inside, teacher, camera, "one")


class One(torch.utils.data.Dataset):
    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.mark.parametrize(
    ("node", "photo", "scaled", "canvas", "corner"),
    [
        ({"height": 20, "width": 30, "mode": "stretch"}, (40, 90), (20, 30), (20, 30), (0, 0)),
        ({"height": 20, "width": 30, "mode": "cover"}, (40, 90), (20, 45), (20, 45), (0, 0)),
        ({"height": 20, "width": 30, "mode": "cover"}, (27, 13), (62, 30), (62, 30), (0, 0)),
        ({"height": 20, "width": 30, "mode": "contain"}, (40, 90), (13, 30), (20, 30), (3, 0)),
        ({"height": 20, "width": 30, "mode": "contain"}, (90, 40), (20, 9), (20, 30), (0, 10)),
        ({"height": 20, "width": 30, "mode": "fit"}, (40, 90), (13, 30), (13, 30), (0, 0)),
        ({"height": 20, "width": 30, "mode": "contain"}, (1, 4000), (1, 30), (20, 30), (9, 0)),
        ({"short_side": 20}, (40, 90), (20, 45), (20, 45), (0, 0)),
        ({"short_side": 20}, (90, 40), (45, 20), (45, 20), (0, 0)),
        ({"scale": 0.5}, (41, 90), (20, 45), (20, 45), (0, 0)),
        ({"scale": 0.001}, (41, 90), (1, 1), (1, 1), (0, 0)),
        ({"at_most": [40, 90]}, (48, 110), (48, 110), (48, 110), (0, 0)),
        ({"at_most": [40, 90]}, (80, 180), (40, 90), (40, 90), (0, 0)),
        (None, (41, 90), (41, 90), (41, 90), (0, 0)),
    ],
)
def test_place_gives_scaled_size_canvas_corner(node, photo, scaled, canvas, corner):
    """`placement_of` returns the scaled size, the canvas and the corner for each form of resize."""
    assert resizes.of_node(node).placement_of(*photo) == (scaled, canvas, *corner)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"height": 20}, "mode"),
        ({"height": 20, "width": 30}, "stretch"),
        ({"height": 20, "width": 30, "mode": "crop"}, "contain"),
        ({"height": 0, "width": 30, "mode": "stretch"}, "resize.height: got 0"),
        ({"height": 20, "width": 30, "mode": "stretch", "scale": 0.5}, "one of"),
        ({"short_side": -3}, "short_side: got -3"),
        ({"scale": 0}, "scale: got 0"),
        ({"scale": float("nan")}, "scale: got nan"),
        ({"short_side": 2.5}, "whole number"),
        ({"hight": 20, "width": 30}, "height"),
        ([20, 30], "stretch"),
        ("20x30", "stretch"),
    ],
)
def test_of_node_refuses_wrong_form(node, told):
    """A wrong `data.resize` raises a `RecipeError` of one line."""
    with pytest.raises(RecipeError, match=told) as error:
        resizes.of_node(node)
    assert "data.resize" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("node", [{}, {"scale": None, "mode": None}])
def test_of_data_refuses_resize_without_size(node):
    """A `data.resize` without a size is refused: it would turn the working resolution off."""
    data = {"name": "scenes", "height": 96, "width": 320, "resize": node}
    with pytest.raises(RecipeError, match="data.resize: got no size; .* or null for no resizing"):
        resizes.of_data(data)
    with pytest.raises(RecipeError, match="data.resize: got no size"):
        resizes.resize_of({"resize": {"scale": 0.5}}, {"data": data}, ["data.resize={}"])
    assert resizes.of_data(data | {"resize": None}) == Resize(at_most=(96, 320))


def test_of_data_derives_resize():
    """`of_data` derives the resize from `resize`, the augmentation or the dataset."""
    cover = Resize(height=20, width=30, mode="cover")
    assert resizes.of_data({"augment": {"sizes": "keep_aspect", "crop": [20, 30]}}) == cover
    given = {"resize": {"scale": 0.5}, "augment": {"sizes": "keep_aspect", "crop": [20, 30]}}
    assert resizes.of_data(given) == Resize(scale=0.5)
    assert resizes.of_data({"name": "kitti", "kb_crop": [352, 1216]}) == Resize(at_most=(352, 1216))
    assert resizes.of_data({"name": "nyu"}) == Resize(at_most=(480, 640))
    assert resizes.of_data({"name": "folder", "augment": {"crop": [20, 30]}}) == OWN_SIZE
    with pytest.raises(
        RecipeError, match="keep_aspect scales images to cover data.augment.crop; give a crop"
    ):
        resizes.of_data({"augment": {"sizes": "keep_aspect"}})
    with pytest.raises(RecipeError, match="at_most"):
        resizes.of_data({"resize": {"at_most": [20, 30]}})


def test_resize_of_weights_file_precedes_recipe():
    """The resize in a weights file precedes the recipe's, but not an override."""
    recipe, saved = {"data": {"resize": {"scale": 0.5}}}, {"resize": {"short_side": 20}}
    assert resizes.resize_of(saved, recipe) == Resize(short_side=20)
    assert resizes.resize_of(saved, None) == Resize(short_side=20)
    assert resizes.resize_of(saved, recipe, ["data.resize.scale=0.5"]) == Resize(scale=0.5)
    assert resizes.resize_of({"resize": {}}, recipe) == OWN_SIZE
    assert resizes.resize_of({}, recipe) == Resize(scale=0.5)
    assert resizes.resize_of({}, None) == OWN_SIZE
    assert all(
        resizes.of_node(each.node()) == each
        for each in (Resize(scale=0.5), Resize(at_most=(4, 6)), OWN_SIZE)
    )


SIZES = [
    ((40, 61), (20, 30)),
    ((7, 5), (13, 9)),
    ((1, 1), (4, 3)),
    ((37, 90), (12, 31)),
    ((375, 124), (192, 64)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resized_picture_equals_matrix_products(old, new):
    """The grey levels are exact: products and any order of summation give the same."""
    pixels = sample_of(*old).image
    resized = resizes.resized_image(pixels, new)
    rows, columns = (resizes.dense_weights(a, b) for a, b in zip(old, new, strict=True))
    assert torch.equal(
        resized.float(), resizes.resized_by_products(pixels[None].float(), rows, columns)[0]
    )
    reordered = torch.matmul(rows.flip(1), pixels.flip(1).float()) - torch.matmul(
        rows, pixels.float()
    )
    assert not reordered.any()  # so exact that no order of the sum changes anything
    assert torch.equal(resizes.resized_image(pixels[None], new)[0], resized)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resized_picture_follows_torch_antialias(old, new):
    """Resized images follow torch's antialiased bilinear filter within 0.75 grey levels."""
    pixels = sample_of(*old).image
    theirs = interpolate(pixels[None].float(), size=new, mode="bilinear", antialias=True)[0]
    assert (resizes.resized_image(pixels, new).float() - theirs).abs().max() <= 0.75


def test_dense_weights_sum_to_one():
    """The weights of each output pixel sum to 1, and a flat image stays flat."""
    for old, new in ((9, 4), (4, 9), (4000, 3), (1216, 640)):
        assert torch.equal(
            resizes.dense_weights(old, new).double().sum(1), torch.ones(new).double()
        )
    flat = torch.full((3, 37, 41), 201, dtype=torch.uint8)
    assert (resizes.resized_image(flat, (11, 90)) == 201).all()


def slant(height, width, near=2.0, far=40.0):
    """A plane that recedes towards the top: its inverse depth is linear in rows and columns."""
    rows, columns = torch.meshgrid(
        torch.arange(height) / height, torch.arange(width) / width, indexing="ij"
    )
    return 1 / (1 / far + (1 / near - 1 / far) * (0.8 * rows + 0.2 * columns))[None]


@pytest.mark.parametrize("take_down", [resizes.resized_depth, resizes.resized_teacher_map])
@pytest.mark.parametrize("new", [(100, 320), (67, 111), (192, 640), (41, 33)])
def test_resized_depth_keeps_slanted_plane(take_down, new):
    """A slanted plane keeps its depth when it is resized."""
    found = take_down(slant(375, 1242), new)
    rows = (torch.arange(new[0]) + 0.5) * 375 / new[0] - 0.5
    columns = (torch.arange(new[1]) + 0.5) * 1242 / new[1] - 0.5
    there = 1 / (1 / 40 + (1 / 2 - 1 / 40) * (0.8 * rows[:, None] / 375 + 0.2 * columns / 1242))
    error = found[0] / there - 1
    assert error.mean().abs() < 1e-3
    assert error.abs().max() < 0.07


@pytest.mark.parametrize("take_down", [resizes.resized_depth, resizes.resized_teacher_map])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16])
@pytest.mark.parametrize("new", [(20, 30), (17, 23), (60, 90), (80, 120), (1, 1)])
def test_resized_depth_adds_no_third_depth(take_down, dtype, new):
    """Across a depth step no third depth appears."""
    step = torch.full((1, 40, 60), 500.0)
    step[:, :, 27:] = 900
    step[:, 13:19, :] = 0
    found = take_down(step.to(dtype), new)
    assert found.shape == (1, *new)
    assert found.dtype == dtype
    assert set(found.float().unique().tolist()) <= {0.0, 500.0, 900.0}


@pytest.mark.parametrize("new", [(20, 30), (17, 23), (13, 60), (40, 21)])
def test_resized_depth_takes_nearest_sparse_point(new):
    """Each cell with sparse points takes the one nearest to its centre."""
    rng = np.random.default_rng(0)
    depth = np.where(rng.random((40, 60)) < 0.05, rng.uniform(1, 80, (40, 60)), 0).astype(
        np.float32
    )
    found = resizes.resized_depth(torch.from_numpy(depth)[None], new)[0].numpy()
    cells: dict[tuple[int, int], list] = {}
    for row, column in np.argwhere(depth > 0):
        cell = (2 * row + 1) * new[0] // 80, (2 * column + 1) * new[1] // 120
        centre = (cell[0] + 0.5) * 40 / new[0] - 0.5, (cell[1] + 0.5) * 60 / new[1] - 0.5
        away = (row - centre[0]) ** 2 + (column - centre[1]) ** 2
        cells.setdefault(cell, []).append((round(away, 9), row, column))
    wanted = np.zeros(new, np.float32)
    for cell, points in cells.items():
        _, row, column = min(points)  # the nearest to the centre, then row order
        wanted[cell] = depth[row, column]
    assert np.array_equal(found, wanted)


def test_resized_depth_upscale_repeats_pixels():
    """Upscaling repeats depth pixels and adds no others."""
    depth = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    assert (
        resizes.resized_depth(depth, (4, 4))[0].tolist() == [[1, 1, 0, 0]] * 2 + [[3, 3, 4, 4]] * 2
    )


def test_resized_teacher_map_mean_on_one_surface():
    """A teacher map's cell has the mean by area only on one surface without holes."""
    depth = torch.tensor([[[10.0, 10.2, 10.4, 0.0, 10.0, 20.0]]])
    found = resizes.resized_teacher_map(depth, (1, 2))[0, 0].tolist()
    assert found[0] == pytest.approx(10.2)
    assert found[1] == 10.0
    thirds = resizes.resized_teacher_map(torch.tensor([[[10.0, 10.3, 10.6]]]), (1, 2))[
        0, 0
    ].tolist()
    assert thirds == pytest.approx([(10.0 + 10.3 / 2) / 1.5, (10.3 / 2 + 10.6) / 1.5])


def test_resized_depth_ignores_nonfinite():
    """NaN, infinite and negative depths count as no point."""
    depth = torch.tensor([[[float("nan"), 3.0], [-1.0, 0.0]]])
    assert resizes.resized_depth(depth, (1, 1)).item() == 3.0
    assert resizes.resized_teacher_map(depth, (1, 1)).item() == 3.0


def test_resized_sample_moves_depth_and_intrinsics():
    """Depth, teacher map and intrinsics follow the resized image."""
    sample = sample_of(teacher=torch.full((1, 40, 60), 7.0))
    resized, placement = resizes.resized_sample(sample, Resize(height=10, width=30, mode="stretch"))
    assert placement.scaled == (10, 30)
    assert resized.image.shape == (3, 10, 30)
    assert resized.image.dtype == torch.uint8
    assert resized.depth.shape == resized.inside.shape == resized.teacher_depth.shape == (1, 10, 30)
    assert resized.inside.all()
    assert (resized.depth == 5).all()
    assert (resized.teacher_depth == 7).all()
    assert resized.intrinsics.tolist() == [[25, 0, 14.75], [0, 15, (10 + 0.5) / 4 - 0.5], [0, 0, 1]]
    assert resizes.resized_sample(sample, OWN_SIZE)[0] is sample


def batch_of(resize, augment=None, samples=None, **options):
    samples = samples or [sample_of()]
    reader = BatchReader(One(*samples), augment, 0, resize=resize, **options)
    read = reader.read([(0, index) for index in range(len(samples))])
    return read.to(torch.device("cpu"))


CONTAIN = Resize(height=24, width=30, mode="contain")  # 40x60 -> 20x30 from row 2


def test_resize_training_equals_evaluation_image():
    """Training and evaluation see the same resized image."""
    for resize in (
        CONTAIN,
        Resize(height=24, width=30, mode="stretch"),
        Resize(scale=0.5),
        OWN_SIZE,
    ):
        trained, evaluated = batch_of(resize, PLAIN), batch_of(resize)
        assert torch.equal(trained.image, evaluated.image)
        assert evaluated.depth.shape == (1, 1, 40, 60)  # its own size, for scoring
        shown = batch_of(resize, None, resized_depth=True)
        assert torch.equal(shown.image, trained.image)
        assert torch.equal(shown.depth, trained.depth)


def test_resize_contain_padding_has_no_depth():
    """The padding of a contained image is outside it and has no depth."""
    batch = batch_of(CONTAIN, PLAIN, [sample_of(teacher=torch.full((1, 40, 60), 7.0))])
    rows = torch.zeros(24, dtype=torch.bool)
    rows[2:22] = True
    assert torch.equal(batch.inside[0, 0], rows[:, None].expand(24, 30))
    assert torch.equal(batch.depth[0, 0] > 0, batch.inside[0, 0])
    assert torch.equal(batch.teacher_depth[0, 0] > 0, batch.inside[0, 0])
    assert torch.equal(batch.counted, batch.inside)
    assert batch.intrinsics[0, 1, 2] == pytest.approx((10 + 0.5) / 2 - 0.5 + 2)
    assert batch.intrinsics[0, 0, 2] == pytest.approx((30 + 0.5) / 2 - 0.5)
    assert batch_of(Resize(scale=0.5), PLAIN).counted is None


def test_counted_in_evaluation():
    """Evaluation leaves norms as they are, so no pixel is named as padding."""
    assert batch_of(CONTAIN).counted is None


def test_resize_contain_flip_mirrors_canvas():
    """A flipped contained image is the mirror image of its canvas, intrinsics included."""
    resize = Resize(
        height=20, width=37, mode="contain"
    )  # 40x60 -> 20x30, 3 columns left of it and 4 right
    flipped = batch_of(resize, replace(PLAIN, flip_p=1.0))
    straight = batch_of(resize, PLAIN)
    assert torch.equal(flipped.image, straight.image.flip(-1))
    assert torch.equal(flipped.inside, straight.inside.flip(-1))
    mirrored = 37 - 1 - straight.intrinsics[0, 0, 2]
    assert flipped.intrinsics[0, 0, 2] == pytest.approx(mirrored.item())


def test_resize_cover_crops_training_only():
    """`cover` trains on windows and evaluates the whole image."""
    resize = Resize(height=20, width=20, mode="cover")
    assert batch_of(resize, PLAIN).image.shape == (1, 3, 20, 20)
    assert batch_of(resize).image.shape == (1, 3, 20, 30)
    smaller = batch_of(resize, replace(PLAIN, crop=(16, 12)))
    assert smaller.image.shape == (1, 3, 16, 12)


def test_resize_batches_images_of_different_sizes():
    """Images of different sizes form one batch at a fixed working size."""
    for resize in (
        CONTAIN,
        Resize(height=8, width=9, mode="stretch"),
        Resize(height=8, width=9, mode="cover"),
    ):
        batch = batch_of(
            resize,
            replace(PLAIN, rotate_p=1.0),
            [sample_of(40, 60), sample_of(90, 31), sample_of(7, 5)],
        )
        assert batch.image.shape[0] == 3
        assert batch.image.shape[2:] in ((24, 30), (8, 9))


def test_restored_depth_has_image_size():
    """`at_own_size` returns depth at the image's own size without the padding."""
    depth = torch.full((1, 1, 24, 30), 99.0)
    depth[:, :, 2:22] = torch.arange(30.0)
    smooth, nearest = (
        resizes.at_own_size(depth, CONTAIN, (40, 60), each) for each in (True, False)
    )
    assert smooth.shape == nearest.shape == (1, 1, 40, 60)
    assert smooth.max() == 29
    assert nearest[0, 0, 5].tolist() == [float(column // 2) for column in range(60)]
    wanted = interpolate(depth[:, :, 2:22], size=(40, 60), mode="bilinear", align_corners=False)
    assert torch.equal(smooth, wanted)


def test_resized_map_nearest_equals_nearest_exact():
    """Nearest resizing equals torch's `nearest-exact`."""
    values = torch.rand(1, 1, 24, 31)
    for size in ((40, 60), (7, 90), (24, 31), (1, 1)):
        assert torch.equal(
            resizes.resized_map(values, size, False),
            interpolate(values, size, mode="nearest-exact"),
        )


def test_batch_norm_ignores_padding():
    """Batch norms compute their statistics without the padding."""
    padded = torch.randn(2, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    counted = torch.zeros(2, 1, 24, 30, dtype=torch.bool)
    counted[:, :, 2:22] = True
    padded = torch.where(counted, padded, 50.0)
    ours, plain = BatchNorm2d(3), nn.BatchNorm2d(3)
    with statistics_of(counted):
        found = ours(padded)
    wanted = plain(padded[:, :, 2:22])
    assert torch.allclose(found[:, :, 2:22], wanted, atol=1e-5)
    for name, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].double(), value.double(), atol=1e-5), name
    ours.eval()
    with statistics_of(counted):
        assert torch.equal(ours(padded), ours(padded.clone()))
    assert (ours(padded)[:, :, 0] > 10).all()  # nothing counts any more


def test_batch_norm_counts_feature_by_centre():
    """A feature pixel counts if its centre lies on a counted pixel."""
    counted = torch.zeros(1, 1, 24, 30, dtype=torch.bool)
    counted[:, :, 4:20] = True
    x = torch.randn(1, 2, 6, 10, generator=torch.Generator().manual_seed(0))
    with statistics_of(counted):
        BatchNorm2d(2)(x)
        found = BatchNorm2d(2)
        found(x)
    plain = nn.BatchNorm2d(2)
    plain(x[:, :, 1:5])
    assert torch.allclose(found.running_mean, plain.running_mean, atol=1e-6)


def test_depth_of_other_size_is_refused():
    """Depth of another size than the image or the network's input is refused."""
    with pytest.raises(ValueError, match="of an image of \\(24, 32\\) a network sees \\(24, 32\\)"):
        resizes.at_own_size(torch.ones(1, 1, 48, 64), OWN_SIZE, (24, 32), smooth=True)
    mixed = sample_of(48, 64, depth=torch.ones(1, 24, 32))
    for augment in (None, PLAIN):
        # The first sample is checked in full (test_contract.py), every later one for its sizes.
        error = BatchReader(One(sample_of(48, 64), mixed), augment, 0).read([(0, 0), (0, 1)])
        assert str(error) == "one: depth of 24x32 for an image of 48x64; give both one size"


def test_evaluation_refuses_mixed_sizes_in_batch():
    """Images of different sizes in one evaluation batch are refused."""
    data = One(sample_of(48, 64), sample_of(50, 60))
    reader = BatchReader(data, None, 0, resize=Resize(height=8, width=9, mode="stretch"))
    error = reader.read([(0, 0), (0, 1)])
    assert "images of different sizes in one batch: 48x64, 50x60 (among one)" in str(error)


def test_batch_norm_all_padding_counts_everything():
    """A batch norm whose pixels are all padding counts all of them; a single value is an error."""
    x = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for few in (0, 1):
        counted = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
        counted[:few, :, 2, 2] = True
        ours, plain = BatchNorm2d(3), nn.BatchNorm2d(3)
        with statistics_of(counted):
            assert torch.allclose(ours(x), plain(x), atol=1e-5)
        assert torch.allclose(ours.running_var, plain.running_var, atol=1e-6)
    with (
        statistics_of(torch.ones(1, 1, 8, 8, dtype=torch.bool)),
        pytest.raises(ValueError, match="more than 1 value"),
    ):
        BatchNorm2d(3)(torch.randn(1, 3, 1, 1))


def test_batch_norm_ignores_nonfinite_padding():
    """Non-finite values in the padding don't reach the statistics."""
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = torch.inf
    counted = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    counted[:, :, 0] = False
    norm = BatchNorm2d(3)
    with statistics_of(counted):
        assert norm(x)[:, :, 1:].isfinite().all()
    assert norm.running_mean.isfinite().all()
    assert norm.running_var.isfinite().all()


def test_of_data_only_known_fixed_size_datasets():
    """Height and width set the resize only for datasets that are known to have one size."""
    assert resizes.of_data({"name": "mine.frames", "height": 192, "width": 640}) == OWN_SIZE
    assert resizes.of_data({"name": "scenes", "height": 96, "width": 320}) == Resize(
        at_most=(96, 320)
    )


@pytest.mark.parametrize(
    "resize", [Resize(short_side=256), Resize(height=120, width=160, mode="cover")]
)
def test_place_refuses_enormous_image(resize):
    """A resize that would enlarge an image enormously is refused."""
    with pytest.raises(DataError, match="an image: 1x5000 would be .* at the working resolution"):
        resize.placement_of(1, 5000)
    assert OWN_SIZE.placement_of(1, 50000).canvas == (1, 50000)


def test_enormous_working_size_names_the_sample():
    """Training, evaluation and the groups of sizes name the image whose working size is refused."""
    resize = Resize(short_side=64)
    told = "one: 1x400 would be 64x25600 at the working resolution"
    for augment in (PLAIN, None):
        error = BatchReader(One(sample_of(1, 400)), augment, 0, resize=resize).read([(0, 0)])
        assert isinstance(error, DataError)
        assert str(error).startswith(told)


class TwoSizes(torch.utils.data.Dataset):
    frames = (SimpleNamespace(name="a.png"), SimpleNamespace(name="b.png"))

    def image_sizes(self):
        return [(40, 60), (1, 400)]


def test_size_groups_name_the_image_of_an_enormous_working_size():
    """Groups of equal sizes name the image whose working size is refused."""
    with pytest.raises(DataError, match="^b.png: 1x400 would be 64x25600"):
        size_groups(TwoSizes(), Resize(short_side=64))
