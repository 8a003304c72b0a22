"""A run in which no training pixel counts ends on all ranks; one rank with a loss is enough."""

from support import two_ranks
from support.counted_run import iterate, start

from tiekd.errors import DataError


def a_rank(rank: int, folder, of_rank_1: float) -> int:
    hook, state = start(folder / str(rank), 4, batch_size=32)
    try:
        for _ in range(8):
            iterate(hook, state, of_rank_1 if rank else 0.0)
    except DataError:
        return state.iteration
    return 0


def test_pixels_count_ranks_end_together(tmp_path):
    """Ranks end together, and a nonzero loss on one rank is enough for all."""
    for name in ("none", "one"):
        for rank in ("0", "1"):
            (tmp_path / name / rank).mkdir(parents=True)
    assert two_ranks.run(a_rank, tmp_path, tmp_path / "none", 0.0) == [4, 4]
    assert two_ranks.run(a_rank, tmp_path, tmp_path / "one", 0.5) == [0, 0]
