"""Shows that a change of tiekd/ changes no number: digests of what the programs in bin/ compute.

    python tests/digests.py --save before.txt --keep kept     at the commit before
    python tests/digests.py --compare before.txt              at the commit after: the same numbers?
    python tests/digests.py --compare before.txt --from kept  runs, weights and caches of before

Training at ZeRO 0 to 3, in bf16 and with accumulated gradients, on one rank and two; a run that is
killed and resumed, and resumes with other ranks at another stage; a student for each encoder, neck,
decoder, head, loss and data set; teacher maps, decoded frames, evaluation, prediction, exported
files. A line a digest, `NAME  DIGEST`; a digest whose name ends in .words is of text for people.
With --from only those cases run that use files of before; they must give the digests that the
checkout that made the files got from them.

On CPUs; 0.4 GB of disk, and 15 minutes on two cores that others used, too. Nothing is imported
from tiekd. Digests of two machines, or of two versions of torch, differ. Exit code 1: some digest
differs, a program failed, or a part of tiekd has no case.
"""

import argparse
import fnmatch
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

# Before numpy and torch are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}

import torch  # noqa: E402
from digest_cases import CASES, Case, moved  # noqa: E402
from digest_lab import WORDS, CaseFailed, Lab  # noqa: E402
from digest_recipes import PARTS, recipes  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MADE, USED, TEXTS, DIGESTS, PLACE = "made", "used", "texts", "digests.txt", "made_at.txt"
NAMES_BUILD = re.compile(r"^(build = |def build\((?!\w*node\b))", re.M)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        default=["*"],
        help="cases to show, such as 'zero*'; what they need runs, too",
    )
    parser.add_argument("--save", metavar="FILE", type=Path, help="write the digests")
    parser.add_argument("--compare", metavar="FILE", type=Path, help="show both side by side")
    parser.add_argument(
        "--words-may-differ", action="store_true", help="of text for people: exit code 0"
    )
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep what was made, in a new DIR")
    parser.add_argument("--from", metavar="DIR", type=Path, dest="source", help="use what was kept")
    parser.add_argument("--checkout", metavar="DIR", type=Path, default=ROOT, help="whose bin/")
    parser.add_argument("--port", type=int, default=29800, help="first port of the launcher")
    args = parser.parse_args()
    if args.keep is not None and args.keep.exists() and any(args.keep.iterdir()):
        parser.error(f"--keep {args.keep}: holds something; give a new folder")
    if args.source is not None and not (args.source / PLACE).is_file():
        parser.error(f"--from {args.source}: holds no {PLACE}; give a folder that --keep made")
    return args


def main() -> int:
    args = parse_arguments()
    chosen = chosen_cases(args.only, only_used=args.source is not None)
    if args.list:
        print("\n".join(f"{case.name}  ({case.stage})" for case in chosen))
        return 0
    torch.set_num_threads(1)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="digests_"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        digests, texts = run(args, chosen, folder.resolve())
        for name, text in texts.items():
            path = folder / TEXTS / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
        said = "".join(f"{name}  {digest}\n" for name, digest in digests.items())
        (folder / DIGESTS).write_text(said)
    finally:
        shutil.rmtree(folder / USED, ignore_errors=True)
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if args.save is not None:
        args.save.write_text(said)
    failed = "FAILED" in digests.values()
    missing = parts_without_case(args.checkout)
    for part in missing:
        print(f"{part}: no case trains it; give it one in tests/digest_recipes.py", file=sys.stderr)
    if args.compare is None:
        print(said, end="")
        return int(failed or bool(missing))
    before = read(args.compare.read_text(), [case.name for case in chosen])
    lines, differs = compared(before, digests, args.words_may_differ)
    print("\n".join(lines))
    return int(failed or differs or bool(missing))


def run(
    args: argparse.Namespace, chosen: Iterable[Case], folder: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Runs the cases and those that they need; returns the digests and texts of the chosen ones."""
    lab = Lab(args.checkout, folder / MADE, args.port)
    shown = {case.name for case in chosen}
    needed = [case for case in CASES if case.name in with_needs(shown)]
    broken: set[str] = set()
    if args.source is None:
        lab.folder.mkdir()
        (folder / PLACE).write_text(str(lab.folder))
        for case in needed:
            if case.stage == MADE:
                attempt(lab, case, broken)
    made = args.source or folder
    lab.folder = folder / USED
    if any(case.stage == USED for case in needed):
        shutil.copytree(made / MADE, lab.folder, symlinks=True)  # with times, which caches know
        moved(lab, (made / PLACE).read_text())
    for case in needed:
        if case.stage == USED:
            attempt(lab, case, broken)
    of_shown = {
        name: value for name, value in lab.digests.items() if name.partition(".")[0] in shown
    }
    texts = {name: text for name, text in lab.texts.items() if name.partition(".")[0] in shown}
    return of_shown, texts


def attempt(lab: Lab, case: Case, broken: set[str]) -> None:
    """Runs a case unless one that it needs is broken; reports on stderr."""
    lab.case, started = case.name, time.monotonic()
    problem = f"needs {', '.join(sorted(broken & set(case.needs)))}"
    if not broken & set(case.needs):
        try:
            case.run(lab)
            problem = None
        except (CaseFailed, OSError, LookupError, ValueError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        broken.add(case.name)
        lab.digests[f"{case.name}.failed"] = "FAILED"
    told = "" if problem is None else f" FAILED: {problem}"
    print(f"{case.name}: {time.monotonic() - started:.0f} s{told}", file=sys.stderr, flush=True)


def chosen_cases(patterns: Iterable[str], only_used: bool) -> list[Case]:
    """Returns the cases that a pattern fits. Raises SystemExit where one fits none."""
    for pattern in patterns:
        if not fnmatch.filter([case.name for case in CASES], pattern):
            raise SystemExit(f"--only {pattern}: no such case; --list names them")
    chosen = [case for case in CASES if any(fnmatch.fnmatch(case.name, p) for p in patterns)]
    return [case for case in chosen if case.stage == USED or not only_used]


def with_needs(names: Iterable[str]) -> set[str]:
    """Returns the names and those of all cases that they need."""
    needs = {case.name: case.needs for case in CASES}
    found, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += needs[name]
    return found


def parts_without_case(checkout: Path) -> list[str]:
    """Returns tiekd's files of parts that a recipe can name and that no recipe here does."""
    missing = []
    for kind, known in PARTS.items():
        folders = [path for path in (checkout / "tiekd").rglob(kind) if path.is_dir()]
        if kind == "datasets" and not folders:
            folders = [checkout / "tiekd" / "data"]
        for path in sorted(file for folder in folders for file in folder.glob("*.py")):
            if NAMES_BUILD.search(path.read_text(encoding="utf-8")) and path.stem not in known:
                missing.append(str(path.relative_to(checkout)))
    made = recipes()
    return missing + [
        name for known in PARTS.values() for name in known.values() if name not in made
    ]


def read(text: str, cases: Iterable[str]) -> dict[str, str]:
    """Returns the digests of some cases in a saved file."""
    kept = set(cases)
    pairs = (line.rsplit(maxsplit=1) for line in text.splitlines() if line.strip())
    return {name: digest for name, digest in pairs if name.partition(".")[0] in kept}


def compared(
    before: Mapping[str, str], now: Mapping[str, str], words_may_differ: bool = False
) -> tuple[list[str], bool]:
    """Returns lines that show both side by side, and True where any differs that must not.

    A case of which `before` has nothing is new, and differs from nothing.
    """
    known = {name.partition(".")[0] for name in before}
    names = [*before, *(name for name in now if name not in before)]
    width = max(map(len, names), default=0)
    lines, numbers, words, new = [], 0, 0, 0
    for name in names:
        pair = before.get(name, "-" * 16), now.get(name, "-" * 16)
        if name.partition(".")[0] not in known:
            new += 1
            lines.append(f"{name:{width}}  {pair[0]}  {pair[1]}  new case")
            continue
        differs = pair[0] != pair[1]
        numbers += differs and not name.endswith(WORDS)
        words += differs and name.endswith(WORDS)
        lines.append(f"{name:{width}}  {pair[0]}  {pair[1]}{'  DIFFERS' if differs else ''}")
    count = len(names) - new
    told = f"; {new} of new cases" if new else ""
    lines.append(
        f"{count - numbers - words} of {count} digests are equal; {numbers} differ, "
        f"{words} of words{told}"
    )
    return lines, bool(numbers or words and not words_may_differ)


if __name__ == "__main__":
    sys.exit(main())
