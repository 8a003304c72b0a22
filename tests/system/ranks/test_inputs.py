"""Every rank refuses changed inputs, which rank 0 alone has read."""

from pathlib import Path

from support import two_ranks
from support.recorded_run import Run, write_frame

from tiekd.errors import CheckpointError
from tiekd.training import input_changes


def compare_on_a_rank(rank: int, folder) -> str:
    """Only rank 0 has the records."""
    run = started = now = None
    if rank == 0:
        run = Run(folder)
        started = run.record()
        write_frame(folder / "data", "zz")
        now = run.record(started)
    try:
        input_changes.compare_or_refuse(started, now, Path("w/iter_3"), accept=False)
    except CheckpointError as error:
        return str(error)
    return ""


def test_compare_or_refuse_on_every_rank(tmp_path):
    """Every rank raises the refusal that only rank 0 can see."""
    first, second = two_ranks.run(compare_on_a_rank, tmp_path, tmp_path)
    assert first == second
    assert "1 train frames were added (zz.png)" in first
