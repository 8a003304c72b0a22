"""Ranks tell of each other's iterations that were skipped, and end together."""

import math

from support import two_ranks
from support.guarded_run import iterate, start, told

from tiekd.errors import DivergedError


def two(rank: int, folder) -> str:
    """Rank 1 has the bad loss; both end."""
    folder = folder / str(rank)
    folder.mkdir()
    hook, state = start(folder, interval=2, max_in_a_row=2)
    names = [[f"{rank}_{micro}.png"] for micro in range(2)]
    iterate(hook, state, (0.5, math.nan) if rank else (0.5, 0.5), skipped=True, names=names)
    try:
        iterate(hook, state, skipped=True, names=names)
    except DivergedError as error:
        return str(error)


def test_guard_gathers_samples_of_all_ranks(tmp_path):
    """Rank 0 reports the samples of every rank, and all ranks end together."""
    messages = two_ranks.run(two, tmp_path, tmp_path)
    assert all("2 iterations in a row, from 1 on" in message for message in messages)
    lines = told(tmp_path / "0")
    assert lines[0].endswith("on rank 1, micro-batch 1 (decode.loss_dpm: nan, loss: nan): 1_1.png")
    assert lines[1].endswith(": 0_0.png, 0_1.png, 1_0.png, 1_1.png")
    assert not (tmp_path / "1" / "now.log").exists()
