"""Reads the licence of a model from its model card, i.e. its README.md."""

from pathlib import Path

import yaml


def licence_in(card: Path) -> str | None:
    """Returns the licence that a model card names.

    Args:
        card: The path of the card, a README.md that begins with YAML between lines `---`.

    Returns:
        The value of the key `license` in this YAML. If it is `other`, the value of `license_name`,
        if there is one. None if there is no card, no YAML in it or no such key.
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
