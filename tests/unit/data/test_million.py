"""A list of a million images: what a start costs in time and memory, without looking at a file."""

import numpy as np
import pytest
from support import million
from support.frames import kitti_frames

from tiekd.data import trained_on
from tiekd.data.depth_values import check_range
from tiekd.data.loading.sampler import epoch_batches
from tiekd.data.shards.order import ShardOrder
from tiekd.training import inputs

COUNT = 1_000_000
# Bounds for a busy machine: alone each step takes a third of it.
SECONDS, MEGABYTES = 15, 500


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A KITTI folder with a split file of a million lines and no images."""
    root = tmp_path_factory.mktemp("million")
    million.write_list(root / "million.txt", COUNT)
    return root


@pytest.mark.long
def test_a_million_lines_start_in_seconds(split):
    """The list, the checks of its start, its records and an epoch's order stay small."""

    def start():
        frames = kitti_frames(str(split), "train", 80.0, train_split="million.txt")
        parts = [frames, check_range(frames), trained_on.trained_on(frames)]
        parts += [inputs._split(frames, None)]
        parts.append(epoch_batches(0, len(frames), 8, 0))
        return parts

    seconds, megabytes, (frames, _, record, stated, *_) = million.cost(start)
    assert len(frames) == COUNT
    assert seconds < SECONDS
    assert megabytes < MEGABYTES
    assert frames.frames[999_999].name.endswith("/0000999999.png")
    assert frames.frames[999_999].camera.focal == 721.5377
    assert len(record.hashes) <= trained_on.MAX_HASHES
    assert stated["count"] == COUNT
    assert stated["sample"]["count"] == 1000


def test_order_of_a_million_frames_is_an_array():
    """An epoch's order over 1000 shards takes arrays of a few bytes a frame."""
    order = ShardOrder(np.repeat(np.arange(1000), 1000), 10_000)
    seconds, megabytes, found = million.cost(lambda: order(3, 0))
    assert seconds < 3
    assert megabytes < 100
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(COUNT))
