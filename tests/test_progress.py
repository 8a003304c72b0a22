"""Lines on the progress of a long job, in a file and on a terminal."""

import io

import pytest

from tiekd import progress
from tiekd.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def follow(clock, stream, step_s: float, steps: int) -> str:
    """A job of 1000 of which 200 are there at the start; a step makes four."""
    done = [200]
    job = Progress("maps", 1000, lambda: done[0], stream)
    for _ in range(steps):
        clock[0] += step_s
        done[0] += 4
        job.update()
    clock[0] += 1
    job.finish()
    return stream.getvalue()


def test_a_file_gets_a_plain_line_every_half_minute_and_one_at_the_end(clock):
    assert follow(clock, io.StringIO(), step_s=2.0, steps=40) == (
        "maps: 260/1000, 2.0/s, eta: 0:06:10\nmaps: 320/1000, 2.0/s, eta: 0:05:40\n"
        "maps: 360/1000, 2.0/s, eta: 0:05:24\n"
    )


def test_a_terminal_gets_one_line_that_is_rewritten(clock):
    text = follow(clock, Terminal(), step_s=1.0, steps=6)
    lines = text.split("\r")
    assert lines[0] == "" and text.endswith("\n") and text.count("\n") == 1
    assert [line.strip() for line in lines[1:]] == [
        "maps: 208/1000, 4.0/s, eta: 0:03:18",
        "maps: 216/1000, 4.0/s, eta: 0:03:16",
        "maps: 224/1000, 4.0/s, eta: 0:03:14",
        "maps: 224/1000, 3.4/s, eta: 0:03:46",
    ]
    assert all(len(line.rstrip("\n")) == 60 for line in lines[1:])  # so that a shorter line hides a longer one


def test_no_rate_no_guess(clock):
    stream = io.StringIO()
    Progress("maps", 10, lambda: 0, stream).finish()
    assert stream.getvalue() == "maps: 0/10, 0.0/s, eta: ?\n"
