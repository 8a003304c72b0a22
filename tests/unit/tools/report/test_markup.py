"""HTML from values: what is escaped, and what is Markup already."""

import base64
import io
import os
import re

import numpy as np
import pytest
from PIL import Image

from tiekd.tools.report.markup import Markup, facts, picture, plain, table, tag, text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<b>\"x\" & 'y'", "&lt;b&gt;&quot;x&quot; &amp; &#x27;y&#x27;"),
        (3.5, "3.5"),
        (os.fsdecode(b"\xffa"), "\\xffa"),
        ("\ud800", "\\ud800"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("é\n", "é\n"),
    ],
)
def test_text_escapes(value, expected):
    """Signs of HTML, bytes that aren't UTF-8 and control characters are escaped."""
    assert text(value) == expected
    assert text(text(value)) == expected  # Markup isn't escaped again
    assert plain(value).encode("utf-8")


def test_tag_escapes_children_and_attributes():
    """A child that is no Markup and every attribute are escaped; names follow HTML."""
    made = tag("p", "a<b", Markup("<i>"), class_='x"y', aria_label="<", hidden=True, id=None)
    assert made == '<p class="x&quot;y" aria-label="&lt;" hidden>a&lt;b<i></p>'
    assert tag("img", alt=Markup("<b>")) == '<img alt="&lt;b&gt;">'


def test_table_has_its_own_box():
    """A table stands in a box that scrolls, which the keyboard reaches; its cells are escaped."""
    made = table(("a", "b"), [("<x>", 1)], "c&d")
    box = '<div class="scroll" role="region" aria-label="c&amp;d" tabindex="0"><table>'
    assert made.startswith(f'<p class="caption">c&amp;d</p>{box}')
    assert '<th scope="row">&lt;x&gt;</th><td>1</td>' in made
    assert facts([("k", "<")]) == "<dl><div><dt>k</dt><dd>&lt;</dd></div></dl>"


def test_picture_is_in_the_page():
    """An image is a JPEG in the page, of the pixels' size, nearly as they are."""
    pixels = np.tile(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], (20, 1, 3))
    made = picture(pixels, '"<')
    assert 'alt="&quot;&lt;" width="40" height="20"' in made
    data = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", made)[1])
    back = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(back - pixels).max() <= 12
