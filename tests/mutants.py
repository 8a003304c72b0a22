"""Proves that the tests notice wrong code.

Plants the mutants of mutants_table.py one at a time, and runs a mutant's tests until one fails.

python tests/mutants.py [NAME ...] [--list]

First the unchanged copy must pass the tests that mutants are tried with. Then a line a mutant: the
test that killed it, or SURVIVED where the rest of the fast tests passed too (which takes as long as
bin/test). Exit code 0: all are killed, or all but one. Everything is in one temporary folder, which
goes with the script, however it ends.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutants_table import MUTANTS, Mutant
from planting import Planting, planted

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "tiekd",
    "bin",
    "tests",
    "ds_configs",
    "model_configs",
    "pyproject.toml",
    "setup.py",
    ".ci",
)
COPIED += ("README.md", "CONTRIBUTING.md")
NAMED_TIMEOUT_S, REST_TIMEOUT_S = 600.0, 3600.0
NOT_THE_COPY = 99
# The tests' own process says which tiekd it has. Processes that they start find it by PYTHONPATH,
# or beside their program.
RUNNER = f"""
import sys
import tiekd
if tiekd.__file__ != sys.argv[1] + "/tiekd/__init__.py":
    print("tiekd is", tiekd.__file__)
    sys.exit({NOT_THE_COPY})
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="mutants to plant; all without any"
    )
    parser.add_argument("--list", action="store_true", help="name them and end")
    args = parser.parse_args()
    unknown = set(args.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no mutant {', '.join(sorted(unknown))}; --list names them")
    mutants = [mutant for mutant in MUTANTS if mutant.name in args.names or not args.names]
    if args.list:
        for mutant in mutants:
            print(
                f"{mutant.name:45} {mutant.module:35} {mutant.function:25} {' '.join(mutant.tests)}"
            )
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        return try_all(mutants, Path(folder).resolve())


def try_all(mutants: list[Mutant], folder: Path) -> int:
    original = copy_tree(
        ROOT, folder / "original"
    )  # so that edits in the checkout meanwhile kill nothing
    problems = []
    for mutant in mutants:
        try:
            planted(original / mutant.path, mutant.function, mutant.old, mutant.new)
        except Planting as problem:
            problems.append(f"{mutant.name}: {problem}")
    if problems:
        sys.exit("\n".join(problems))
    copy = copy_tree(original, folder / "copy")
    print(f"tiekd is {copy}/tiekd", flush=True)
    started = time.monotonic()
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    code, output = run_tests(copy, tests, REST_TIMEOUT_S)
    if code:
        sys.exit(f"the unchanged copy does not pass (exit code {code}):\n{output[-3000:]}")
    print(f"the unchanged copy passes, {time.monotonic() - started:.0f} s", flush=True)
    killed = 0
    for mutant in mutants:
        shutil.rmtree(copy)
        started = time.monotonic()
        killer = find_killer(mutant, copy_tree(original, copy))
        killed += killer is not None
        verdict = "SURVIVED" if killer is None else f"killed by {killer}"
        print(f"{mutant.name}: {verdict}, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{killed} of {len(mutants)} killed")
    return 0 if killed >= max(1, len(mutants) - 1) else 1


def copy_tree(source: Path, copy: Path) -> Path:
    copy.mkdir()
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(
                source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )
        else:
            shutil.copy2(source / name, copy / name)
    return copy


def find_killer(mutant: Mutant, copy: Path) -> str | None:
    """Returns the test that fails with the mutant in a copy; None where all fast ones pass."""
    path = copy / mutant.path
    path.write_text(planted(path, mutant.function, mutant.old, mutant.new), encoding="utf-8")
    first = list(mutant.tests)
    # Whether the table's code is there is no test of the code.
    rest = [
        "tests",
        *(f"--deselect={test}" for test in [*first, "tests/unit/test_mutants_table.py"]),
    ]
    for tests, timeout_s in ((first, NAMED_TIMEOUT_S), (rest, REST_TIMEOUT_S)):
        code, output = run_tests(copy, tests, timeout_s)
        if code == 0:
            continue
        if code is None:
            return f"a hang of {timeout_s:.0f} s in {' '.join(tests)}"
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.M)
        # 1: a test failed, 2: one could not be collected. A mutant that isn't Python any more
        # proves nothing.
        if code not in (1, 2) or not failed or "SyntaxError" in output:
            sys.exit(f"{mutant.name}: the tests did not run (exit code {code}):\n{output[-3000:]}")
        return failed[1]
    return None


def run_tests(copy: Path, tests: list[str], timeout_s: float) -> tuple[int | None, str]:
    """Returns pytest's exit code, None where it had to be ended, and its output.

    No process that it started outlives this call.
    """
    scratch = copy.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    environment = (
        {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(copy), "TMPDIR": str(scratch)}
    )
    options = ["-x", "-q", "-rfE", "--tb=short", "-m", "not long", "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", RUNNER, str(copy), *options, *tests]
    with (copy.parent / "output").open("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end(process)
        output.seek(0)
        text = output.read()
    if code == NOT_THE_COPY:
        sys.exit(f"the tests would not have tried the copy: {text}")
    return code, text


def end(process: subprocess.Popen) -> None:
    """Ends a session of processes, with SIGTERM first.

    System tests must have time to end the programs that they started.
    """
    for number, wait_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
