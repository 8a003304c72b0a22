"""One batch ahead.

The order stays, the next one is under way in time, and errors come in their turn.
"""

import pytest
import torch

from tiekd.data.loading.prefetch import on_device, one_ahead
from tiekd.errors import DataError


def items(count, told, error=None):
    for number in range(count):
        told.append(f"read {number}")
        yield number
    if error is not None:
        raise error


def started(told):
    return lambda number: told.append(f"start {number}") or number


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_ahead_keeps_items_and_order(count):
    """`one_ahead` yields all items once and in order."""
    assert list(one_ahead(items(count, []), str, int)) == list(range(count))


def test_one_ahead_starts_next_before_yield():
    """The next item is started before the current one is yielded."""
    told = []
    ahead = one_ahead(items(3, told), started(told), lambda number: told.append(f"give {number}"))
    next(ahead)
    assert told == ["read 0", "start 0", "read 1", "start 1", "give 0"]
    list(ahead)
    assert told[5:] == ["read 2", "start 2", "give 1", "give 2"]


def test_one_ahead_delays_error_to_its_turn():
    """An error is raised only after the items that were read before it."""
    ahead = one_ahead(items(2, [], DataError("torn")), str, int)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(DataError, match="torn"):
        next(ahead)


class Item:
    def to(self, device):
        return device


def test_on_device_cpu_reads_nothing_ahead():
    """On a CPU no batch is read ahead."""
    told, cpu = [], torch.device("cpu")
    there = on_device((told.append(number) or Item() for number in range(3)), cpu)
    assert next(there) == cpu
    assert told == [0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_device_gpu_batches_equal_cpu(tmp_path):
    """Batches on a GPU equal those on the CPU."""
    from support import fake_data
    from support.frames import kitti_frames

    from tiekd.data.augment import augment as transforms
    from tiekd.data.loading import loader, sampler

    frames = kitti_frames(str(fake_data.make(tmp_path)), "train", 80.0)

    def batches(device):
        dealt = sampler.MicroBatches(len(frames), 2, range(9), seed=3)
        augment = transforms.Augment(crop=(12, 16))
        loading = loader.Loading(workers=1)
        return loader.training_batches(
            frames, dealt, augment, torch.device(device), loading=loading
        )

    for there, here in zip(batches("cuda"), batches("cpu"), strict=True):
        assert there.image.is_cuda
        assert torch.equal(there.image.cpu(), here.image)
        assert torch.equal(there.depth.cpu(), here.depth)
        assert there.names == here.names
