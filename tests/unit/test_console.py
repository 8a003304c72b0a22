"""Lines on the progress of a long job, in a file and on a terminal."""

import io

import pytest

from tiekd import console
from tiekd.console import Progress, printable


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


def test_progress_file_line_every_30_s(clock):
    """A file gets a plain line every 30 s and one at the end."""
    assert follow(clock, io.StringIO(), step_s=2.0, steps=40) == (
        "maps: 260/1000, 2.0/s, eta: 0:06:10\nmaps: 320/1000, 2.0/s, eta: 0:05:40\n"
        "maps: 360/1000, 2.0/s, eta: 0:05:24\n"
    )


def test_progress_terminal_rewrites_one_line(clock):
    """A terminal gets one line that is rewritten and padded to its longest."""
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


def test_progress_bar_fits_terminal_width(clock, monkeypatch):
    """The bar is full at the end and fits the terminal's width, or is left out."""
    for columns, bar in (("80", f"[{'=' * 30}]"), ("43", f"[{'=' * 5}]"), ("30", "")):
        monkeypatch.setenv("COLUMNS", columns)
        stream, done = Terminal(), [0]
        with Progress("frames", 697, lambda: done[0], stream):  # noqa: B023 - ends in the same turn
            done[0] = 697
            clock[0] += 70
        last = stream.getvalue().split("\r")[-1].rstrip(" \n")
        assert last == f"frames {bar}{' ' if bar else ''}697/697, 10.0/s, in 0:01:10"
        assert not bar or len(last) < int(columns)


def test_progress_in_files_false_writes_nothing(clock):
    """With `in_files=False` nothing is written to a file."""
    stream = io.StringIO()
    with Progress("frames", 10, lambda: 10, stream, in_files=False) as job:
        clock[0] += 100
        job.update()
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("clock")
def test_progress_failed_job_ends_line():
    """If a job fails, its line is ended, so that the message has its own."""
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Progress("frames", 10, lambda: 3, stream):
        raise ZeroDivisionError
    assert stream.getvalue().endswith("3/10, 0.0/s, eta ?\n")


@pytest.mark.usefixtures("clock")
def test_progress_without_rate_has_no_eta():
    """Without a rate the ETA is `?`."""
    stream = io.StringIO()
    Progress("maps", 10, lambda: 0, stream).finish()
    assert stream.getvalue() == "maps: 0/10, 0.0/s, eta: ?\n"


def test_printable_escapes_control_characters_alone():
    """C0, DEL and C1 are escaped; letters, bytes that aren't UTF-8 and what is kept stay."""
    assert printable("a\x1b[2Jb\x7f\x9bc\n") == r"a\x1b[2Jb\x7f\x9bc\x0a"
    assert printable("Straße 道\udcff") == "Straße 道\udcff"
    assert printable("a\tb\nc\x07", kept="\n\t") == "a\tb\nc\\x07"
