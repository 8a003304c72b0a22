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


def test_a_folder_means_its_pictures_with_their_paths_as_names(tree, tmp_path):
    assert names([tree], tmp_path / "out") == ["a", "b/c", "b/d/e"]


def test_outputs_below_the_folder_are_no_inputs(tree):
    (tree / "out/depth").mkdir(parents=True)
    (tree / "out/depth/a.png").touch()
    assert names([tree], tree / "out") == ["a", "b/c", "b/d/e"]
    assert names([f"{tree}/**/*.png"], tree / "out") == ["a"]
    assert names([f"{tree}/b/*"], tree) == ["c"]  # here the inputs lie below the outputs' folder
    with pytest.raises(DataError, match="is the folder of the pictures itself"):
        inputs.find([str(tree)], tree)


def test_a_pattern_names_by_what_is_below_its_part_without_wildcards(tree, tmp_path):
    assert names([f"{tree}/b/*"], tmp_path / "out") == ["c"]
    assert names([f"{tree}/**/*.[wJ]*"], tmp_path / "out") == ["b/c", "b/d/e"]
    assert names([f"{tree}/*.mp4"], tmp_path / "out") == ["clip"]
    with pytest.raises(DataError, match="no file fits this pattern"):
        inputs.find([f"{tree}/*.tif"], tmp_path / "out")


def test_files_are_named_by_their_stem_and_counted_once(tree, tmp_path):
    assert names([tree / "b/c.JPG", tree / "a.png", tree / "a.png"], tmp_path / "out") == ["c", "a"]
    assert [
        item.is_video
        for item in inputs.find([str(tree / "clip.mp4"), str(tree / "a.png")], tmp_path)
    ] == [
        True,
        False,
    ]


def test_a_file_whose_name_has_wildcards_is_found(tree, tmp_path):
    (tree / "[x].png").touch()
    assert names([tree / "[x].png"], tmp_path / "out") == ["[x]"]


def test_what_is_not_there_is_told(tree, tmp_path):
    for argument, words in (
        (tree / "none.png", "no such file or folder"),
        (tmp_path / "w.pth", "weights by their name, no picture"),
    ):
        with pytest.raises(DataError, match=f"{argument}: {words}"):
            inputs.find([str(argument)], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures .* in or below it; videos are given by name"):
        inputs.find([str(tmp_path / "empty")], tmp_path / "out")


def test_two_that_would_have_the_same_outputs_are_refused(tree, tmp_path):
    (tree / "a.jpg").touch()
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would have the same outputs, a\.\*"):
        inputs.find([str(tree)], tmp_path / "out")
    (tree / "clip").mkdir()
    (tree / "clip/0.png").touch()
    with pytest.raises(DataError, match="would share the folder clip"):
        inputs.find([f"{tree}/clip*", f"{tree}/**/0.png"], tmp_path / "out")


def test_weights_are_told_from_inputs_by_their_look():
    assert [
        inputs.looks_like_input(word)
        for word in ("a.JPG", "x/*", "v.mp4", "best.pth", "work_dirs/a")
    ] == [
        *[True] * 3,
        *[False] * 2,
    ]


def test_a_pattern_enters_a_folder_once(tree, tmp_path):
    (tree / "b/up").symlink_to("..")
    assert names([f"{tree}/**/*.png"], tmp_path / "out") == ["a"]


def test_a_link_to_itself_is_an_input_whose_reading_tells(tree, tmp_path):
    (tree / "self.png").symlink_to("self.png")
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / "out", tmp_path / "loop"):
        assert "self" in names([tree], out)
        assert "self" in names([f"{tree}/*.png"], out)
        found = inputs.find([str(tree)], out)
        Outputs(out, 256.0, 10.0).check(found, overwrite=False)


def test_links_that_lead_back_end_at_every_door(tree, tmp_path):
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


def test_patterns_mean_what_glob_makes_of_them(tree, tmp_path):
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


def test_a_link_to_nothing_is_an_input_whose_reading_tells(tree, tmp_path):
    (tree / "gone.png").symlink_to("/nowhere")
    assert "gone" in names([tree], tmp_path / "out")
    assert names([tree / "gone.png"], tmp_path / "out") == ["gone"]
    assert "gone" in names([f"{tree}/*.png"], tmp_path / "out")


def test_a_folder_that_cannot_be_listed_is_named(tree, tmp_path, monkeypatch):
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
def test_pages_and_frames_of_a_picture_are_counted(name, count, tmp_path):
    pictures = [Image.new("RGB", (8, 6), (40 * level, 0, 0)) for level in range(3)]
    more = {} if count == 1 else {"save_all": True, "append_images": pictures[1:]}
    pictures[0].save(tmp_path / name, **more)
    if name == "torn.png":
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    assert inputs.frames_in(tmp_path / name) == count
