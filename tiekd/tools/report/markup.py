"""Builds HTML from text and tags, and escapes every text.

`tag` and `text` return `Markup`, a string that is HTML already. Any other value is escaped when it
becomes part of a tag, so a file name with `<` or quotes can't change the page. Not covered:
parsing, and tags without an end, except those in _VOID.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from tiekd.console import printable

_VOID = ("br", "img", "meta")
_JPEG_QUALITY = 88


class Markup(str):
    """A string that is HTML already, so that it isn't escaped when it becomes part of a tag."""

    __slots__ = ()


def plain(value: object) -> str:
    r"""Returns a value as text that UTF-8 can encode, without control characters.

    Bytes of a file name that aren't UTF-8, which Python represents by surrogates, become \xNN.

    Args:
        value: The value.
    """
    said = str(value)
    try:
        data = said.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # JSON text may have surrogates that stand for no byte
        data = said.encode("utf-8", "backslashreplace")
    return printable(data.decode("utf-8", "backslashreplace"), kept="\n\t")


def text(value: object) -> Markup:
    """Returns a value as escaped HTML; Markup is returned unchanged.

    Args:
        value: The value.
    """
    return value if isinstance(value, Markup) else Markup(html.escape(plain(value), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns an HTML element as Markup, such as `<p class="faint">text</p>`.

    Args:
        name: The element's name, such as `p`.
        children: The element's content. Markup is inserted unchanged, everything else is escaped.
        attributes: The element's attributes. An underscore at the end of a name is dropped
            (`class_`), others become hyphens (`aria_label`). True gives an attribute without a
            value; None and False leave the attribute out.
    """
    said = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{''.join(map(text, children))}</{name}>")


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Returns several values after each other as one piece of HTML.

    Args:
        parts: The values. Markup is inserted unchanged, everything else is escaped.
        between: Text between two of them.
    """
    return Markup(text(between).join(map(text, parts)))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> Markup:
    """Returns an HTML table, in a box that scrolls sideways where the page is narrow.

    Args:
        head: The columns' titles. The first column has names, the others are aligned right.
        rows: The rows, each with as many cells as `head`.
        caption: A line above the table.
    """
    titles = [tag("th", cell, scope="col") for cell in head]
    lines = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    made = tag("table", tag("thead", tag("tr", *titles)), tag("tbody", *lines))
    # Make the box reachable by the keyboard, which then needs a name, since it scrolls. Put the
    # caption outside of the box, so that it wraps instead of scrolling.
    box = {"role": "region", "aria_label": caption or plain(head[0]) or "table", "tabindex": "0"}
    shown = [tag("p", caption, class_="caption")] if caption else []
    return joined([*shown, tag("div", made, class_="scroll", **box)])


def facts(pairs: Iterable[tuple[object, object]]) -> Markup:
    """Returns an HTML list of names with their values, an element `dl`.

    Args:
        pairs: (name, value) of each entry.
    """
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def picture(pixels: np.ndarray, description: str) -> Markup:
    """Returns an HTML element `img` that contains the image as JPEG, so that no file is needed.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        description: The image's text for readers who can't see it (attribute `alt`).
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    source = f"data:image/jpeg;base64,{data}"
    return tag("img", src=source, alt=description, width=width, height=height, loading="lazy")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(plain(value))}"'
