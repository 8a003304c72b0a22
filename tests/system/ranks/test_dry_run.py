"""The rank with the least memory decides for all which micro-batch fits."""

import torch
from support import two_ranks

from tiekd.tools import micro_batch

CPU = torch.device("cpu")


def agreeing(rank: int) -> list:
    tried = []

    def try_images(images: int) -> None:
        tried.append(images)
        if rank == 1 and images > 2:
            raise torch.OutOfMemoryError("full here only")

    tries = micro_batch.find_largest([1, 2, 4, 8], try_images, CPU, None)
    return [tried, [(t.images, t.fits) for t in tries]]


def test_find_largest_least_memory_rank_decides(tmp_path):
    """All ranks agree on the sizes that fit the rank with the least memory."""
    results = two_ranks.run(agreeing, tmp_path)
    assert results[0][1] == results[1][1] == [(1, True), (2, True), (4, False)]
    assert results[0][0] == [1, 1, 2, 2, 4, 4]
    assert results[1][0] == [1, 1, 2, 2, 4]
