"""Packages import only what stands to their left in `ORDER`: the one rule of tiekd's layout.

All imports are looked at, also those inside functions and under TYPE_CHECKING, and `import_module`
of a name that is written out.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import draw_architecture
import pytest

ROOT = Path(__file__).parents[2]
# Who stands together imports none of the others there.
ORDER = (
    "errors",
    "files console paths",
    "config distributed kernels",
    "workdir data",
    "models engine",
    "teachers losses evaluation",
    "teaching visualization",
    "training inference",
    "tools",
    "bin",
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms.split()}
# Beside the order: who may import a room at all, and what of it.
ONLY_FOR = {"engine": ("engine", "training", "tools")}
ONLY_THIS = {("inference", "distributed"): "tiekd.distributed.comm"}
OF_BIN = (
    *("tools", "inference", "training", "errors", "paths", "console"),
    "tiekd.distributed.entrypoint",
)
PARTS = (
    *("models/encoders", "models/necks", "models/decoders", "models/heads"),
    *("losses", "data/datasets", "training/hooks", "teachers"),
)


def arrows(root: Path) -> Iterator[tuple[str, int, str]]:
    """Returns (file, line, what is imported) of every import of tiekd's below `root`.

    A whole module is given by its dotted name.
    """
    files = [*(root / "tiekd").rglob("*.py"), *(root / "bin").glob("*.py")]
    programs = [path for path in (root / "bin").glob("*") if path.is_file() and not path.suffix]
    files += [path for path in programs if path.read_bytes().startswith(b"#!/usr/bin/env python")]
    for path in sorted(files):
        name = str(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in imported(node, path.relative_to(root)):
                if target == "tiekd" or target.startswith(("tiekd.", "deepspeed")):
                    yield name, node.lineno, target


def imported(node: ast.AST, path: Path) -> list[str]:
    """The dotted names that a statement or a call imports; a relative one as it is from the top."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = path.with_suffix("").parts[: -node.level] if node.level else ()
        base = ".".join([*package, *([node.module] if node.module else [])])
        found = []
        for alias in node.names:
            if base == "tiekd" and alias.name == "__version__":
                continue  # a text that has no other home
            below = ROOT / base.replace(".", "/") / alias.name
            is_module = below.is_dir() or below.with_suffix(".py").is_file()
            is_module |= base == "tiekd" and alias.name in LEVEL
            found.append(f"{base}.{alias.name}" if is_module else base)
        return found
    if (
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
    ):
        given = node.args[0] if node.args else None
        if isinstance(given, ast.JoinedStr) and given.values:
            given = given.values[0]
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            return [given.value.rstrip(".")]
    return []


def room_of(dotted: str) -> str:
    return dotted.split(".")[1] if "." in dotted else ""


def room_of_file(name: str) -> str:
    parts = Path(name).with_suffix("").parts
    return "bin" if parts[0] == "bin" else parts[1]


def broken(root: Path) -> list[tuple[str, str, str]]:
    """(file, what it imports, a line for people) of each arrow that breaks the rule."""
    found = []
    for name, line, target in arrows(root):
        here, there = room_of_file(name), room_of(target)
        if (
            here == "__init__" or here == there
        ):  # tiekd/__init__.py is the door, and imports when it is asked
            continue
        why = None
        if target.startswith("deepspeed"):
            if here == "inference":
                why = "inference takes no DeepSpeed"
        elif target == "tiekd":
            if here != "bin":
                why = "the names of tiekd itself are for others; import from where they are"
        elif there not in LEVEL:
            why = f"{there} has no place in ORDER"
        elif here not in LEVEL:
            why = f"{here} has no place in ORDER"
        elif LEVEL[there] > LEVEL[here]:
            why = f"{there} stands to the right of {here}"
        elif LEVEL[there] == LEVEL[here]:
            why = f"{there} stands beside {here}"
        elif here not in ONLY_FOR.get(there, (here,)):
            why = f"{there} is only for {' and '.join(ONLY_FOR[there][1:])}"
        elif here == "bin" and there not in OF_BIN and target not in OF_BIN:
            why = "bin imports tools, inference and training"
        elif not f"{target}.".startswith(f"{ONLY_THIS.get((here, there), target)}."):
            why = f"{here} may import only {ONLY_THIS[here, there]} of {there}"
        if why is not None:
            found.append((name, target, f"{name}:{line}: imports {target}: {why}"))
    return found


def test_imports_follow_package_order():
    """No import of tiekd or bin breaks the order of packages."""
    assert [line for *_, line in broken(ROOT)] == []


def test_import_order_lists_every_package():
    """ORDER lists each package and module, as tiekd/README.md does, and they are few."""
    packages = {path.parent.name for path in (ROOT / "tiekd").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "tiekd").glob("*.py")}
    assert packages | modules == {*LEVEL, "__init__"} - {"bin"}
    assert len(packages) <= 14
    assert len(modules) <= 6
    assert draw_architecture.read_groups() == [
        rooms.split() for rooms in ORDER
    ]  # of tiekd/README.md


def test_part_folders_hold_only_parts():
    """Each module in a folder of parts binds `build`; folders below hold what parts share."""
    for folder in PARTS:
        for path in (ROOT / "tiekd" / folder).iterdir():
            if path.name == "__init__.py" or path.is_dir():
                continue
            bound = {
                name
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                for name in (
                    [target.id for target in node.targets if isinstance(target, ast.Name)]
                    if isinstance(node, ast.Assign)
                    else [getattr(node, "name", "")]
                )
            }
            assert "build" in bound, path


PLANTED = {
    "an arrow up": ("tiekd/data/frames.py", "from tiekd.models.network import Prediction\n", 1),
    "an arrow up by the package": (
        "tiekd/config/recipe.py",
        "import os\nfrom tiekd import training\n",
        2,
    ),
    "a sibling": ("tiekd/losses/mse.py", "import tiekd.evaluation.metrics\n", 1),
    "a sibling module": ("tiekd/files.py", "from tiekd import console\n", 1),
    "inside a function": (
        "tiekd/workdir/a.py",
        "def f():\n    from tiekd.engine import build\n    return build\n",
        2,
    ),
    "by name": (
        "tiekd/kernels/a.py",
        "import importlib\nimportlib.import_module('tiekd.data.batch')\n",
        2,
    ),
    "by the beginning of a name": ("tiekd/kernels/a.py", "import_module(f'tiekd.models.{1}')\n", 1),
    "a relative one": ("tiekd/models/heads/a.py", "from ...training import hook\n", 1),
    "the engine": ("tiekd/teachers/a.py", "from tiekd.engine.build import build_engine\n", 1),
    "DeepSpeed": ("tiekd/inference/a.py", "def f():\n    import deepspeed\n", 2),
    "more than comm": ("tiekd/inference/a.py", "from tiekd.distributed import entrypoint\n", 1),
    "a body in bin": ("bin/a.py", "from tiekd.models.build import build_network\n", 1),
    "tiekd's own names": ("tiekd/training/a.py", "from tiekd import Hook\n", 1),
    "for types alone": (
        "tiekd/data/a.py",
        "if TYPE_CHECKING:\n    from tiekd.losses import dpm\n",
        2,
    ),
    "a room that nobody knows": ("tiekd/data/a.py", "from tiekd.utils import anything\n", 1),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_broken_names_line_of_wrong_import(planted, tmp_path):
    """Each kind of forbidden import is reported once, with file and line."""
    file, text, line = PLANTED[planted]
    for name, content in {
        "tiekd/models/fine.py": "from tiekd.data.frames import Frames\n",
        file: text,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = [told for *_, told in broken(tmp_path)]
    assert len(found) == 1
    assert found[0].startswith(f"{file}:{line}: imports ")


def test_broken_accepts_imports_to_the_left(tmp_path):
    """Allowed imports are not reported."""
    for file, text in {
        "tiekd/__init__.py": "from tiekd.training.hook import Hook\n",
        "tiekd/training/a.py": "from tiekd.engine.build import build_engine\n"
        "from tiekd.training import b\n",
        "tiekd/inference/a.py": "def f():\n    from tiekd.distributed.comm import is_main\n"
        "    return is_main\n",
        "bin/a.py": "from tiekd.tools import dry_run\n"
        "from tiekd.distributed.entrypoint import program\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert broken(tmp_path) == []
