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
def test_all_items_come_once_and_in_their_order(count):
    assert list(one_ahead(items(count, []), str, int)) == list(range(count))


def test_the_next_one_is_started_before_the_current_one_is_given_out():
    told = []
    ahead = one_ahead(items(3, told), started(told), lambda number: told.append(f"give {number}"))
    next(ahead)
    assert told == ["read 0", "start 0", "read 1", "start 1", "give 0"]
    list(ahead)
    assert told[5:] == ["read 2", "start 2", "give 1", "give 2"]


def test_an_error_waits_until_what_was_read_before_it_is_used():
    ahead = one_ahead(items(2, [], DataError("torn")), str, int)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(DataError, match="torn"):
        next(ahead)


class Item:
    def to(self, device):
        return device


def test_on_a_cpu_nothing_is_read_ahead():
    told, cpu = [], torch.device("cpu")
    there = on_device((told.append(number) or Item() for number in range(3)), cpu)
    assert next(there) == cpu
    assert told == [0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_batches_are_those_of_the_cpu(tmp_path):
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
