"""A sample's draws and its colours in one look-up: the published pipeline's numbers."""

import numpy as np
import pytest
import torch

from tiekd.data.augment.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Decisions,
    colour_table,
    look_up,
    normalise,
)
from tiekd.data.sample import Sample, in_metres
from tiekd.errors import DataError, RecipeError

NOTHING = Decisions(0.0, False, 0, 0, 40, 60, None, 1.0, (1.0, 1.0, 1.0))
MEAN, STD = np.array(IMAGENET_MEAN)[:, None], np.array(IMAGENET_STD)[:, None]


def test_colour_table_applies_steps_in_order():  # noqa: E501
    """The table applies gamma, brightness, channel factors and then ImageNet's normalisation."""
    decisions = NOTHING._replace(gamma=1.07, brightness=0.93, channels=(0.9, 1.0, 1.1))
    coloured = np.minimum(
        np.arange(256.0)[None] ** 1.07 * 0.93 * np.array([[0.9], [1.0], [1.1]]), 255
    )
    assert (coloured == 255).any()
    assert (coloured[0] < 255).mean() > 0.7
    np.testing.assert_allclose(
        colour_table(decisions), (coloured - MEAN) / STD, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        colour_table(NOTHING), (np.arange(256.0) - MEAN) / STD, rtol=1e-6, atol=1e-7
    )
    assert torch.equal(colour_table(), colour_table(NOTHING))


def test_look_up_uses_table_per_image_and_channel():
    """`look_up` takes every image and channel from its own table, whatever the strides."""
    image = torch.randint(
        0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    tables = torch.arange(2 * 3 * 256, dtype=torch.float32).view(2, 3, 256)
    found = look_up(image, tables)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(found, image.float() + tables[:, :, :1, None])
    strided = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(look_up(strided, tables), found)


def frame(image, depth, **options):
    inside = torch.ones(1, *image.shape[-2:], dtype=torch.bool)
    return Sample(image, depth, inside, None, torch.eye(3), "frame", **options)


def test_normalise_uses_imagenet_rgb():
    """`normalise` subtracts ImageNet's mean and divides by its deviation, in RGB order."""
    image = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1) + torch.tensor(
        [58.395, 57.12, 57.375]
    ).view(3, 1, 1)
    assert normalise(frame(image, torch.ones(1, 1, 1))).image.flatten().tolist() == pytest.approx(
        [1, 1, 1]
    )
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(normalise(frame(levels, torch.ones(1, 1, 256))).image[:, 0], colour_table())


def test_in_metres_divides_by_own_units():
    """`in_metres` divides ground truth and teacher map by their own units, once."""
    levels = torch.tensor([[[0, 1, 256, 65535]]], dtype=torch.uint16)
    sample = frame(torch.zeros(3, 1, 4), levels, depth_units=256.0)._replace(
        teacher_depth=levels, teacher_units=1000.0
    )
    for there in (in_metres(sample), in_metres(in_metres(sample))):
        assert there.depth.dtype == torch.float32
        assert there.depth.tolist() == [[[0, 1 / 256, 1, 65535 / 256]]]
        assert torch.equal(there.teacher_depth, levels.float() / 1000)
    assert in_metres(sample._replace(teacher_depth=None)).teacher_depth is None


def test_draw_depends_on_seed_epoch_index_only():
    """A draw depends on seed, epoch and index alone, and differs between them."""
    augment = Augment(crop=(20, 30))
    draws = {
        key: augment.draw(*key, 40, 60)
        for key in [(s, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    }
    np.random.seed(3)
    torch.manual_seed(3)
    assert all(
        augment.draw(*key, 40, 60) == decisions for key, decisions in reversed(draws.items())
    )
    assert len(set(draws.values())) == 8


def test_draws_keep_ranges_and_probabilities():
    """Draws stay within their ranges and occur with their probabilities."""
    augment = Augment(
        rotate_p=0.5,
        rotate_deg=2.5,
        flip_p=0.25,
        crop=(20, 30),
        colour_p=0.5,
        brightness=(0.75, 1.25),
    )
    draws = [augment.draw(0, 0, index, 40, 60) for index in range(2000)]
    turned_ones = [d.angle for d in draws if d.angle]
    assert 0.45 < len(turned_ones) / 2000 < 0.55
    assert -2.5 <= min(turned_ones) < -2.4
    assert 2.4 < max(turned_ones) <= 2.5
    assert 0.2 < np.mean([d.flip for d in draws]) < 0.3
    assert {d.top for d in draws} == set(range(21))
    assert {d.left for d in draws} == set(range(31))
    coloured = [d for d in draws if d.gamma is not None]
    assert 0.45 < len(coloured) / 2000 < 0.55
    for low, high, values in (
        (0.9, 1.1, [d.gamma for d in coloured]),
        (0.75, 1.25, [d.brightness for d in coloured]),
        (0.9, 1.1, [c for d in coloured for c in d.channels]),
    ):
        assert low <= min(values) < low + 0.01
        assert high - 0.01 < max(values) <= high
    assert all(d.brightness == 1 and d.channels == (1, 1, 1) for d in draws if d.gamma is None)


def test_draw_without_augmentation_is_identity():
    """With all probabilities 0 and no crop the draw changes nothing."""
    assert Augment(rotate_p=0, flip_p=0, colour_p=0).draw(0, 0, 0, 40, 60) == NOTHING


@pytest.mark.parametrize("crop", [(41, 60), (40, 61)])
def test_draw_refuses_crop_larger_than_image(crop):
    """A crop that is larger than the image raises a `DataError`."""
    with pytest.raises(
        DataError,
        match=rf"data.augment.crop: {crop[0]}x{crop[1]} is larger than the image, 40x60",
    ):
        Augment(crop=crop).draw(0, 0, 0, 40, 60)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"sizes": "resize"},
            "data.augment.sizes: got 'resize'; allowed: crop, keep_aspect, bucket",
        ),
        ({"crop": [0, 4]}, "data.augment.crop: got [0, 4]; it must be [height, width] in pixels"),
    ],
)
def test_augment_refuses_wrong_sizes_or_crop(options, line):
    """A wrong `sizes` or `crop` raises a `RecipeError` of one line."""
    with pytest.raises(RecipeError) as error:
        Augment(**options)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
