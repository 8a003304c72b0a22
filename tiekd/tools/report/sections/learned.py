"""Makes the section on what a student learned from: images, teachers, licences, digests."""

import os
from collections.abc import Sequence

from tiekd.data import learned_from
from tiekd.tools.report.content import Content
from tiekd.tools.report.markup import Markup, facts, plain, table, tag
from tiekd.tools.report.records import Split

_FOLDERS_SHOWN = 8
_SPLITS = {"train": "training", "val": "validation"}


def learned_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section on images, teachers, their licences, and digests of files.

    Args:
        content: The content of the report.
    """
    records = content.records
    rows = [(_SPLITS.get(each.name, each.name), *_split_cells(each)) for each in records.splits]
    parts = []
    if rows:
        head = ("split", "images", "folders", "with depth files", "image files")
        parts.append(table(head, rows, "Images, as they were when the run began"))
        parts += [_folders(each) for each in records.splits if any(each.folders)]
    sizes = _sizes(content)
    about = [
        (
            f"data set {name}".strip(),
            f"{own.data.get('name')}, {own.data.get('root', 'no data.root')}",
        )
        for name, _, own in content.recipe.data_sets
    ]
    about += [
        ("listed in", _listed(records.splits)),
        ("size of images", sizes),
        ("working resolution", str(content.resize)),
    ]
    parts.append(facts((name, value) for name, value in about if value))
    parts.append(tag("h3", "Teachers"))
    parts += _teachers(content)
    parts.append(tag("h3", "Digests"))
    parts.append(facts(_digests(content)))
    return parts


def _split_cells(split: Split) -> tuple[object, ...]:
    depth = "" if split.with_depth is None else split.with_depth
    size = "" if split.num_bytes is None else f"{split.num_bytes / 1e6:.1f} MB"
    return split.count, len(split.folders) or "", depth, size


def _folders(split: Split) -> Markup:
    """Returns a collapsible HTML table of a split's largest folders and their numbers of images.

    Args:
        split: The split.
    """
    largest = split.folders.most_common(_FOLDERS_SHOWN)
    rows = [(name or ".", count) for name, count in largest]
    rest = len(split.folders) - len(rows)
    if rest:
        left = split.count - sum(count for _, count in largest)
        rows.append((f"{rest} more folders", left))
    title = tag("summary", f"Folders of the {_SPLITS.get(split.name, split.name)} frames")
    return tag("details", title, table(("folder", "images"), rows))


def _listed(splits: Sequence[Split]) -> str:
    return ", ".join(dict.fromkeys(each.source for each in splits if each.source))


def _sizes(content: Content) -> str:
    """Returns the sizes of the evaluated images as text, such as "480x640 (32)"; "" if none.

    Args:
        content: The content of the report.
    """
    found = content.validation or content.training
    if found is None:
        return ""
    sizes = found.measured.sizes.most_common(_FOLDERS_SHOWN)
    told = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes)
    more = len(found.measured.sizes) - len(sizes)
    return f"{told} and {more} more sizes" if more else told


def _teachers(content: Content) -> list[Markup]:
    teachers = content.records.teachers
    if teachers is None:
        told = [tag("p", "The weights don't say from which teachers they learned.")]
    elif not teachers:
        told = [tag("p", "None: the weights learned from measured depth alone.")]
    else:
        told = [tag("ul", *(tag("li", learned_from.describe(each)) for each in teachers))]
    notice = learned_from.licence_notice(teachers)
    return told if notice is None else [*told, tag("p", notice, class_="label")]


def _digests(content: Content) -> list[tuple[str, str]]:
    records = content.records
    found = [(f"{records.weights.name}, SHA-256", records.weights_digest)]
    for teacher in records.teachers or ():
        if teacher.get("digest"):
            model = teacher.get("model") or teacher["name"]
            found.append((f"{model}, the teacher", teacher["digest"]))
    if records.inputs is not None:
        for name, (path, crc) in records.inputs["files"].items():
            where = os.path.basename(str(path))
            found.append((f"{name}, CRC-32", f"{_hexadecimal(crc)} {where}"))
        for path, crc in records.inputs["recipe_files"].items():
            found.append((f"{os.path.basename(path)}, CRC-32", _hexadecimal(crc)))
    return found


def _hexadecimal(crc: object) -> str:
    return f"{crc:08x}" if isinstance(crc, int) else plain(crc)
