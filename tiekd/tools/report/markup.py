"""Builds HTML from text and tags, and escapes every text.

`tag` and `text` return `Markup`, a string that is HTML already. Any other value is escaped when it
becomes part of a tag, so a file name with `<` or quotes can't change the page. Left out: parsing,
and tags without an end, except those in _VOID.
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
    """HTML, which isn't escaped again."""

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
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON may have it
        data = said.encode("utf-8", "backslashreplace")
    return printable(data.decode("utf-8", "backslashreplace"), kept="\n\t")


def text(value: object) -> Markup:
    """Returns a value as escaped HTML; Markup is returned unchanged.

    Args:
        value: The value.
    """
    return value if isinstance(value, Markup) else Markup(html.escape(plain(value), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns an element.

    Args:
        name: The element's name, such as `p`.
        children: Its content; Markup as it is, everything else escaped.
        attributes: Its attributes. An underscore at the end of a name is dropped (`class_`), others
            become hyphens (`aria_label`). True gives an attribute without a value; None and False
            leave it out.
    """
    said = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{''.join(map(text, children))}</{name}>")


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Returns several values after each other as Markup.

    Args:
        parts: The values.
        between: Text between two of them.
    """
    return Markup(text(between).join(map(text, parts)))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> Markup:
    """Returns a table in a box of its own, which scrolls where the page is narrow.

    Args:
        head: The columns' titles. The first column is of names, the others are aligned right.
        rows: The rows, each with as many cells as `head`.
        caption: A line above the table.
    """
    titles = [tag("th", cell, scope="col") for cell in head]
    lines = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    made = tag("table", tag("thead", tag("tr", *titles)), tag("tbody", *lines))
    # A box that scrolls has to be reachable by the keyboard, and then needs a name. The caption
    # stands outside, where it wraps to the page and doesn't scroll.
    box = {"role": "region", "aria_label": caption or plain(head[0]) or "table", "tabindex": "0"}
    shown = [tag("p", caption, class_="caption")] if caption else []
    return joined([*shown, tag("div", made, class_="scroll", **box)])


def facts(pairs: Iterable[tuple[object, object]]) -> Markup:
    """Returns a list of names with their values.

    Args:
        pairs: (name, value) of each.
    """
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def picture(pixels: np.ndarray, description: str) -> Markup:
    """Returns an image whose file is in the page itself, as JPEG.

    Args:
        pixels: (H, W, 3) uint8.
        description: The text for those who can't see it.
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
