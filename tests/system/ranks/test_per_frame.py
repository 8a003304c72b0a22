"""Figures frame by frame are gathered from all ranks, in the data set's order."""

import torch
from support import two_ranks
from support.noise_frames import CPU, Frames, Slanted, protocol

from tiekd.evaluation.evaluate import evaluate
from tiekd.evaluation.per_frame import FrameRows


def found_on_a_rank(_rank):
    rows = FrameRows(1e-3, 80.0, "none")
    network = Slanted()
    scored = protocol(flip=False, batch_size=2)
    evaluate(lambda i: network(i).depth, Frames(), scored, CPU, watchers=[rows])
    return rows.gather()


def test_frame_rows_two_ranks_equal_one(tmp_path):
    """Two ranks gather the rows of one rank, in the same order."""
    alone = found_on_a_rank(0)
    for found in two_ranks.run(found_on_a_rank, tmp_path):
        assert found.names == alone.names
        assert torch.equal(found.sums, alone.sums)
        torch.testing.assert_close(found.metrics, alone.metrics, rtol=0, atol=0, equal_nan=True)
