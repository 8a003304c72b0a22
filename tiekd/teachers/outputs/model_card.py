"""The licence that a model card names."""

from pathlib import Path

import yaml


def licence_in(card: Path) -> str | None:
    """Returns `license` of a README.md's front matter; None without card, front matter or entry.

    A card with `license: other` may name the licence in `license_name`, which is then returned.
    """
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return None
    try:
        node = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError:
        return None
    if not isinstance(node, dict) or not node.get("license"):
        return None
    if node["license"] == "other" and node.get("license_name"):
        return str(node["license_name"])
    return str(node["license"])
