"""Output folders from which a data set reads are refused."""

from pathlib import Path

import pytest

from tiekd.data import read_folders
from tiekd.errors import LaunchError

FOLDER = {"name": "folder", "images": "pictures", "depths": "truth"}
KITTI = {"name": "kitti"}
MAPS = {"teacher.maps": "maps"}


@pytest.mark.parametrize(
    ("data", "out", "suffix", "told"),
    [
        (FOLDER, "pictures", ".txt", "pictures (data.images); give a folder outside of it"),
        (FOLDER, "pictures/a/b", ".png", "pictures (data.images); "),
        (FOLDER, "pictures/a/b", ".npy", None),
        (FOLDER, "truth/a", ".npy", "truth (data.depths); "),
        (FOLDER, "truth/a", ".txt", None),
        (FOLDER, "link", ".png", "pictures (data.images); "),
        (FOLDER, "pictures2", ".png", None),
        (FOLDER, "gt_kd", ".png", None),
        (FOLDER | {"images": "."}, "gt_kd", ".png", ". (data.images); "),
        (FOLDER | {"decoded": "fast"}, "fast", ".png", "fast (data.decoded); "),
        (KITTI, "input/2011", ".txt", "input (data.image_folder); "),
        (KITTI | {"image_folder": "test"}, "input", ".png", None),
        (KITTI, "gt_depth", ".png", "gt_depth (data.gt_depth); "),
        (KITTI, "maps", ".png", "maps (teacher.maps); "),
        ({"name": "a.module"}, "pictures", ".png", None),
        ({}, "pictures", ".png", None),
    ],
)
def test_refuse_names_option_and_folder(data, out, suffix, told, tmp_path):
    """A folder that is read is refused, and so is one below it whose files would be listed."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "link").symlink_to("pictures")
    data = data | {"root": str(tmp_path)}
    if told is None:
        read_folders.refuse("--out", tmp_path / out, (suffix,), data, MAPS)
        return
    with pytest.raises(LaunchError) as error:
        read_folders.refuse("--out", tmp_path / out, (suffix,), data, MAPS)
    message = str(error.value)
    assert message.startswith(f"--out {tmp_path / out}: the data set reads from {tmp_path}")
    assert str(Path(told.partition(" ")[0])) in message
    assert told.partition(" ")[2] in message


def test_refuse_allows_the_programs_own_folder(tmp_path):
    """The cache's program fills the folder that data.decoded names, unless it is also another."""
    data = FOLDER | {"root": str(tmp_path), "decoded": "fast"}
    own = read_folders.DECODED
    read_folders.refuse(own, tmp_path / "fast", (".npy",), data, own=own)
    data["decoded"] = "pictures"
    with pytest.raises(LaunchError, match=r"data.decoded .*pictures \(data.images\)"):
        read_folders.refuse(own, tmp_path / "pictures", (".npy",), data, own=own)
