"""Extracts from the documents the commands to type and the files to write.

A command is a line of a ```bash block, or a span of `code` that begins with a program and has
arguments. In a table with the column "you type", a cell that begins with an option is a command,
too: the option is appended to `bin/train.py RECIPE`. A code block whose first line is a comment
with a path is the content of that file.
"""

import re
from pathlib import Path
from typing import NamedTuple

DOCUMENTS = (
    "README.md",
    "bin/README.md",
    "bin/DISTILL.md",
    "bin/RUNS.md",
    "bin/MANY_MACHINES.md",
    "bin/TROUBLESHOOTING.md",
    "model_configs/README.md",
    "model_configs/DATA.md",
    "model_configs/CAMERAS.md",
    "model_configs/TEACHERS.md",
    "model_configs/STEREO.md",
    "model_configs/YOUR_PARTS.md",
    "model_configs/COMING_FROM_MMCV.md",
    "model_configs/experiments/README.md",
    "ds_configs/README.md",
    "tiekd/README.md",
    "tiekd/tools/TEACHER_AUDIT.md",
    "tiekd/tools/benchmarks/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
OF_TESTS = ("tests/README.md", "tests/golden/README.md")  # documents about the tests
PROGRAM = re.compile(r"(\w+=\S+ )*(bin/\w|deepspeed |python |sh |srun |pip |printf |tensorboard )")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
OPTIONS_FOR = "bin/train.py RECIPE "


class Block(NamedTuple):
    """A code block of another language than bash.

    `file` is the path in its first line, to which the block is to be written; None without one.
    """

    language: str
    text: str
    file: str | None


def commands(root: Path, documents: tuple[str, ...] = DOCUMENTS) -> list[str]:
    """Returns the commands of all documents, each once, in the documents' order."""
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
    """Returns the commands in a document's paragraphs and tables, without its code blocks."""
    return of_prose(BLOCK.sub("", text))


def of_prose(text: str) -> list[str]:
    """Returns the commands in paragraphs and tables.

    The first column of a table is skipped if its heading is "then": it has commands of another
    project, beside ours.
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
    """Returns the code blocks of Python and YAML, in the order of the documents."""
    found = []
    for document in DOCUMENTS:
        for block in BLOCK.finditer((root / document).read_text(encoding="utf-8")):
            if block[1] in ("python", "yaml"):
                file = re.match(r"# (\S+\.(?:py|yaml))\n", block[2])
                found.append(Block(block[1], block[2], file and file[1]))
    return found
