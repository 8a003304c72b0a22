"""The rule that finds right images, and the pairs that it refuses."""

from pathlib import Path

import numpy as np
import pytest

from tiekd.data.frames import Frame
from tiekd.data.image_io import write_image
from tiekd.errors import TeacherError
from tiekd.teachers.pairs import right_images


def frames_in(
    folder: Path, count: int, rights: int, left: str = "image_02", right: str = "image_03"
) -> list[Frame]:
    """Writes `count` left images and the right ones of the first `rights` of them."""
    frames = []
    for index in range(count):
        for camera in (left, right)[: 1 + (index < rights)]:
            path = folder / camera / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, np.zeros((8, 12, 3), np.uint8))
        frames.append(Frame(f"{left}/{index}.png", f"{folder}/{left}/{index}.png", None, None))
    return frames


def refusal(frames, rule=None) -> str:
    with pytest.raises(TeacherError) as error:
        right_images.pairs_of(frames, rule)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("left", "rule", "right"),
    [
        ("d/image_02/data/1.png", right_images.KITTI, "d/image_03/data/1.png"),
        ("left/a/left/1_left.png", ("left", "right"), "left/a/left/1_right.png"),
        ("left/a/1.png", ("left/", "right/"), "right/a/1.png"),
        ("a/1.png", ("left", "right"), None),
    ],
)
def test_rule_replaces_the_last_occurrence(left, rule, right):
    """Folders above the data may have the text in their names, too."""
    assert right_images.right_of(left, rule) == right


def test_pairs_of_kitti_are_found_without_a_rule(tmp_path):
    """image_02 has image_03, and a missing right image is listed."""
    frames = frames_in(tmp_path, 4, 2)
    pairs, missing = right_images.pairs_of(frames, None)
    assert [pair.frame for pair in pairs] == frames[:2]
    assert [pair.right for pair in pairs] == [f"{tmp_path}/image_03/{i}.png" for i in (0, 1)]
    assert missing == frames[2:]


def test_pairs_of_mostly_missing_right_images_are_refused(tmp_path):
    """More than half are missing: the count, the first one and the file that isn't there."""
    message = refusal(frames_in(tmp_path, 5, 2))
    assert message.startswith("teacher.right: 3 of 5 frames have no right image, the first is ")
    assert f"image_02/2.png (no file at {tmp_path}/image_03/2.png)" in message


def test_pairs_of_a_rule_that_fits_no_path_are_refused(tmp_path):
    """Without KITTI's folders a rule is needed."""
    frames = frames_in(tmp_path, 2, 2, "l", "r")
    assert "'image_02' is in none of the 2 images' paths" in refusal(frames)
    pairs, _ = right_images.pairs_of(frames, ("/l/", "/r/"))
    assert len(pairs) == 2


def test_pair_of_two_sizes_is_refused(tmp_path):
    """Both files and their sizes are named."""
    frames = frames_in(tmp_path, 3, 3)
    write_image(tmp_path / "image_03" / "1.png", np.zeros((8, 14, 3), np.uint8))
    message = refusal(frames)
    assert f"{tmp_path}/image_03/1.png is 8x14 (height x width)" in message
    assert f"{tmp_path}/image_02/1.png 8x12; a rectified pair has one size" in message
