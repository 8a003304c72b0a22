"""INPUTs of prediction: files, folders, patterns, their outputs' names, and refusals."""

import glob
import os

import pytest
from PIL import Image

from tiekd.errors import DataError
from tiekd.inference.predict import inputs
from tiekd.inference.predict.outputs import Outputs


@pytest.fixture
def tree(tmp_path):
    for name in ("a.png", "b/c.JPG", "b/d/e.webp", "b/d/notes.txt", "b/.hidden.png", "clip.mp4"):
        path = tmp_path / "pics" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "pics"


def names(arguments, out):
    return [item.name for item in inputs.find([str(argument) for argument in arguments], out)]


def test_find_folder_names_by_relative_path(tree, tmp_path):
    """A folder yields its images recursively, named by relative path, without hidden files."""
    assert names([tree], tmp_path / "out") == ["a", "b/c", "b/d/e"]


def test_find_skips_output_folder(tree):
    """Files below the output folder are no inputs, and --out equal to the input is rejected."""
    (tree / "out/depth").mkdir(parents=True)
    (tree / "out/depth/a.png").touch()
    assert names([tree], tree / "out") == ["a", "b/c", "b/d/e"]
    assert names([f"{tree}/**/*.png"], tree / "out") == ["a"]
    assert names([f"{tree}/b/*"], tree) == ["c"]  # here the inputs lie below the outputs' folder
    with pytest.raises(DataError, match="is the folder of the images itself"):
        inputs.find([str(tree)], tree)


def test_find_pattern_names_below_fixed_part(tree, tmp_path):
    """Names from a pattern start after its wildcard-free part; a pattern without match raises."""
    assert names([f"{tree}/b/*"], tmp_path / "out") == ["c"]
    assert names([f"{tree}/**/*.[wJ]*"], tmp_path / "out") == ["b/c", "b/d/e"]
    assert names([f"{tree}/*.mp4"], tmp_path / "out") == ["clip"]
    with pytest.raises(DataError, match="no file fits this pattern"):
        inputs.find([f"{tree}/*.tif"], tmp_path / "out")


def test_find_files_by_stem_without_duplicates(tree, tmp_path):
    """Files are named by their stem, repeated ones count once, and videos are marked."""
    assert names([tree / "b/c.JPG", tree / "a.png", tree / "a.png"], tmp_path / "out") == ["c", "a"]
    assert [
        item.is_video
        for item in inputs.find([str(tree / "clip.mp4"), str(tree / "a.png")], tmp_path)
    ] == [
        True,
        False,
    ]


def test_find_file_with_wildcard_name(tree, tmp_path):
    """An existing file whose name contains brackets is found literally."""
    (tree / "[x].png").touch()
    assert names([tree / "[x].png"], tmp_path / "out") == ["[x]"]


def test_find_rejects_missing_inputs(tree, tmp_path):
    """Missing files, weights given as images and folders without images raise a DataError."""
    for argument, words in (
        (tree / "none.png", "no such file or folder"),
        (tmp_path / "w.pth", "weights by their name, no image"),
    ):
        with pytest.raises(DataError, match=f"{argument}: {words}"):
            inputs.find([str(argument)], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images .* in or below it; videos are given by name"):
        inputs.find([str(tmp_path / "empty")], tmp_path / "out")


def test_find_rejects_colliding_outputs(tree, tmp_path):
    """Two inputs that would write the same outputs are rejected."""
    (tree / "a.jpg").touch()
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would have the same outputs, a\.\*"):
        inputs.find([str(tree)], tmp_path / "out")
    (tree / "clip").mkdir()
    (tree / "clip/0.png").touch()
    with pytest.raises(DataError, match="would share the folder clip"):
        inputs.find([f"{tree}/clip*", f"{tree}/**/0.png"], tmp_path / "out")


def test_looks_like_input_by_suffix_or_pattern():
    """Image and video names and patterns look like inputs; weights and work dirs do not."""
    assert [
        inputs.looks_like_input(word)
        for word in ("a.JPG", "x/*", "v.mp4", "best.pth", "work_dirs/a")
    ] == [
        *[True] * 3,
        *[False] * 2,
    ]


def test_find_pattern_ignores_parent_symlink(tree, tmp_path):
    """A recursive pattern lists a file once although a symlink leads back to its parent."""
    (tree / "b/up").symlink_to("..")
    assert names([f"{tree}/**/*.png"], tmp_path / "out") == ["a"]


def test_find_keeps_self_symlink(tree, tmp_path):
    """A symlink to itself is listed as an input and doesn't break the outputs' check."""
    (tree / "self.png").symlink_to("self.png")
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / "out", tmp_path / "loop"):
        assert "self" in names([tree], out)
        assert "self" in names([f"{tree}/*.png"], out)
        found = inputs.find([str(tree)], out)
        Outputs(out, 256.0, 10.0).check(found, overwrite=False)


def test_find_terminates_on_symlink_cycles(tree, tmp_path):
    """Folders and patterns terminate on symlink cycles and list each file once."""
    for place, target in (("latest", "."), ("b/up", ".."), ("b/d/top", str(tree))):
        (tree / place).symlink_to(target)
    assert names([tree], tmp_path / "out") == ["a", "b/c", "b/d/e"]
    assert sorted(names([f"{tree}/**/*.*g"], tmp_path / "out")) == ["a"]
    assert sorted(names([f"{tree}/**"], tmp_path / "out")) == [
        "a",
        "b/c",
        "b/d/e",
        "b/d/notes",
        "clip",
    ]
    assert names([f"{tree}/*/../a.png"], tmp_path / "out")


def test_find_pattern_equals_glob(tree, tmp_path):
    """Patterns match exactly the files that the standard library's glob matches."""
    for name in ("b/d/1.png", "b/d/.2.png", ".hidden/3.png", "x[1].png", "b/4.PNG"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    deep = ("**/*.png", "b/**/*", "**/d/*", "b/*/?.png", "**/.*", ".*/*.png", "b/**")
    for pattern in ("*", "*.png", "[ab]*", "*[[]1].png", *deep):
        found = {str(item.path) for item in inputs.find([f"{tree}/{pattern}"], tmp_path / "out")}
        expected = {
            path for path in glob.glob(f"{tree}/{pattern}", recursive=True) if os.path.isfile(path)
        }
        assert found == expected, pattern


def test_find_keeps_dangling_symlink(tree, tmp_path):
    """A dangling symlink is listed as an input, by folder, by name and by pattern."""
    (tree / "gone.png").symlink_to("/nowhere")
    assert "gone" in names([tree], tmp_path / "out")
    assert names([tree / "gone.png"], tmp_path / "out") == ["gone"]
    assert "gone" in names([f"{tree}/*.png"], tmp_path / "out")


def test_find_names_unreadable_folder(tree, tmp_path, monkeypatch):
    """A folder that can't be listed raises a DataError with its path and the reason."""
    scandir, listdir = os.scandir, os.listdir

    def denied(real):
        def look(place):
            if str(place) == str(tree / "b"):
                raise PermissionError(13, "Permission denied", str(place))
            return real(place)

        return look

    monkeypatch.setattr(os, "scandir", denied(scandir))
    monkeypatch.setattr(os, "listdir", denied(listdir))
    for argument in (tree, f"{tree}/*/*", f"{tree}/**/*.png"):
        with pytest.raises(
            DataError, match=rf"^{tree}/b: can't be listed \(Permission denied\); change"
        ):
            inputs.find([str(argument)], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "count"), [("a.webp", 3), ("a.png", 3), ("a.tif", 3), ("one.png", 1), ("torn.png", 1)]
)
def test_frames_in_counts_pages(name, count, tmp_path):
    """The frames of multi-page images are counted, and a torn file counts as one."""
    images = [Image.new("RGB", (8, 6), (40 * level, 0, 0)) for level in range(3)]
    more = {} if count == 1 else {"save_all": True, "append_images": images[1:]}
    images[0].save(tmp_path / name, **more)
    if name == "torn.png":
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    assert inputs.frames_in(tmp_path / name) == count
