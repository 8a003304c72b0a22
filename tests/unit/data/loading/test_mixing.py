"""The order of several data sets: ratio, own epochs, ranks, resume and unique keys."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest

from tiekd.data.loading.mixing import MixedBatches, SetAssignment, SetShare, iterations_per_epoch
from tiekd.data.loading.sampler import MicroBatches, RankShare
from tiekd.errors import RecipeError

PARTS = (SetShare(5, 1.0), SetShare(11, 2.0), SetShare(3, 0.5))


def batches(iterations=range(40), batch_size=8, parts=PARTS, **options):
    """Returns the micro-batches of the sampler as lists."""
    return list(MixedBatches(parts, batch_size, iterations, seed=3, **options))


@pytest.mark.parametrize(
    "weights", [(1, 1), (1, 2.5), (0.1, 0.7, 0.2), (1000, 1, 1), (3, 3, 2, 2), (0.3, 24000)]
)
def test_set_assignment_holds_the_ratio_at_every_place(weights):
    """Over 1,000 batches of 8 each set is at every place within one of its share."""
    counts = Counter()
    for place, (number, own) in enumerate(SetAssignment(weights).sets_at(0, 8000), start=1):
        assert own == counts[number]
        counts[number] += 1
        for each, weight in enumerate(weights):
            assert abs(counts[each] - place * weight / sum(weights)) <= 1
    assert [counts[each] for each in range(len(weights))] == SetAssignment(weights).counts(8000)


def test_set_assignment_of_eight_sets_stays_within_two():
    """Of eight sets, some of them tiny, none is more than two places from its share."""
    weights = (1, 1, 1, 1, 1, 0.01, 5, 2)
    for length in range(1, 5000, 7):
        wanted = np.array(weights) * length / sum(weights)
        assert np.abs(np.array(SetAssignment(weights).counts(length)) - wanted).max() < 2


def test_set_assignment_is_exact_far_away():
    """A stretch far into the stream has the numbers that counting up to it gives."""
    assignment, start = SetAssignment((0.3, 0.3, 0.4)), 6 * 10**13 + 7
    places = assignment.sets_at(start, 100)
    counts = assignment.counts(start)
    for number, own in places:
        assert own == counts[number]
        counts[number] += 1
    assert counts == assignment.counts(start + 100)
    assert sum(counts) == start + 100


def test_each_own_epoch_sees_every_sample_once():
    """In the order of the stream each set passes through permutations of all of its samples."""
    keys = list(chain(*batches(range(200))))
    starts = (0, 5, 16, 19)
    for first, end in pairwise(starts):
        own = [(epoch, index) for epoch, index in keys if first <= index < end]
        size = end - first
        for epoch in range(len(own) // size):
            seen = own[epoch * size : (epoch + 1) * size]
            assert {each for each, _ in seen} == {epoch}
            assert sorted(index for _, index in seen) == list(range(first, end))
    # Two own epochs have other permutations.
    assert [index for epoch, index in keys if epoch == 0 and index < 5] != [
        index for epoch, index in keys if epoch == 1 and index < 5
    ]


def test_keys_are_unique():
    """No key occurs twice, though a batch is larger than a set: each draws its own augmentation."""
    keys = list(chain(*batches(range(60), batch_size=32)))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_same_global_batches(ranks):
    """1, 2 and 4 ranks see the same samples in each iteration, also with accumulation."""
    whole = batches()
    for accumulation in (1, 2):
        of_ranks = [
            batches(share=RankShare(rank, ranks), accumulation=accumulation)
            for rank in range(ranks)
        ]
        for iteration, keys in enumerate(whole):
            first = iteration * accumulation
            steps = range(first, first + accumulation)
            assert list(chain(*(part[step] for step in steps for part in of_ranks))) == keys


@pytest.mark.parametrize("iteration", [1, 7, 23, 39])
def test_resume_at_any_iteration_continues_the_order(iteration):
    """A sampler that begins later yields what the straight one yields from there."""
    assert batches(range(iteration, 40)) == batches()[iteration:]


def test_first_set_alone_has_the_order_of_a_single_one():
    """A mixture of one set sees what a run with that set sees, until its last batch is filled."""
    single = list(MicroBatches(16, 8, range(10), seed=3))
    assert batches(range(10), parts=[SetShare(16, 1.0)]) == single


def test_own_order_of_a_set_is_followed():
    """A set that states its order is read in it."""
    parts = [
        SetShare(4, 1.0, order=lambda epoch, _: [3, 2, 1, 0] if epoch else [0, 1, 2, 3]),
        SetShare(4, 1.0),
    ]
    keys = [key for key in chain(*batches(range(2), parts=parts)) if key[1] < 4]
    assert keys == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (1, 2), (1, 1), (1, 0)]


def test_orders_are_replaced_and_not_changed():
    """A thread reads ahead while another one counts targets: neither changes what both may hold."""
    sampler = MixedBatches([SetShare(2, 1.0), SetShare(3, 1.0)], 8, range(0), seed=0)
    sampler.global_batch(0)
    kept = list(sampler._orders)
    before = [dict(orders) for orders in kept]
    sampler.global_batch(5)
    assert kept == before
    assert all(len(orders) == 2 for orders in sampler._orders)


def test_epoch_length_rounds_up():
    """An epoch covers at least the stated images."""
    assert [iterations_per_epoch(images, 8) for images in (1, 8, 9)] == [1, 1, 2]


def test_negative_seed_is_refused():
    """A negative seed is the user's mistake."""
    with pytest.raises(RecipeError, match="^train.seed: got -1"):
        MixedBatches(PARTS, 8, range(1), seed=-1)
