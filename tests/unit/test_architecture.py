"""The drawing of the architecture, the trees in the documents and the folders agree."""

import re
from pathlib import Path

import draw_architecture

ROOT = Path(__file__).parents[2]
NO_PACKAGES = {"bin"}  # stands in the list of imports, beside tiekd/


def read_tree(document: str, under: str | None = None) -> list[tuple[int, str]]:
    """Returns the paths in the last tree of a document, each with its indent.

    If `under` is given, those below that entry.
    """
    blocks = re.findall(
        r"^```text\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S
    )
    entries = []
    for line in blocks[-1].splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.match(r"\s*((?:[\w/]+(?:\.py|/) ?)+)(?:  |$)", line)
        entries += [(indent, name) for name in (names[1].split() if names else [])]
    if under is None:
        return entries
    return [(indent - 2, name) for indent, name in entries[entries.index((0, under)) + 1 :]]


def top_level(entries: list[tuple[int, str]]) -> set[str]:
    """Names of packages and modules without suffix."""
    return {re.sub(r"\.py$|/$", "", name) for indent, name in entries if indent == 0}


def test_architecture_image_equals_script_output():
    """The stored architecture image is what its script draws."""
    assert draw_architecture.FIGURE.read_text(encoding="utf-8") == draw_architecture.draw()


def test_architecture_trees_list_same_packages():
    """Both README trees and the image name the same packages."""
    packages = {name for group in draw_architecture.read_groups() for name in group} - NO_PACKAGES
    assert len(packages) >= 16
    assert top_level(read_tree("tiekd/README.md")) - {"__init__"} == packages
    assert top_level(read_tree("README.md", under="tiekd/")) == packages


def test_architecture_tree_paths_exist():
    """Each path in tiekd/README.md exists, and each package is in it."""
    folders = {0: ROOT / "tiekd"}
    for indent, name in read_tree("tiekd/README.md"):
        path = folders[indent] / name
        assert path.exists(), path
        folders[indent + 2] = path
    assert top_level(read_tree("tiekd/README.md")) == {
        path.stem
        for path in (ROOT / "tiekd").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
