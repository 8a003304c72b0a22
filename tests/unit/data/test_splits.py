"""Split files: what a line may be, and what is said of any other."""

import os

import pytest

from tiekd.data.splits import SplitLine, read_lines, read_split, read_table
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


def test_read_split_with_or_without_ground_truth(tmp_path):
    """A line gives an image, alone or with ground truth and focal length."""
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
            "focal in pixels > 0; names with spaces can't be separated here",
        ),
        ("a 1 5 b.png 700", "focal in pixels > 0; names with spaces can't be separated here"),
        ("a.png b.png 700 1", "focal in pixels > 0; names with spaces can't be separated here"),
        ("a.png b.png", "a line is `image ground_truth focal`, focal in pixels > 0"),
    ],
)
@pytest.mark.parametrize("others", ["x.png y.png 7\n" * 3, ""])
def test_read_split_refuses_separators_and_blanks(tmp_path, line, told, others):
    """Other separators, and blanks in names, are refused with the line."""
    message = refused(tmp_path, others + line)
    assert told in message
    assert f"split.txt:{others.count('x.png') + 1}: got {line!r}" in message


def test_read_split_blank_in_name_list(tmp_path):
    """A blank in one of many names is refused as such."""
    message = refused(tmp_path, "a.png\nb.png\nmy c.png\n")
    assert (
        "split.txt:3: got 'my c.png', where most lines are a name alone; a line is such a name"
        in message
    )


def test_read_split_non_utf8_names(tmp_path):
    """Names that aren't UTF-8 are read as file names; a file that isn't text is refused."""
    (line,) = read(tmp_path, b"K\xe4fer.png b\xff.png 7\n")
    assert line.image == os.fsdecode(b"K\xe4fer.png")
    assert os.fsencode(line.ground_truth) == b"b\xff.png"
    for content in ("ä.png".encode("utf-16"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        assert "no text; a split file is UTF-8" in refused(tmp_path, content)


def test_read_lines_permission_denied_is_named(tmp_path, monkeypatch):
    """A file without read permission is reported as such and not as missing."""
    path = tmp_path / "split.txt"
    path.touch()

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "read_bytes", denied)
    with pytest.raises(DataError) as error:
        read_lines(path, "")
    told = "can't be read (Permission denied); change its permissions, or give another file"
    assert str(error.value) == f"{path}: {told}"


PLAIN = "a/1.png d/1.png 721.5\na/2.png None 5e2\n/b/3.png //d/3.png 721.5\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN[:-1],
        "a.png\n/b.png\n",
        # Lines that aren't plain: blank ones, tabs, other characters, a path called None.
        f"{PLAIN}\n",
        PLAIN.replace(" ", "\t"),
        PLAIN.replace("a/1", "ä/1"),
        PLAIN.replace("None", "/None"),
        PLAIN.replace("a/2", "a,2"),
        "\ufeffa.png b.png 7\n",
    ],
)
def test_read_table_is_read_split(tmp_path, content):
    """The table of a split file has the same lines, whether they are plain or not."""
    lines = read(tmp_path, content)
    table = read_table(tmp_path / "split.txt")
    assert [table.line(index) for index in range(len(table.images))] == lines


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "a.png b.png 7\n b.png 7\n",
        "a.png b.png 7\na.png b.png \n",
        "a.png b.png 7\na.png  7\n",
        "a.png b.png 7\na.png b.png 0\n",
        "a.png b.png 7\na.png b.png inf\n",
        "a.png b.png 7\na.png b.png x\n",
        "a b 7 d\ne 7\n",
        "a.png b.png 7\n../a.png b.png 7\n",
        "a.png\n/\n",
        "a.png\nb.png c.png\nd.png\n",
    ],
)
def test_read_table_refuses_what_read_split_refuses(tmp_path, content):
    """A malformed line has the message of `read_split`."""
    told = refused(tmp_path, content)
    with pytest.raises(DataError) as error:
        read_table(tmp_path / "split.txt")
    assert str(error.value) == told
