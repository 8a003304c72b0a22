"""A rank that hangs ends the job in a bounded time.

One line says which rank it is, and no process is left.
"""

import re
import time

import psutil
import pytest
from support import programs, recipes

TIMEOUT_S = 20  # also for ranks that start apart
# The timeout, ten seconds in which the ranks ask who is left, thirty that the launcher gives a rank
# to end, and slack.
BOUND_S = TIMEOUT_S + 10 + 30 + 120


def processes(program: programs.Program) -> dict[int, psutil.Process]:
    """The ranks of a run by their number."""
    return dict(enumerate(program.ranks()))


@pytest.mark.parametrize(
    ("engine", "encoder", "ranks", "hung"),
    [
        ("fp32", "mobilenet_v2", 2, 1),
        pytest.param(
            "fp32", "mobilenet_v2", 2, 0, marks=pytest.mark.long
        ),  # the others' store lives in this one
        # Without norms the ranks meet first in DeepSpeed's own process group.
        pytest.param("zero3_sharded", "support.parts.plain_encoder", 2, 1, marks=pytest.mark.long),
        pytest.param("fp32_zero2", "support.parts.plain_encoder", 4, 2, marks=pytest.mark.long),
    ],
)
def test_hung_rank_is_named_and_job_ends(ground, tmp_path, engine, encoder, ranks, hung):
    """A suspended rank ends the job within the time limit, with one line that names it."""
    recipe = recipes.recipe(ground, iterations=100_000)
    if encoder != "mobilenet_v2":
        recipe["network"] = {**recipe["network"], "encoder": {"name": encoder}}
    recipe["checkpoint"]["interval"] = 100_000
    path, work_dir = recipes.write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path / "work"
    options = ["--work-dir", work_dir, "--deepspeed_config", programs.DS_CONFIGS / f"{engine}.json"]
    command = [
        *programs.deepspeed(ranks),
        programs.ROOT / "bin" / "train.py",
        path,
        *options,
        "--timeout",
        TIMEOUT_S / 60,
    ]
    with programs.Program(command) as program:
        recorded = work_dir / "recorded.jsonl"
        program.wait_until(lambda: recorded.is_file() and recorded.read_text().count("\n") >= 5)
        of = processes(program)
        assert sorted(of) == list(range(ranks))
        of[hung].suspend()
        began = time.monotonic()
        result = program.result(timeout_s=BOUND_S)
        assert TIMEOUT_S <= time.monotonic() - began < BOUND_S
        _, alive = psutil.wait_procs(of.values(), timeout=60)
        assert not alive
    assert result.code == 2, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    (line,) = result.our_lines()
    first = 0 if hung else 1
    # With more ranks another one may have given up first, and closed its connections.
    how = f"waited {TIMEOUT_S} s for" if ranks == 2 else rf"(waited {TIMEOUT_S} s for|lost)"
    assert re.match(
        f"LaunchError: rank {first} {how} rank {hung}, which does not answer; ", line
    ), line
    assert "resume with bin/resume" in line
