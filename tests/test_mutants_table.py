"""Every slip can still be planted: its text stands in its file exactly once, and its tests exist."""

from pathlib import Path

import pytest
from mutants_table import MUTANTS

TESTS = Path(__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_slip_can_be_planted(mutant):
    assert (TESTS.parent / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert all((TESTS / f"test_{name}.py").is_file() for name in mutant.tests)
