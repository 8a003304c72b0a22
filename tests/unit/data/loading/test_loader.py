"""Batches from workers.

They are the same whatever their number, errors come as they are, and no foreign random state is
touched.
"""

import errno
import os
import signal

import numpy as np
import pytest
import torch
from support import fake_data
from support.fake_data import image_name, write_png
from support.frames import kitti_frames

from tiekd.data.augment.augment import Augment
from tiekd.data.loading.loader import Loading, Unreadable, training_batches, validation_batches
from tiekd.data.loading.sampler import MicroBatches, RankShare
from tiekd.data.sample import Sample
from tiekd.errors import DataError, LaunchError, RecipeError

CPU = torch.device("cpu")
AUGMENT = Augment(crop=(12, 16))


@pytest.fixture
def data(tmp_path):
    return kitti_frames(str(fake_data.make(tmp_path)), "train", 80.0)


def training(data, workers=0, augment=AUGMENT, start=0, total=6, rank=0, world_size=1, seed=3):
    share = RankShare(rank, world_size)
    sampler = MicroBatches(len(data), 2, range(start, total), seed=seed, share=share)
    return training_batches(data, sampler, augment, CPU, loading=Loading(workers=workers))


def equal(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def test_batches_independent_of_workers(data):
    """Training batches are the same with any number of workers."""
    without, one, two = (list(training(data, workers)) for workers in (0, 1, 2))
    assert len(without) == len(one) == len(two) == 6
    assert all(equal(a, b) and equal(a, c) for a, b, c in zip(without, one, two, strict=True))
    assert without[0].image.shape == (2, 3, 12, 16)
    assert without[0].image.dtype == torch.float32
    assert without[0].depth.shape == without[0].inside.shape == (2, 1, 12, 16)
    assert without[0].intrinsics.shape == (2, 3, 3)
    assert without[0].teacher_depth is None
    assert not torch.equal(without[0].image, without[3].image)


def test_batch_repeated_frame_augmented_anew(data):
    """A frame that a batch repeats is augmented differently each time."""
    sampler = MicroBatches(len(data), 4 * len(data), range(1), seed=3)
    for workers in (0, 1):
        (batch,) = training_batches(
            data,
            sampler,
            Augment(crop=(12, 16), rotate_deg=10.0),
            CPU,
            loading=Loading(workers=workers),
        )
        assert sorted(batch.names) == sorted(4 * [frame.name for frame in data.frames])
        for name in set(batch.names):
            images = [
                image
                for image, other in zip(batch.image, batch.names, strict=True)
                if other == name
            ]
            assert not any(torch.equal(images[0], image) for image in images[1:])


def test_batches_from_middle_equal_tail(data):
    """A run that starts in the middle has the last batches of a whole run."""
    whole, tail = list(training(data)), list(training(data, start=4))
    assert len(tail) == 2
    assert all(equal(a, b) for a, b in zip(whole[4:], tail, strict=True))


def test_batches_independent_of_rank_split(data):
    """A sample has the same augmentation on whichever rank it is read."""
    whole = list(training(data))
    ranks = [list(training(data, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.image, torch.cat([first.image, second.image]))


def test_batch_teacher_maps_match_frames(data, tmp_path):
    """Each teacher map is in the batch position of its frame."""
    for index in range(5):
        write_png(
            tmp_path / "maps" / image_name(index).replace("/", "_"),
            np.full((20, 30), index + 1, np.uint16),
        )
    data = kitti_frames(str(tmp_path), "train", 65535.0, maps="maps")
    for batch in training(data):
        levels = [int(name[-5]) + 1 for name in batch.names]
        assert batch.teacher_depth.amax((1, 2, 3)).tolist() == pytest.approx(levels)


class Floats(torch.utils.data.Dataset):
    """Two samples with images in floating point; the second has a number that isn't finite."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = torch.full((3, 20, 30), 99.6)
        image[0, 3, 4] = torch.nan if index else 7.0
        ones = torch.ones(1, 20, 30)
        return Sample(image, ones, ones.bool(), None, torch.eye(3), str(index))


def test_batch_keeps_nonfinite_image():
    """An image with a non-finite value stays non-finite in training and in validation."""
    trained = next(training(Floats(), augment=Augment(rotate_p=0, flip_p=0, colour_p=0)))
    (_, evaluated), *_ = validation_batches(Floats(), 2, CPU)
    for batch in (trained, evaluated):
        for image, name in zip(batch.image, batch.names, strict=True):
            assert (
                image.isnan().all()
                if name == "1"
                else torch.allclose(image[1], torch.tensor(-16.28 / 57.12))
            )


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_error_arrives_as_own_line(data, tmp_path, workers):
    """An error in a worker is raised in the main process with its own message."""
    path = tmp_path / "input" / image_name(3)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as error:
        list(training(data, workers))
    assert (
        str(error.value)
        == f"{path}: a torn or damaged PNG (60 bytes); copy it from the original again"
    )
    with pytest.raises(DataError, match="torn"):
        list(validation_batches(data, 2, CPU, loading=Loading(workers=workers)))


class Faulty(torch.utils.data.Dataset):
    """Five samples, and what `act` does when one is read."""

    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.act()


def misconfigured():
    raise RecipeError("one line")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_error_keeps_class(workers):
    """An error of the project keeps its class across the worker."""
    with pytest.raises(RecipeError, match="^one line$"):
        list(training(Faulty(misconfigured), workers))


def without_descriptors():
    try:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    except OSError:
        raise DataError("000.png: torn") from None


def test_emfile_is_not_skipped_as_torn():
    """A file that fails for lack of descriptors is a `LaunchError` and isn't skipped."""
    skipped = Unreadable(100)
    sampler = MicroBatches(5, 2, range(6), seed=3)
    with pytest.raises(
        LaunchError, match=r"^000.png: torn: Too many open files .*set a smaller data.workers$"
    ):
        list(
            training_batches(Faulty(without_descriptors), sampler, AUGMENT, CPU, unreadable=skipped)
        )
    assert not skipped.messages


def test_killed_worker_is_one_line():
    """A killed worker raises a `DataError` of one line that says what to do."""
    with pytest.raises(
        DataError,
        match=r"^a data worker died \(process \d+, by SIGKILL\); .* set a smaller data.workers$",
    ) as error:
        list(training(Faulty(killed), 1))
    assert "\n" not in str(error.value)


def test_mixed_sizes_need_crop(data, tmp_path):
    """Images of mixed sizes in one batch are refused without a crop."""
    make_smaller(tmp_path, 1)
    with pytest.raises(
        DataError, match=r"different sizes in one batch: 18x28, 20x30 .*data.augment.sizes=bucket"
    ):
        list(training(data, augment=Augment()))
    assert all(batch.image.shape[2:] == (12, 16) for batch in training(data))


def make_smaller(root, index):
    write_png(root / "input" / image_name(index), np.zeros((18, 28, 3), np.uint8))
    write_png(root / "gt_depth" / fake_data.depth_name(index), np.ones((18, 28), np.uint16))


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_batch_ends_at_size_change(data, tmp_path, world_size):
    """A validation batch ends where the image size changes."""
    make_smaller(tmp_path, 3)
    for batch_size, whole in (
        (1, [[0], [1], [2], [3], [4]]),
        (2, [[0, 1], [2], [3], [4]]),
        (9, [[0, 1, 2], [3], [4]]),
    ):
        for rank in range(world_size):
            pairs = list(
                validation_batches(data, batch_size, CPU, share=RankShare(rank, world_size))
            )
            assert [indices for indices, _ in pairs] == whole[rank::world_size]
            assert all(
                batch.image.shape[2:] == ((18, 28) if 3 in i else (20, 30)) for i, batch in pairs
            )


@pytest.mark.parametrize("workers", [0, 1])
def test_crop_too_large_names_image(data, workers):
    """A crop that is larger than an image raises a `DataError` with the image's name."""
    with pytest.raises(
        DataError,
        match=rf"{image_name(0)[:30]}.*: data.augment.crop: 21x16 is larger than the image",
    ):
        list(training(data, workers, Augment(crop=(21, 16))))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_covers_every_frame_once(data, batch_size, world_size):
    """Validation covers every frame once, in the whole set's batches on any ranks."""
    ranks = [
        list(validation_batches(data, batch_size, CPU, share=RankShare(rank, world_size)))
        for rank in range(world_size)
    ]
    pairs = [pair for rank in ranks for pair in rank]
    assert sorted(index for indices, _ in pairs for index in indices) == list(range(5))
    whole = [list(range(start, min(start + batch_size, 5))) for start in range(0, 5, batch_size)]
    assert sorted(indices for indices, _ in pairs) == whole
    for indices, batch in pairs:
        assert batch.names == [image_name(index) for index in indices]
        assert batch.image.shape == (len(indices), 3, 20, 30)
        assert [depth.max().item() for depth in batch.depth] == [index + 1 for index in indices]


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_untouched(data, workers):
    """The loader neither reads nor advances the global random state."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = list(training(data, workers, total=2))
    list(validation_batches(data, 2, CPU, loading=Loading(workers=workers)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert all(equal(a, b) for a, b in zip(first, training(data, workers, total=2), strict=True))
