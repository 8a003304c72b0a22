"""Runs Triton's interpreter where there is no GPU, and counts the golden cases that were held.

The count of each group is printed after the tests: its cases whose tests ran and passed.
"""

import os
import re
from pathlib import Path

# Most tensors of tests are small: threads that wait for each other take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from support import programs  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # before anything imports triton, whose own functions are made there
    )

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests send to this machine alone

GOLDEN = Path(__file__).parent / "golden" / "README.md"
# Files that take longest. Several workers (pytest-xdist) begin with them, so as to end together.
SLOWEST = ("test_machines", "test_torture", "test_supervision", "test_mistakes", "test_readme")
left_out: list[str] = []


def pytest_collection_modifyitems(config, items) -> None:
    """Sorts the fast tests first; for a worker of several, the slowest files first."""
    is_worker = hasattr(config, "workerinput")
    items.sort(key=lambda item: ("system" in item.path.parts) != is_worker)
    if is_worker:
        items.sort(key=lambda item: item.path.stem not in SLOWEST)


def pytest_deselected(items) -> None:
    """Remembers what the summary says was left out."""
    left_out.extend(item.path.name for item in items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escapes what isn't UTF-8 in captured output, as from file names, which workers can't send."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


def pytest_sessionfinish(session) -> None:
    """Hands what a worker has to say to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"reports": programs.REPORTS, "left_out": left_out}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Takes what a worker has to say. Every worker leaves out the same."""
    output = getattr(node, "workeroutput", {})
    programs.REPORTS.extend(output.get("reports", []))
    left_out[:] = output.get("left_out", left_out)


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what tests report, and how many golden cases were held."""
    for line in programs.REPORTS:
        terminalreporter.write_line(line)
    outcomes: dict[str, set[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            outcomes.setdefault(Path(report.nodeid.split("::")[0]).name, set()).add(outcome)
    parts, held, known = [], 0, 0
    for name, count, tests in re.findall(
        r"^\| `(\w+)/` \| (\d+) [^|]*\|[^|]*\| (.*) \|$", GOLDEN.read_text(), re.M
    ):
        files = re.findall(r"`(test_\w+\.py)`", tests)
        passed = all(
            "passed" in outcomes.get(file, ()) and not outcomes[file] & {"failed", "error"}
            for file in files
        )
        known += int(count)
        held += int(count) if passed else 0
        without = sum(file in files for file in left_out)
        parts.append(
            f"{name} {count if passed else 0} of {count}"
            + (f" ({without} tests left out)" if without else "")
        )
    if outcomes.keys() & set(re.findall(r"test_\w+\.py", GOLDEN.read_text())):
        terminalreporter.write_line(f"golden cases held: {held} of {known}: {', '.join(parts)}")
