"""Files below a folder.

Each is listed once, whatever links there are, and nothing that can't be listed is passed over.
"""

import os

import pytest

from tiekd.data import listing
from tiekd.data.listing import list_files, listed_once, once, unlistable


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.png", "a/1.png", "a/c/3.png", "0.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "tree"


FILES = ["0.png", "a/1.png", "b/2.png", "a/c/3.png"]


def refuse(error):
    raise unlistable(error, "or else")


def test_list_files_skips_link_to_self(tree):
    """A link to the folder itself is reported and not followed."""
    (tree / "latest").symlink_to(".")
    assert list_files(tree, refuse) == (FILES, ["latest"])


def test_list_files_skips_repeated_folders(tree):
    """Links to folders that are listed anyway are reported and not followed."""
    (tree / "latest").symlink_to(".")
    (tree / "also").symlink_to(tree)
    (tree / "a/c/up").symlink_to("../..")
    (tree / "a_first").symlink_to("b")  # its name comes before the folder's own
    found = list_files(tree, refuse)
    assert found.files == FILES
    assert sorted(found.repeated) == ["a/c/up", "a_first", "also", "latest"]


def test_list_files_follows_outside_link_once(tree, tmp_path):
    """A link to another folder is followed once."""
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/4.png").touch()
    (tmp_path / "elsewhere/home").symlink_to(tree)
    for name in ("x", "y"):
        (tree / name).symlink_to(tmp_path / "elsewhere")
    found = list_files(tree, refuse)
    assert found.files == [*FILES, "x/deep/4.png"]
    assert found.repeated == ["y", "x/home"]


def test_list_files_keeps_links_to_files_and_pipes(tree):
    """Links to files, broken links and pipes are listed as files."""
    (tree / "linked.png").symlink_to("0.png")
    (tree / "gone.png").symlink_to("nowhere")
    (tree / "itself.png").symlink_to("itself.png")
    os.mkfifo(tree / "pipe.png")
    (tree / "folder.png").mkdir()
    (tree / "folder.png/5.png").touch()
    names = {"linked.png", "gone.png", "itself.png", "pipe.png", "folder.png/5.png", *FILES}
    assert set(list_files(tree, refuse).files) == names


def test_list_files_leave_out(tree):
    """`leave_out` leaves a folder out."""
    assert list_files(tree, refuse, leave_out=tree / "a").files == ["0.png", "b/2.png"]
    assert list_files(tree, refuse, leave_out=tree / "nowhere").files == FILES


def test_list_files_unlistable_folder(tree, monkeypatch):
    """A folder that can't be listed raises an error or is left out by the caller's choice."""
    scandir = os.scandir

    def denied(place):
        if str(place).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(listing.os, "scandir", denied)
    with pytest.raises(listing.DataError) as error:
        list_files(tree, refuse)
    assert (
        str(error.value)
        == f"{tree / 'a'}: can't be listed (Permission denied); change its permissions, or else"
    )
    errors = []
    assert list_files(tree, errors.append).files == ["0.png", "b/2.png"]
    assert [error.filename for error in errors] == [str(tree / "a")]


def test_list_files_non_utf8_names(tree):
    """Names that aren't UTF-8 are listed."""
    os.mknod(os.fsencode(tree) + b"/K\xe4fer.png")
    assert os.fsencode(list_files(tree, refuse).files[1]) == b"K\xe4fer.png"


def test_once_makes_anew_outside_of_listed_once():
    """Inside the block each key is made once; outside nothing is kept."""
    made = []

    def make(value):
        made.append(value)
        return [value]

    assert once("a", lambda: make(1)) == once("a", lambda: make(1)) == [1]
    assert made == [1, 1]
    with listed_once():
        first = once(("a", [2]), lambda: make(2))
        assert once(("a", [2]), lambda: make(4)) is first
        assert once(("b", [2]), lambda: make(5)) == [5]
    assert made == [1, 1, 2, 5]
    assert once(("a", [2]), lambda: make(6)) == [6]
