"""Windows cut out of parts of images.

One by one and as a batch they are equal, whatever part they come from.
"""

import pytest
import torch

from tiekd.data.augment import resample as resampling
from tiekd.data.augment.augment import Augment, Decisions, look_up
from tiekd.data.augment.geometry import augment_on_cpu, crop_to_region
from tiekd.data.augment.resample import resample
from tiekd.data.loading.reader import BatchReader
from tiekd.data.sample import Sample

NO_COLOURS = (None, 1.0, (1.0, 1.0, 1.0))
DRAWN = [
    Decisions(angle, flip, top, left, 24, 40, *NO_COLOURS)
    for angle in (0.0, 2.5, -1.3)
    for flip in (False, True)
    for top, left in ((0, 0), (8, 13), (16, 20))
]


def frame(height=40, width=60, seed=0, teacher=True):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    depth, teacher_depth = torch.randint(1, 65536, (2, 1, height, width), generator=generator).to(
        torch.uint16
    )
    inside = torch.ones(1, height, width, dtype=torch.bool)
    return Sample(image, depth, inside, teacher_depth if teacher else None, torch.eye(3), "frame")


def parts_of(sample, rotate_deg=2.5):
    return [crop_to_region(sample, decisions, rotate_deg) for decisions in DRAWN]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("teacher", [False, True])
def test_resample_batch_equals_single_windows(device, teacher):
    """A batch that is resampled at once equals its windows resampled one by one.

    Straight and turned ones in one resampling, on the CPU too, as other devices take them.
    """
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    sample = frame(teacher=teacher)
    parts = parts_of(sample)
    assert len({part.image.shape for part in parts}) == 1, "a batch can be formed of them"
    image, depth = (
        torch.stack([part.image for part in parts]),
        torch.stack([part.depth for part in parts]),
    )
    maps = torch.stack([part.teacher_depth for part in parts]) if teacher else None
    there = [
        None if tensor is None else tensor.to(device)
        for tensor in (image, depth, maps, torch.stack([part.place for part in parts]))
    ]
    at_once = resampling._rotated(*there, (24, 40))
    for index, decisions in enumerate(DRAWN):
        single = augment_on_cpu(sample, decisions)
        got = [None if tensor is None else tensor[index].cpu() for tensor in at_once]
        differences = (got[0].int() - single.image.int()).abs()
        assert differences.max() <= (1 if decisions.angle else 0)
        assert (differences > 0).float().mean() < 0.01
        assert got[1].dtype == torch.uint16
        assert torch.equal(got[1].int(), single.depth.int())
        assert torch.equal(got[3], single.inside)
        assert (
            got[2] is None if not teacher else torch.equal(got[2].int(), single.teacher_depth.int())
        )


@pytest.mark.parametrize("rotate_deg", [2.5, 40.0, 180.0])
def test_resample_independent_of_part_size(rotate_deg):
    """A window is the same from a larger part of its image."""
    sample = frame()
    for decisions, part in zip(DRAWN, parts_of(sample, rotate_deg), strict=True):
        image, depth, _, inside = resample(
            part.image[None], part.depth[None], None, part.place[None], part.size
        )
        expected = augment_on_cpu(sample, decisions)
        assert (image[0].int() - expected.image.int()).abs().max() <= 1
        assert torch.equal(depth[0].int(), expected.depth.int())
        assert torch.equal(inside[0], expected.inside)


def test_crop_to_region_is_as_small_as_rotation_allows():
    """`crop_to_region` returns the smallest part that a rotation up to `rotate_deg` needs."""
    sample = frame(200, 300)
    straight = crop_to_region(sample, DRAWN[0], 0.0)
    assert straight.image.shape == (3, 24, 40)
    assert straight.image.data_ptr() == sample.image.data_ptr()
    parts = parts_of(sample)
    assert {part.image.shape for part in parts} == {
        (3, 24 + 2 + 3, 40 + 2 + 3)
    }  # 40 * sin(2.5 deg) = 1.7, and ends
    assert all(part.depth.shape == part.teacher_depth.shape == (1, 29, 45) for part in parts)


def test_crop_to_region_of_an_upright_window():
    """An augmented sample is a Sample that has the place and the size of its window."""
    sample = frame()
    part = crop_to_region(sample, DRAWN[0], 2.5)
    assert type(part) is Sample
    assert part.name == sample.name
    assert part.place.shape == (8,)
    assert part.place[-2:].tolist() == list(part.image.shape[-2:])
    assert part.size == (24, 40)
    window = augment_on_cpu(sample, DRAWN[0])
    assert window.place is None
    assert window.size is None


class Mixed(torch.utils.data.Dataset):
    """Images that are smaller than a turned window's part, each otherwise."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return frame(*((25, 41), (24, 60), (40, 40))[index], seed=index)


def test_collate_pads_parts_and_marks_outside():
    """Parts of different sizes are padded in a batch, and the padding is outside the image."""
    augment = Augment(crop=(24, 40), rotate_p=1.0, rotate_deg=20.0, colour_p=0.0)
    reader = BatchReader(Mixed(), augment, 0)
    keys = [(epoch, index) for epoch in range(4) for index in range(3)]
    sent = reader.read(keys)
    assert sent.image.shape[-2:] == (40, 52)
    assert sent.size == (24, 40)
    batch = sent.to(torch.device("cpu"))
    assert batch.image.shape == (12, 3, 24, 40)
    for place, (epoch, index) in enumerate(keys):
        sample = Mixed()[index]
        expected = augment_on_cpu(
            sample, reader.augment.draw(0, epoch, index, *sample.image.shape[-2:])
        )
        assert torch.equal(batch.inside[place], expected.inside)
        assert not expected.inside.all()
        assert torch.equal(batch.depth[place].int(), expected.depth.int())
        alone = reader.read([(epoch, index)]).to(torch.device("cpu"))
        assert (
            batch.image[place] - alone.image[0]
        ).abs().max() < 0.02  # of a grey level's 0.017, in rounding


def test_augment_on_cpu_float_depths_keep_values():
    """Float depths keep their dtype, and no new values appear."""
    metres = frame()._replace(depth=torch.rand(1, 40, 60) + 1, teacher_depth=None)
    for decisions in DRAWN:
        moved = augment_on_cpu(metres, decisions).depth
        assert moved.dtype == torch.float32
        assert set(moved.unique().tolist()) <= {
            0.0,
            *metres.depth.unique().tolist(),
        }


def test_resample_never_syncs_with_device(monkeypatch):
    """Resampling and the colour look-up never read a tensor's value on the host."""
    parts = parts_of(frame())
    image, depth = (
        torch.stack([part.image for part in parts]),
        torch.stack([part.depth for part in parts]),
    )
    affine_maps = torch.stack([part.place for part in parts])
    tables = torch.zeros(len(parts), 3, 256)

    def wait(*_):
        raise AssertionError("a number was asked for")

    for name in (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
    ):
        monkeypatch.setattr(torch.Tensor, name, wait)
    windows, *_ = resampling._rotated(image, depth, depth, affine_maps, (24, 40))
    assert look_up(windows, tables).shape == (len(parts), 3, 24, 40)
