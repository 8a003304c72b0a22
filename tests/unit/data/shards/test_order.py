"""The order of frames in tar shards: a permutation that follows from seed and epoch alone."""

import numpy as np
import pytest

from tiekd.data.loading.sampler import MicroBatches, RankShare, epoch_batches
from tiekd.data.shards.order import ShardOrder
from tiekd.errors import RecipeError

SHARDS = np.repeat([4, 5, 9, 12], [5, 3, 6, 2])


def dealt(world_size, start=0, total=12, window=4):
    """Returns each iteration's keys, as all ranks together read them."""
    ranks = [
        list(
            MicroBatches(
                len(SHARDS),
                4,
                range(start, total),
                seed=5,
                share=RankShare(rank, world_size),
                order_of=ShardOrder(SHARDS, window),
            )
        )
        for rank in range(world_size)
    ]
    return [sum(parts, []) for parts in zip(*ranks, strict=True)]


def test_order_is_the_same_on_any_number_of_ranks():
    """1, 2 and 4 ranks have the same global batches, from the start and from any iteration."""
    whole = dealt(1)
    assert dealt(2) == dealt(4) == whole
    for start in (1, 6):  # in the middle of a shard, in the first and the second epoch
        assert dealt(2, start) == dealt(4, start) == whole[start:]
    # Each epoch has every frame.
    for epoch in range(3):
        keys = [key for batch in whole[4 * epoch : 4 * epoch + 4] for key in batch]
        assert sorted(keys) == [(epoch, index) for index in range(16)]


def test_order_permutes_shards_and_follows_seed_and_epoch():
    """Without a window the shards are permuted as wholes, differently in each epoch."""
    order = ShardOrder(SHARDS, 1)
    found = order(0, 1)
    shards = SHARDS[found]
    assert sorted(found) == list(range(16))
    assert np.count_nonzero(np.diff(shards)) == 3
    for shard in set(shards):
        assert np.all(np.diff(found[shards == shard]) == 1)
    orders = {tuple(order(epoch, seed)) for epoch in range(4) for seed in range(4)}
    assert len(orders) > 8
    assert np.array_equal(order(2, 3), ShardOrder(SHARDS, 1)(2, 3))


@pytest.mark.parametrize("window", [2, 10, 50])
def test_order_moves_frames_within_the_window(window):
    """A frame is fewer places than the window from its place in its shard's order."""
    shards = np.repeat(np.arange(40), 25)
    plain, moved = ShardOrder(shards, 1)(3, 7), ShardOrder(shards, window)(3, 7)
    places = np.empty(1000, int)
    places[moved] = np.arange(1000)
    distance = np.abs(places[plain] - np.arange(1000))
    assert 0 < distance.max() < window
    assert sorted(moved) == list(range(1000))


def test_order_is_stated_in_words():
    """The log's words name the shards and the window."""
    assert str(ShardOrder(SHARDS, 7)) == (
        "4 shards in another order each epoch, their frames moved within a window of 7 "
        "(data.window)"
    )


@pytest.mark.parametrize("order", [[0, 1, 1, 3], [0, 1, 2], [1, 2, 3, 4]])
def test_order_that_is_no_permutation_is_refused(order):
    """A data set whose order leaves out or repeats a sample is named."""
    with pytest.raises(RecipeError, match=r"epoch_order\(2, 7\) must have each index from 0 to 3"):
        epoch_batches(2, 4, 2, 7, order_of=lambda epoch, seed: np.array(order))
