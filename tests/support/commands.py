"""The commands that the documents have a user type, and the files that they have them write.

A command is a line of a ```bash block, a span of `code` that begins with a program and has
arguments, and, in a table of what "you type", a cell that begins with an option: those belong
behind `bin/train.py RECIPE`. A block of code whose first line is a comment with a path is that
file.
"""

import re
from pathlib import Path
from typing import NamedTuple

DOCUMENTS = (
    "README.md",
    "bin/README.md",
    "bin/RUNS.md",
    "bin/MANY_MACHINES.md",
    "bin/TROUBLESHOOTING.md",
    "model_configs/README.md",
    "model_configs/DATA.md",
    "model_configs/YOUR_PARTS.md",
    "model_configs/COMING_FROM_MMCV.md",
    "ds_configs/README.md",
    "tiekd/README.md",
    "tiekd/tools/benchmarks/README.md",
    "CONTRIBUTING.md",
)
OF_TESTS = ("tests/README.md", "tests/golden/README.md")  # about the tests themselves
PROGRAM = re.compile(r"(\w+=\S+ )*(bin/\w|deepspeed |python |sh |srun |pip |printf |tensorboard )")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
OPTIONS_FOR = "bin/train.py RECIPE "


class Block(NamedTuple):
    """A block of code that is no command.

    file: the path in its first line, where it belongs; None where there is none.
    """

    language: str
    text: str
    file: str | None


def commands(root: Path, documents: tuple[str, ...] = DOCUMENTS) -> list[str]:
    """Returns all commands, each once, in the order of the documents."""
    found = [
        command
        for document in documents
        for command in of_text((root / document).read_text(encoding="utf-8"))
    ]
    return list(dict.fromkeys(found))


def of_text(text: str) -> list[str]:
    found, prose_from = [], 0
    for block in BLOCK.finditer(text):
        found += of_prose(text[prose_from : block.start()])
        prose_from = block.end()
        if block[1] == "bash":
            lines = block[2].replace("\\\n", " ").splitlines()
            found += [
                " ".join(without_comment(line).split())
                for line in lines
                if without_comment(line).strip()
            ]
    return found + of_prose(text[prose_from:])


def outside_blocks(text: str) -> list[str]:
    """Returns a document's paragraphs and tables, without its blocks of code."""
    return of_prose(BLOCK.sub("", text))


def of_prose(text: str) -> list[str]:
    """Returns the commands of paragraphs and tables.

    Where a table sets what was "then" typed elsewhere against ours, its first column is left out.
    """
    found, head = [], []
    for part in re.split(r"(^\|.*$)", text, flags=re.M):
        is_row = part.startswith("|")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", part)[1:-1]] if is_row else [part]
        if is_row and not head:
            head = cells
        elif not is_row and part.strip():
            head = []
        for cell in cells[1:] if head[:1] == ["then"] else cells:
            spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", cell)]
            if head[-1:] == ["you type"] and cell.startswith("`--"):
                found += [OPTIONS_FOR + span for span in spans if span.startswith("--")]
            found += [span for span in spans if PROGRAM.match(span) and " " in span]
    return found


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line)


def blocks(root: Path) -> list[Block]:
    """Returns the blocks of Python and YAML, in the order of the documents."""
    found = []
    for document in DOCUMENTS:
        for block in BLOCK.finditer((root / document).read_text(encoding="utf-8")):
            if block[1] in ("python", "yaml"):
                file = re.match(r"# (\S+\.(?:py|yaml))\n", block[2])
                found.append(Block(block[1], block[2], file and file[1]))
    return found
