"""Split files: what a line may be, and what is said of any other."""

import os

import pytest

from tiekd.data.splits import SplitLine, read_lines, read_split
from tiekd.errors import DataError


def read(tmp_path, content):
    (tmp_path / "split.txt").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    return read_split(tmp_path / "split.txt")


def refused(tmp_path, content):
    with pytest.raises(DataError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/split.txt")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_lines_are_frames_with_or_without_ground_truth(tmp_path):
    lines = read(tmp_path, "a.png b.png 721.5\r\n\n/c.png\tNone  518\n")
    assert lines == [SplitLine("a.png", "b.png", 721.5), SplitLine("c.png", None, 518.0)]
    assert read(tmp_path, "a.png\nb,1.png\n") == [
        SplitLine("a.png", None, None),
        SplitLine("b,1.png", None, None),
    ]
    assert read(tmp_path, "a,1.png b,1.png 7")[0] == SplitLine("a,1.png", "b,1.png", 7.0)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a.png,b.png,721.5", "with blanks and no commas between them"),
        ("a.png;b.png;721.5", "with blanks and no commas between them"),
        ("a.png, b.png, 721.5", "with blanks and no commas between them"),
        ("a.png,None,721.5", "with blanks and no commas between them"),
        ("a.png,b.png", "with blanks and no commas between them"),
        (
            "my a.png my b.png 721.5",
            "focal in pixels > 0; names with blanks can't be told apart here",
        ),
        ("a 1 5 b.png 700", "focal in pixels > 0; names with blanks can't be told apart here"),
        ("a.png b.png 700 1", "focal in pixels > 0; names with blanks can't be told apart here"),
        ("a.png b.png", "a line is `image ground_truth focal`, focal in pixels > 0"),
    ],
)
@pytest.mark.parametrize("others", ["x.png y.png 7\n" * 3, ""])
def test_other_separators_and_blanks_in_names_are_refused_with_the_line(
    tmp_path, line, told, others
):
    message = refused(tmp_path, others + line)
    assert told in message
    assert f"split.txt:{others.count('x.png') + 1}: got {line!r}" in message


def test_a_blank_in_one_of_many_names_is_told_as_such(tmp_path):
    message = refused(tmp_path, "a.png\nb.png\nmy c.png\n")
    assert (
        "split.txt:3: got 'my c.png', where most lines are a name alone; a line is such a name"
        in message
    )


def test_names_that_are_no_utf8_are_read_as_names_of_files_are(tmp_path):
    (line,) = read(tmp_path, b"K\xe4fer.png b\xff.png 7\n")
    assert line.image == os.fsdecode(b"K\xe4fer.png")
    assert os.fsencode(line.ground_truth) == b"b\xff.png"
    for content in ("ä.png".encode("utf-16"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        assert "no text; a split file is UTF-8" in refused(tmp_path, content)


def test_a_file_that_may_not_be_read_is_not_said_to_be_missing(tmp_path, monkeypatch):
    path = tmp_path / "split.txt"
    path.touch()

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "read_bytes", denied)
    with pytest.raises(DataError) as error:
        read_lines(path, "")
    told = "can't be read (Permission denied); change its permissions, or give another file"
    assert str(error.value) == f"{path}: {told}"
