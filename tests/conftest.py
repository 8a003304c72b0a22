"""Lets Triton interpret where there is no GPU; prints, after the tests, how many of the golden cases of each group were
held: those whose tests ran and passed."""

import os
import re
from pathlib import Path

# Most tensors of tests are small: threads that wait for each other take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # before anything imports triton, whose own functions are made there
    )

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests send to this machine alone

GOLDEN = Path(__file__).parent / "golden" / "README.md"
left_out: list[str] = []


def pytest_collection_modifyitems(items) -> None:
    items.sort(key=lambda item: "system" in item.path.parts)  # the fast ones first


def pytest_deselected(items) -> None:
    left_out.extend(item.path.name for item in items)


def pytest_terminal_summary(terminalreporter) -> None:
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
