"""Makes the section with pictures of the worst, median and best validation frames."""

import numpy as np

from tiekd.tools.report.content import Content
from tiekd.tools.report.markup import Markup, joined, picture, plain, tag
from tiekd.tools.report.sections.parts import label
from tiekd.tools.report.shown_frames import LARGEST_ERROR, Shown
from tiekd.visualization import pictures

_KINDS = {"worst": "Worst frames", "median": "Median frames", "best": "Best frames"}


def frames_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section with pictures of frames, and their colour scales.

    Args:
        content: The content of the report; without shown frames the result is an empty list.
    """
    if not content.frame_pictures:
        return []
    end = content.max_depth_m * LARGEST_ERROR
    steps = np.linspace(0, 1, 256)[None]
    # Square the steps, because a depth's position on its colour scale is proportional to its square
    # root. Avoid a depth of 0, which is drawn as unknown.
    depths = pictures.colourise(
        np.maximum(content.max_depth_m * steps**2, 1e-6), content.max_depth_m
    )
    errors = pictures.paint_error(end * steps, end)
    parts = [
        label(content.validation),
        tag(
            "div",
            _scale("depth", depths, f"{content.max_depth_m:g} m"),
            _scale("difference and excess width", errors, f"{end:.3g} m and more"),
            class_="scales",
        ),
        tag(
            "p",
            "Dark grey is unknown. A confident pixel is dark in the last picture; where the "
            "student knows its mistakes, the last two pictures look alike.",
            class_="faint",
        ),
    ]
    for kind, title in _KINDS.items():
        of_kind = [each for each in content.frame_pictures if each.chosen.kind == kind]
        if of_kind:
            parts.append(tag("h3", title))
            parts += [_frame(each) for each in of_kind]
    return parts


def _scale(name: str, pixels: np.ndarray, end: str) -> Markup:
    """Returns the HTML of a colour scale, with its name above it and its ends below.

    Args:
        name: The quantity that the scale is for, such as "depth".
        pixels: (1, W, 3) uint8, the scale's colours from left to right.
        end: Text of the value at the right end, such as "80 m".
    """
    bar = picture(np.repeat(pixels, 8, axis=0), f"colour scale of {name} from 0 m to {end}")
    ends = tag("div", tag("span", "0 m"), tag("span", end), class_="ends")
    return tag("div", tag("div", name), bar, ends, class_="scale")


def _frame(shown: Shown) -> Markup:
    """Returns the HTML of one frame: its name, its abs_rel, and its pictures with titles.

    Args:
        shown: The frame.
    """
    name = shown.chosen.name
    cells = [
        tag("figure", picture(cell, f"{title} of {plain(name)}"), tag("figcaption", title))
        for title, cell in shown.pictures.items()
    ]
    caption = joined([tag("code", name), f", abs_rel {shown.chosen.abs_rel:.4f}"])
    style = "panels wide" if shown.is_wide else "panels"
    return tag("div", tag("p", caption), tag("div", *cells, class_=style), class_="frame")
