"""The order of the data: a function of seed and iteration alone.

The global batch is the same whatever the ranks.
"""

import numpy as np
import pytest

from tiekd.data.loading.sampler import (
    MicroBatches,
    RankShare,
    epoch_batches,
    iterations_per_epoch,
    repeats,
    size_groups,
)
from tiekd.errors import RecipeError


def dealt(
    world_size, accumulation, batch_size=4, num_samples=11, start=0, total=7, seed=5, groups=None
):
    """Returns the keys of each iteration as the ranks consume them: step by step, rank by rank."""
    ranks = [
        list(
            MicroBatches(
                num_samples,
                batch_size,
                range(start, total),
                seed=seed,
                accumulation=accumulation,
                share=RankShare(rank, world_size),
                groups=groups,
            )
        )
        for rank in range(world_size)
    ]
    assert all(len(batches) == (total - start) * accumulation for batches in ranks)
    assert all(
        len(batch) == batch_size // world_size // accumulation
        for batches in ranks
        for batch in batches
    )
    steps = [
        [key for rank in ranks for key in rank[step]]
        for step in range((total - start) * accumulation)
    ]
    return [sum(steps[i : i + accumulation], []) for i in range(0, len(steps), accumulation)]


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_micro_batches_same_for_ranks_and_accumulation(world_size, accumulation):
    """Ranks and accumulation don't change the global batches or their order."""
    assert dealt(world_size, accumulation) == dealt(1, 1)


def test_micro_batches_eight_ranks_equal_two():
    """Eight ranks of two samples and two ranks of eight have the same batches."""
    assert dealt(8, 1, batch_size=16) == dealt(2, 1, batch_size=16) == dealt(2, 4, batch_size=16)


def test_share_is_sliced_by_step_then_by_rank():
    """Of twelve samples two ranks read three each in the first step, and three in the second."""
    shares = [list(RankShare(rank, 2).micro_batches(range(12), 2)) for rank in range(2)]
    assert shares == [[range(3), range(6, 9)], [range(3, 6), range(9, 12)]]
    with pytest.raises(AssertionError):
        next(RankShare(0, 2).micro_batches(range(11), 2))


def test_micro_batches_length():
    """`len` of the sampler is the number of its micro-batches."""
    sampler = MicroBatches(11, 4, range(3, 7), seed=0, accumulation=2, share=RankShare(1, 2))
    assert len(sampler) == len(list(sampler)) == 8


def test_micro_batches_start_mid_epoch():
    """A sampler that starts in mid-epoch yields the last batches of a whole run."""
    whole = dealt(2, 1, total=9)
    for start in range(10):
        assert dealt(2, 1, start=start, total=9) == whole[start:]


def test_micro_batches_depend_on_iteration_and_seed():
    """The batch of an iteration depends on its number and the seed alone."""
    alone = [dealt(1, 1, start=i, total=i + 1)[0] for i in reversed(range(7))][::-1]
    assert alone == dealt(1, 1)
    batches = [epoch_batches(i // 3, 11, 4, seed=5)[i % 3].tolist() for i in range(7)]
    assert batches == [[index for _, index in keys] for keys in alone]
    assert dealt(1, 1, seed=6) != dealt(1, 1, seed=5)


def test_epoch_covers_samples_and_wraps():
    """An epoch covers every sample and fills its last batch from its own start."""
    assert iterations_per_epoch(11, 4) == 3
    assert iterations_per_epoch(12, 4) == 3
    assert iterations_per_epoch(1, 4) == 1
    for epoch in range(3):
        keys = sum(dealt(1, 1, start=3 * epoch, total=3 * epoch + 3), [])
        assert {e for e, _ in keys} == {epoch}
        indices = [index for _, index in keys]
        assert sorted(indices[:11]) == list(range(11))
        assert indices[11:] == indices[:1]


def test_epochs_have_different_orders():
    """Each epoch has another order of all samples."""
    orders = [tuple(epoch_batches(epoch, 8, 8, seed=0)[0].tolist()) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_batch_larger_than_data_wraps():
    """A batch that is larger than the data repeats it in order."""
    assert epoch_batches(0, 1, 3, seed=0).tolist() == [[0, 0, 0]]
    first = epoch_batches(0, 2, 5, seed=0)[0].tolist()
    assert first[:2] == first[2:4]
    assert first[4] == first[0]


def test_repeated_sample_has_own_key():
    """A repeated sample in a batch has a key of its own, on any ranks."""
    (batch,) = MicroBatches(3, 8, range(2, 3), seed=5)
    order = epoch_batches(2, 3, 8, seed=5)[0].tolist()
    assert batch == [(2, index + 3 * (place // 3)) for place, index in enumerate(order)]
    assert len(set(batch)) == 8
    assert [index % 3 for _, index in batch] == order
    halves = [
        key
        for rank in (0, 1)
        for (keys,) in [MicroBatches(3, 8, range(2, 3), seed=5, share=RankShare(rank, 2))]
        for key in keys
    ]
    assert halves == batch
    (small, *_) = MicroBatches(5, 4, range(9), seed=0, groups=[0, 0, 0, 0, 1])
    assert all(
        max(index for _, index in keys) < 5 for keys in MicroBatches(5, 4, range(9), seed=0)
    ), "as ever"
    grouped = list(MicroBatches(5, 4, range(2), seed=0, groups=[0, 0, 0, 0, 1]))
    assert [(0, 4 + 5 * n) for n in range(4)] in grouped


def test_repeats_warns_of_repeated_samples():
    """`repeats` warns of a batch that is larger than the data or a size group."""
    assert repeats(8, 8) == []
    assert repeats(5, 2, [0, 0, 0, 1, 1]) == []
    assert repeats(8, 9)[0].startswith(
        "Warning: train.batch_size 9 is more than there are training frames, 8: a batch"
    )
    assert "more than there are training frames of one size, 2" in repeats(5, 3, [0, 0, 0, 1, 1])[0]


@pytest.mark.parametrize(
    ("num_samples", "seed", "line"), [(0, 0, "no training samples"), (3, -1, "train.seed: got -1")]
)
def test_micro_batches_refuse_no_samples_or_bad_seed(num_samples, seed, line):
    """No samples or a negative seed raise a `RecipeError`."""
    with pytest.raises(RecipeError, match=line):
        MicroBatches(num_samples, 1, range(1), seed=seed)


GROUPS = [0, 1, 0, 0, 2, 1, 0, 1, 0, 1, 0]  # six, four and one


def test_grouped_batches_have_one_group():
    """A batch holds samples of one group, and an epoch all samples of all groups."""
    assert iterations_per_epoch(11, 4, GROUPS) == 2 + 1 + 1
    for epoch in range(6):
        batches = epoch_batches(epoch, 11, 4, 5, GROUPS).tolist()
        assert len(batches) == 4
        assert all(len({GROUPS[index] for index in batch}) == 1 for batch in batches)
        counts = np.bincount(np.ravel(batches), minlength=11)
        assert counts.min() == 1
        assert counts[[1, 5, 7, 9]].max() == 1  # a full group repeats none
        assert sorted(counts[[0, 2, 3, 6, 8, 10]]) == [1, 1, 1, 1, 2, 2]
        assert counts[4] == 4


def test_grouped_last_batch_wraps_in_group():
    """The last batch of a group is filled from the start of that group."""
    batches = [
        batch for batch in epoch_batches(0, 11, 4, 5, GROUPS).tolist() if GROUPS[batch[0]] == 0
    ]
    order = [index for index in epoch_batches(0, 11, 11, 5)[0].tolist() if GROUPS[index] == 0]
    assert sum(batches, []) == order + order[:2]


def test_groups_interleave_independent_of_ranks():
    """Groups are interleaved differently in each epoch, and alike on any ranks."""
    whole = dealt(1, 1, total=12, groups=GROUPS)
    assert dealt(2, 2, total=12, groups=GROUPS) == dealt(4, 1, total=12, groups=GROUPS) == whole
    for start in range(12):
        assert dealt(2, 1, start=start, total=12, groups=GROUPS) == whole[start:]
    assert [keys[0][0] for keys in whole] == [0] * 4 + [1] * 4 + [2] * 4
    orders = {
        tuple(GROUPS[batch[0]] for batch in epoch_batches(e, 11, 4, 5, GROUPS).tolist())
        for e in range(8)
    }
    assert len(orders) > 3


def test_single_group_equals_no_groups():
    """A single group gives the batches without groups."""
    assert dealt(1, 1, total=9, groups=[7] * 11) == dealt(1, 1, total=9)


def test_size_groups_are_image_sizes():
    """`size_groups` numbers the image sizes, and refuses a dataset without `image_sizes`."""

    class Sized:
        def image_sizes(self):
            return [(4, 6), (6, 4), (4, 6), (2, 2)]

    assert size_groups(Sized()) == [1, 2, 1, 0]
    with pytest.raises(
        RecipeError, match=r"bucket needs a data set with image_sizes\(\), list has none; use crop"
    ):
        size_groups([])
