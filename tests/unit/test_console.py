"""Lines on the progress of a long job, in a file and on a terminal."""

import io

import pytest

from tiekd import console
from tiekd.console import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "80")
    return now


def follow(clock, stream, step_s: float, steps: int) -> str:
    """A job of 1000 of which 200 are done at the start.

    A step makes four, and the end takes a second.
    """
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
    text = follow(clock, Terminal(), step_s=0.25, steps=4)
    lines = text.split("\r")
    assert lines[0] == ""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert [line.strip() for line in lines[1:]] == [
        "maps [======>                       ] 200/1000, 0.0/s, eta ?",
        "maps [======>                       ] 208/1000, 16.0/s, eta 0:00:50",
        "maps [======>                       ] 216/1000, 16.0/s, eta 0:00:49",
        "maps [======>                       ] 216/1000, 8.0/s, in 0:00:02",
    ]
    # A shorter line hides a longer one.
    assert len(lines[-1].rstrip("\n")) == len(lines[-2])


def test_the_bar_is_full_at_the_end_and_as_long_as_the_terminal_leaves_room_for(clock, monkeypatch):
    for columns, bar in (("80", f"[{'=' * 30}]"), ("43", f"[{'=' * 5}]"), ("30", "")):
        monkeypatch.setenv("COLUMNS", columns)
        stream, done = Terminal(), [0]
        with Progress("frames", 697, lambda: done[0], stream):  # noqa: B023 - ends in the same turn
            done[0] = 697
            clock[0] += 70
        last = stream.getvalue().split("\r")[-1].rstrip(" \n")
        assert last == f"frames {bar}{' ' if bar else ''}697/697, 10.0/s, in 0:01:10"
        assert not bar or len(last) < int(columns)


def test_files_that_are_to_have_no_bar_have_nothing(clock):
    stream = io.StringIO()
    with Progress("frames", 10, lambda: 10, stream, in_files=False) as job:
        clock[0] += 100
        job.update()
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("clock")
def test_the_message_of_a_job_that_fails_has_a_line_of_its_own():
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Progress("frames", 10, lambda: 3, stream):
        raise ZeroDivisionError
    assert stream.getvalue().endswith("3/10, 0.0/s, eta ?\n")


@pytest.mark.usefixtures("clock")
def test_no_rate_no_guess():
    stream = io.StringIO()
    Progress("maps", 10, lambda: 0, stream).finish()
    assert stream.getvalue() == "maps: 0/10, 0.0/s, eta: ?\n"
