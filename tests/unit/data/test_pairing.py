"""Images and depth maps without a partner.

They are counted and named; many are refused, with the rule that is likely meant.
"""

from pathlib import Path

import pytest

from tiekd.data.pairing import check_pairs, naming_rule
from tiekd.errors import DataError, RecipeError

IMAGES, DEPTHS = Path("pictures"), Path("depth")


def checked(images, depths, unmatched="refuse"):
    images = {name: f"{name}.jpg" for name in images}
    return check_pairs(IMAGES, DEPTHS, images, {name: f"{name}.png" for name in depths}, unmatched)


def refused(images, depths, unmatched="refuse"):
    with pytest.raises(DataError) as error:
        checked(images, depths, unmatched)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_check_pairs_complete_says_nothing():
    """Complete pairs give no message."""
    assert checked("abc", "cab") == []


def test_check_pairs_counts_and_names_unmatched():
    """Images and depth maps without a partner are counted and named."""
    depths_say, images_say = checked("abcdefg", "abcdefxy")
    assert depths_say == "2 of 8 depth maps in depth match no image, such as x.png, y.png"
    assert images_say == "1 of 7 images in pictures match no depth map, such as g.jpg"
    assert checked("abcd", "ab") == [
        "2 of 4 images in pictures match no depth map, such as c.jpg, d.jpg"
    ]


def test_check_pairs_refuses_majority_unmatched():
    """More than half without a partner is refused unless `unmatched` is `allow`."""
    told = refused("abcde", "ab")
    assert told.startswith(
        "data.depths: 3 of 5 images in pictures match no depth map, such as c.jpg, d.jpg, e.jpg. "
    )
    assert told.endswith("rename or link them; if that is meant, set data.unmatched=allow")
    assert len(checked("abcde", "ab", "allow")) == 1
    assert "3 of 5 depth maps in depth match no image" in refused("abc", "abxyz")
    assert len(checked("abc", "abxyz", "allow")) == 2
    assert checked("ab", "abxyz") == [
        "3 of 5 depth maps in depth match no image, such as x.png, y.png, z.png"
    ]  # a few images of many
    nothing = refused("ab", "xyz", "allow")
    assert "3 of 3 depth maps" in nothing
    assert "data.unmatched" not in nothing
    with pytest.raises(RecipeError, match="data.unmatched: got 'maybe'; allowed: refuse, allow"):
        checked("a", "a", "maybe")


NUMBERS = [f"{index:03d}" for index in range(12)]


@pytest.mark.parametrize(
    ("images", "depths", "rule"),
    [
        (NUMBERS, [f"depth_{n}" for n in NUMBERS], "depth_<image>"),
        (NUMBERS, [f"{n}_depth" for n in NUMBERS], "<image>_depth"),
        ([f"a/{n}" for n in NUMBERS], [f"a/d{n}z" for n in NUMBERS], "d<image>z"),
        ([f"image_{n}" for n in NUMBERS], NUMBERS, "<name> where the image is image_<name>"),
        (
            [f"s/rgb_{n}" for n in NUMBERS],
            [f"s/depth_{n}" for n in NUMBERS],
            "with depth where the image has rgb",
        ),
        (
            [f"{n}/rgb/x" for n in NUMBERS],
            [f"{n}/depth/x" for n in NUMBERS],
            "with depth where the image has rgb",
        ),
        (
            [f"IMG_{n}" for n in NUMBERS],
            [f"img_{n}" for n in NUMBERS],
            "like images but for upper and lower case",
        ),
        ([str(int(n)) for n in NUMBERS], NUMBERS, "like images but for leading zeros"),
        ([f"train/{n}" for n in NUMBERS], NUMBERS, "like images but for the folder"),
        (
            [f"K\u00e4fer{n}" for n in NUMBERS],
            [f"Ka\u0308fer{n}" for n in NUMBERS],
            "the way in which accents are",
        ),
        (["1", "2"], ["x", "y"], None),
        (["one"], ["depth_one"], "depth_<image>"),
    ],
)
def test_naming_rule_names_likely_rule(images, depths, rule):
    """`naming_rule` returns the likely rule of the depth maps' names, or None."""
    found = naming_rule(images, depths)
    assert found is None if rule is None else rule in found
    assert (f"; depth maps seem to be named {found}" in refused(images, depths)) == (
        rule is not None
    )


def test_check_pairs_hints_rule_for_few_unmatched():
    """A few depth maps with other names get the likely rule as a hint."""
    (depths_say, _) = checked(NUMBERS, [*NUMBERS[:9], *(f"depth_{n}" for n in NUMBERS[9:])])
    assert depths_say.endswith("depth_011.png; depth maps seem to be named depth_<image>")
