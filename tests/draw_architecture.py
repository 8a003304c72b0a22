"""Draws tiekd/architecture.svg: `python tests/draw_architecture.py`.

The packages come from the list in tiekd/README.md, so the figure has what the text has. The two
paths are written here. Equal texts give equal bytes, which tests/unit/test_architecture.py
compares.
"""

import re
from pathlib import Path

TIEKD = Path(__file__).resolve().parents[1] / "tiekd"
FIGURE = TIEKD / "architecture.svg"
WIDTH, MARGIN, BOX_HEIGHT, GAP = 1120, 20, 30, 10
PATHS = {
    "One iteration": [
        ("data", "Batch"),
        ("teachers", "target depth"),
        ("models", "Prediction"),
        ("losses", "weighted sum"),
        ("engine", "backward, step"),
        ("training", "hooks"),
    ],
    "One sample": [
        ("sampler", "(epoch, index)"),
        ("data set", "Sample"),
        ("worker", "scaled and cut"),
        ("collation", "WorkerBatch"),
        ("device", "augmented, metres"),
        ("loop", "Batch"),
    ],
}
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'font-family="Helvetica, Arial, sans-serif" font-size="13" text-anchor="middle">\n'
    '<rect width="{width}" height="{height}" fill="white"/>\n'
    '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="#666"/></marker>'
)


def read_groups() -> list[list[str]]:
    """The groups of packages, those that import nothing first."""
    text = (TIEKD / "README.md").read_text(encoding="utf-8")
    line = re.search(r"^```text\n(errors / .*?)^```$", text, re.M | re.S)[1]
    return [[name.strip() for name in group.split(",")] for group in line.split("/")]


def draw() -> str:
    """The figure, as SVG."""
    groups = read_groups()
    tallest = max(map(len, groups))
    lines = _titled("A package imports only packages to its left, and none of its own column", 24)
    lines += _columns(groups, top=40)
    top = 40 + tallest * (BOX_HEIGHT + GAP) + 30
    for title, steps in PATHS.items():
        lines += _titled(title, top) + _row(steps, top + 14)
        top += 90
    return "\n".join([HEAD.format(width=WIDTH, height=top - 20), *lines, "</svg>\n"])


def _columns(groups: list[list[str]], top: int) -> list[str]:
    pitch = (WIDTH - 2 * MARGIN + GAP) / len(groups)
    lines = []
    for column, names in enumerate(groups):
        for row, name in enumerate(names):
            left, y = MARGIN + column * pitch, top + row * (BOX_HEIGHT + GAP)
            lines += _box(left, y, pitch - GAP, BOX_HEIGHT, "#e8f0fb", [name])
    return lines


def _row(steps: list[tuple[str, str]], top: int) -> list[str]:
    pitch = (WIDTH - 2 * MARGIN + 3 * GAP) / len(steps)
    lines = []
    for number, labels in enumerate(steps):
        left = MARGIN + number * pitch
        lines += _box(left, top, pitch - 3 * GAP, 44, "#fbf1e0", labels)
        if number > 0:
            y = top + 22
            start, end = left - 3 * GAP, left - 2
            lines.append(
                f'<path d="M{start:.0f} {y}H{end:.0f}" stroke="#666" marker-end="url(#tip)"/>'
            )
    return lines


def _box(left: float, top: int, width: float, height: int, colour: str, labels) -> list[str]:
    lines = [
        f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{height}" rx="4" '
        f'fill="{colour}" stroke="#999"/>'
    ]
    for number, label in enumerate(labels):
        y = top + height / 2 + 5 + 17 * (number - (len(labels) - 1) / 2)
        weight = ' font-weight="bold"' if number == 0 else ""
        lines.append(f'<text x="{left + width / 2:.0f}" y="{y:.0f}"{weight}>{label}</text>')
    return lines


def _titled(title: str, y: int) -> list[str]:
    return [f'<text x="{MARGIN}" y="{y}" text-anchor="start" font-size="15">{title}</text>']


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
