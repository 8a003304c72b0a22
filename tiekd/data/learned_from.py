"""Records in a weights file from which teachers a student learned, with their licences.

The record is a list under the key `teachers`, with one dict per teacher:

    {"name": "huggingface", "model": "DepthPro-hf", "architecture": "depth_pro", "revision": null,
     "licence": "apple-amlr", "output": "metres", "digest": 64 hexadecimal digits}

Listed are also a teacher's anchor (the network whose depth gives a relative teacher its scale), the
teachers of a teacher, and those of the initial weights, because a licence that restricts the use of
their weights may restrict the use of the student. An empty list means that the student learned from
ground truth alone. Weights without the key say nothing about teachers. Exported files contain the
same list as JSON text. Not covered: pretrained encoders and published initial weights, which aren't
teachers, and any judgement of a licence beyond its name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from tiekd.console import printable
from tiekd.files import instead_of_file

KEY = "teachers"  # the record's key in a weights file, a manifest and an exported file
NETWORK = "network"  # the name of a teacher that is a network of this project
MAPS = "maps"  # the name of a teacher of which nothing is known but its maps
# A teacher as a dict of plain values, whose keys the module's docstring shows.
Teacher = dict[str, str | bool | None]

_KEYS = ("model", "architecture", "revision", "licence", "package", "output", "digest")
# First words of the names of licences that allow commercial use.
_FREE = ("apache", "mit", "bsd", "isc", "zlib", "unlicense", "cc0", "gpl", "lgpl", "agpl", "mpl")
# Words in the names of licences that forbid commercial use, or allow research only. `amlr` is
# Apple's licence for models.
_LIMITED = ("nc", "noncommercial", "research", "amlr")


def of_description(description: Mapping) -> list[Teacher]:
    """Returns a list with a teacher from outside the project, its own teachers and its anchor.

    The anchor is the network whose depth gives a relative teacher its scale. Each of these networks
    is one dict, as in a weights file's list of teachers.

    Args:
        description: The teacher's `FoundationTeacher.description`. If the teacher is a student that
            this project exported, it contains the list of the student's own teachers under KEY.
    """
    values = {key: description.get(key) for key in _KEYS}
    own = {"name": str(description.get("name"))}
    own |= {key: value if isinstance(value, str) else None for key, value in values.items()}
    taught_by = from_plain(description)
    if taught_by is not None:
        own["ours"] = True
    anchor = description.get("anchor")
    anchors = of_description(anchor) if isinstance(anchor, Mapping) else []
    return union([own], taught_by, anchors)


def of_network(digest: str, weights: Path | None, recipe: str | None) -> list[Teacher]:
    """Returns a list with a teacher that is a network of this project, and with its own teachers.

    Each of them is one dict, as in a weights file's list of teachers. The network's own teachers
    are read from its weights file.

    Args:
        digest: The digest of the network's weights.
        weights: The file of the network's weights; None if unknown.
        recipe: The name of the network's recipe; None if unknown.
    """
    content = _content(weights)
    taught_by = from_plain(content)
    # Mark the network as this project's own only if its weights list their teachers. Other weights
    # (published, imported, or of an older version of this project) count as those of a teacher
    # whose licence isn't stated.
    is_ours = isinstance(content.get("network"), Mapping) and taught_by is not None
    own = {"name": NETWORK, "model": recipe, "licence": None, "digest": digest, "ours": is_ours}
    return union([own], taught_by)


def of_manifest(manifest: Mapping | None, folder: Path) -> list[Teacher]:
    """Returns the list of the teachers from which cached maps come, as their manifest names them.

    Args:
        manifest: The manifest of the maps. None if there is none: the list then has one teacher,
            named by the folder, without a licence.
        folder: The folder of the maps.
    """
    if manifest is None:
        return [{"name": MAPS, "model": folder.name, "licence": None, "digest": None}]
    recorded = from_plain(manifest)
    if recorded is not None:
        return recorded
    # Build the list from the manifest's description of the teacher, or from its recipe's network
    # node: the manifest is of a version of tiekd that didn't record the list itself.
    node = manifest.get("teacher_network") or {}
    name = str(node.get("name", NETWORK))
    digest = manifest.get("teacher_digest")
    return of_description({**node, "name": name, "digest": digest})


def union(*lists: Iterable[Teacher] | None) -> list[Teacher]:
    """Joins several lists of teachers to one without repetitions, in the order of first mention.

    Args:
        lists: The lists; None is left out.
    """
    found = []
    for teachers in lists:
        found += [teacher for teacher in teachers or () if teacher not in found]
    return found


def from_plain(content: Mapping) -> list[Teacher] | None:
    """Returns the list of teachers in the content of a weights file or of a manifest.

    Args:
        content: The content. Its entry KEY is the list, or JSON text of it, as in exported files.
            The result is None if there is no such entry, or if it isn't a list of teachers.
    """
    teachers = content.get(KEY)
    if isinstance(teachers, str):
        try:
            teachers = json.loads(teachers)
        except ValueError:
            return None
    if not isinstance(teachers, list) or not all(map(_is_teacher, teachers)):
        return None
    return [dict(teacher) for teacher in teachers]


def read(weights: Path | None) -> list[Teacher] | None:
    """Returns the list of the teachers from which a student learned, from its weights file.

    The file is memory-mapped, so the weights themselves aren't read.

    Args:
        weights: The file. The result is None if `weights` is None, if torch can't load the file, or
            if the file doesn't say from which teachers the student learned.
    """
    return from_plain(_content(weights))


def describe(teacher: Mapping) -> str:
    """Returns a teacher's name, origin, licence and digest as one line of text.

    Args:
        teacher: One teacher of a list as in weights files, or a `FoundationTeacher.description`.
    """
    parts = [_name(teacher)]
    if teacher.get("revision"):
        parts.append(f"revision {teacher['revision']:.12}")
    if teacher.get("output"):
        parts.append(f"output {teacher['output']}")
    if not teacher.get("ours"):
        parts.append(f"licence {teacher.get('licence') or 'not stated'}")
    if teacher.get("digest"):
        parts.append(f"digest {teacher['digest']:.12}")
    return printable(", ".join(parts))


def lines(teachers: Iterable[Teacher] | None) -> list[str]:
    """Returns one line per teacher for a program's output.

    Args:
        teachers: The list of teachers in a weights file; None, for which the result is an empty
            list, if the file has no such list.
    """
    return [f"Learned from: {describe(teacher)}" for teacher in teachers or ()]


def licence_notice(teachers: Iterable[Teacher] | None) -> str | None:
    """Returns a line about teachers with a non-commercial or unknown licence; None without such.

    Networks that were trained with this project are left out; their own teachers are in the list.

    Args:
        teachers: The list of teachers in a weights file. None if the file has no such list: the
            line then says that the teacher's licence isn't known.
    """
    if teachers is None:
        return (
            "Licence: the weights don't say from which teacher they learned, so its licence isn't "
            "known"
        )
    found = [
        f"{_name(teacher)} ({remark})"
        for teacher in teachers
        if (remark := _remark(teacher)) is not None
    ]
    if not found:
        return None
    names = printable(", ".join(found))
    return (
        f"Licence: it learned from teachers whose terms may restrict its use: {names}; read them "
        "before you pass it on"
    )


def _remark(teacher: Teacher) -> str | None:
    """Returns a remark on a teacher's licence; None for a licence that allows commercial use."""
    if teacher.get("ours"):
        return None
    licence = teacher.get("licence")
    if not licence:
        return "licence not stated"
    words = re.findall(r"[a-z0-9]+", licence.lower())
    joined = "".join(words)
    if any(word in words for word in _LIMITED) or "noncommercial" in joined:
        return f"{licence}, non-commercial or for research"
    is_free = words[:2] == ["cc", "by"] and "nd" not in words
    is_free = is_free or any(word in _FREE for word in words[:1])
    return None if is_free else f"{licence}, of unknown terms"


def _name(teacher: Mapping) -> str:
    name, model = teacher["name"], teacher.get("model")
    if name == MAPS:
        return f"cached maps {model} of an unknown teacher"
    if name == NETWORK:
        return f"the network of {model}" if model else "a network of this project"
    named = name if model is None else f"{name} {model}"
    return f"{named} ({teacher['architecture']})" if teacher.get("architecture") else named


def _is_teacher(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("name"), str)
        and all(item is None or isinstance(item, str | bool) for item in value.values())
        and all(isinstance(value.get(key), str | None) for key in _KEYS)
    )


def _content(weights: Path | None) -> Mapping:
    if weights is None or instead_of_file(weights):
        return {}
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001 - loading the weights reports the error
        return {}
    return content if isinstance(content, Mapping) else {}
