"""Whatever is killed at whatever moment, the run resumes and ends as if uninterrupted.

Its numbers are equal bit for bit.
"""

import json
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest
from support import programs, recipes, torture

# (moment, victim) of two kills at each ZeRO stage, one of them inside a save.
SHORT = {
    0: [("save", "all"), ("step", "rank")],
    1: [("save", "rank"), ("evaluation", "all")],
    2: [("save", "launcher"), ("step", "all")],
    3: [("save", "all"), ("evaluation", "rank")],
}
KILLS_A_STAGE = 16  # of the long test
ITERATIONS = {"short": 24, "long": 40}


@pytest.fixture(scope="module")
def folder(ground, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torture")
    for length, iterations in ITERATIONS.items():
        recipe = torture.recipe(ground, folder / "evaluating", iterations)
        recipes.write_recipe(folder / f"{length}.yaml", recipe)
    return folder


def unbroken(folder: Path, length: str, stage: int) -> Path:
    """The run of a stage that nobody killed."""
    (folder / f"zero{stage}.json").write_text(json.dumps(torture.engine_config(stage)))
    work_dir = folder / f"unbroken_{length}{stage}"
    if not work_dir.exists():
        run(folder, length, stage, work_dir).finish()
    return work_dir


def run(folder: Path, length: str, stage: int, work_dir: Path, seed: int = 0) -> torture.Torture:
    paths = (folder / f"{length}.yaml", folder / f"zero{stage}.json", folder / "evaluating")
    return torture.Torture(work_dir, *paths, seed)


def tortured(
    folder: Path, length: str, stage: int, kills: list[tuple[str, str]], seed: int
) -> Counter:
    """Kills as listed, resumes to the end, and compares; returns the counts."""
    expected = unbroken(folder, length, stage)
    work_dir = folder / f"{length}{stage}_{seed}"
    torment = run(folder, length, stage, work_dir, seed)
    for moment, victim in kills:
        torment.strike(moment, victim)
    torment.finish()
    found = torture.mismatches(work_dir, expected)
    torment.count["mismatches"] = len(found)
    programs.REPORTS.append(
        f"torture, ZeRO {stage}: {', '.join(f'{n} {what}' for what, n in torment.count.items())}"
    )
    assert not found, found
    return torment.count


# What a rank writes differs most between stage 0 and stage 3; a test run takes minutes enough.
@pytest.mark.parametrize(
    "stage", [0, *(pytest.param(stage, marks=pytest.mark.long) for stage in (1, 2)), 3]
)
def test_resume_after_two_kills_is_bit_identical(folder, stage):
    """A run that is killed twice ends bit for bit like the one that nobody killed."""
    count = tortured(folder, "short", stage, SHORT[stage], seed=stage)
    assert count["kills"] == count["resumes"] == 2


@pytest.mark.long
@pytest.mark.parametrize("stage", SHORT)
def test_resume_after_many_kills_is_bit_identical(folder, stage):
    """Runs that are killed 16 times in all at each ZeRO stage equal the unbroken one."""
    moments = cycle(("save", "step", "save", "evaluation"))
    kills = [(next(moments), torture.VICTIMS[i % 3]) for i in range(KILLS_A_STAGE)]
    total = Counter()
    for part in range(2):  # a run is over after some twenty kills that let it go on
        half = kills[part::2]
        total += tortured(folder, "long", stage, half, seed=100 * stage + part)
    assert total["kills"] >= 15
    assert total["inside a save"] >= 4
