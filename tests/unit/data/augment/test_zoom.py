"""The augmentation `zoom`: the image is scaled and its focal length with it, or its depth."""

import numpy as np
import pytest
import torch

from tiekd.data.augment.augment import Augment
from tiekd.data.loading.reader import BatchReader
from tiekd.data.resize import OWN_SIZE, Placement, Resize, zoomed
from tiekd.data.sample import Sample
from tiekd.errors import RecipeError

CPU = torch.device("cpu")
STILL = {"rotate_p": 0.0, "flip_p": 0.0, "colour_p": 0.0}


class Marked(torch.utils.data.Dataset):
    """One image of 96x160 with two bright points: the principal point, and one 20 pixels beside it.

    Depth is 8 m, as 2048 levels of 1/256 m; the teacher's is 9 m.
    """

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image = torch.zeros(3, 96, 160, dtype=torch.uint8)
        image[0, 46:51, 78:83] = 255
        image[1, 46:51, 98:103] = 255
        intrinsics = torch.tensor([[200.0, 0, 80], [0, 200.0, 48], [0, 0, 1]])
        levels = torch.full((1, 96, 160), 2048, dtype=torch.uint16)
        inside = torch.ones(1, 96, 160, dtype=torch.bool)
        teacher = torch.full((1, 96, 160), 9.0)
        return Sample(image, levels, inside, teacher, intrinsics, "a", depth_units=256.0)


def batches(resize=OWN_SIZE, count=12, **augment):
    reader = BatchReader(Marked(), Augment(**STILL | augment), 0, resize=resize)
    for epoch in range(count):
        yield epoch, reader, reader.read([(epoch, 0)]).to(CPU)


def centroid(plane):
    weights = plane - plane.min()
    columns = torch.arange(plane.shape[1], dtype=torch.float32)
    rows = torch.arange(plane.shape[0], dtype=torch.float32)
    return (weights.sum(0) * columns).sum() / weights.sum(), (
        weights.sum(1) * rows
    ).sum() / weights.sum()


@pytest.mark.parametrize("resize", [OWN_SIZE, Resize(scale=0.5), Resize(64, 128, "contain")])
def test_focal_changes_with_the_zoom(resize):
    """Points move apart by the factor of the focal length; depth in metres stays."""
    factors = []
    for _, _, batch in batches(resize, zoom=(0.7, 1.4)):
        camera = batch.intrinsics[0]
        x, y = centroid(batch.image[0, 0])
        other_x, _ = centroid(batch.image[0, 1])
        if other_x + 4 < batch.image.shape[3]:
            distance = float(other_x - x)
            assert distance == pytest.approx(20 * float(camera[0, 0]) / 200, abs=0.4)
        assert float(x) == pytest.approx(float(camera[0, 2]), abs=0.4)
        assert float(y) == pytest.approx(float(camera[1, 2]), abs=0.4)
        assert batch.depth[batch.depth > 0].unique().tolist() == [8.0]
        assert batch.teacher_depth[batch.teacher_depth > 0].unique().tolist() == [9.0]
        assert torch.equal(batch.inside, batch.depth > 0)
        factors.append(float(camera[0, 0]))
    base = 200 * resize.placement_of(96, 160).scaled[1] / 160
    assert 0.69 * base < min(factors) < 0.9 * base
    assert 1.1 * base < max(factors) < 1.41 * base


def test_divide_brings_the_scene_nearer():
    """With zoom_depth: divide the focal length stays, and depths are divided by the zoom."""
    for epoch, reader, batch in batches(zoom=(0.7, 1.4), zoom_depth="divide"):
        zoom = reader.augment.draw_zoom(0, epoch, 0)
        assert batch.intrinsics[0, 0, 0].item() == pytest.approx(200)
        assert batch.intrinsics[0, 1, 1].item() == pytest.approx(200)
        assert batch.depth.max().item() == pytest.approx(8 / zoom, rel=0.01)
        assert batch.teacher_depth.max().item() == pytest.approx(9 / zoom, rel=0.01)


def test_window_keeps_its_size():
    """A zoomed image is cropped or padded to the window; norms leave out the padding."""
    for crop, size in ((None, (96, 160)), ([80, 120], (80, 120))):
        for _, _, batch in batches(zoom=(0.7, 1.4), crop=crop):
            assert tuple(batch.image.shape[2:]) == size
            assert torch.equal(batch.counted, batch.inside)
    for _, _, batch in batches(count=2, zoom=(1.0, 1.4)):
        assert batch.counted is None


def test_zoomed_image_is_padded_no_more_than_needed():
    """The canvas is the zoomed image, at least as large as the window, on which it is centred."""
    plain = Placement((96, 160), (96, 160))
    assert zoomed(plain, 1.0, (64, 64)) == plain
    assert zoomed(plain, 0.5, (64, 64)) == Placement((48, 80), (64, 80), 8, 0)
    assert zoomed(plain, 2.0, (64, 64)) == Placement((192, 320), (192, 320), 0, 0)
    # keep_aspect's crop may be larger than the image: then the image's own size counts.
    assert zoomed(plain, 0.5, (200, 64)) == Placement((48, 80), (96, 80), 24, 0)


def test_zoom_changes_no_other_number():
    """All other decisions of a seed stay as they are without zoom; the zoom is even in its log."""
    plain, zooming = Augment(), Augment(zoom=(0.5, 2.0))
    assert plain.draw_zoom(0, 3, 5) == 1.0
    assert plain.draw(0, 3, 5, 40, 60) == zooming.draw(0, 3, 5, 40, 60)
    drawn = np.array([zooming.draw_zoom(0, 0, index) for index in range(2000)])
    assert 0.5 <= drawn.min() < 0.505
    assert 1.98 < drawn.max() <= 2.0
    assert abs((drawn < 1).mean() - 0.5) < 0.04


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"zoom": (1.4, 0.7)}, "data.augment.zoom: got .*0.1 <= low <= high"),
        ({"zoom": (0.0, 1.0)}, "data.augment.zoom: got"),
        ({"zoom": (0.7, float("nan"))}, "data.augment.zoom: got"),
        ({"zoom_depth": "keep"}, "data.augment.zoom_depth: got 'keep'; allowed: divide, null"),
    ],
)
def test_wrong_zoom_is_one_line(options, line):
    """A wrong zoom is refused in one line."""
    with pytest.raises(RecipeError, match=line):
        Augment(**options)
