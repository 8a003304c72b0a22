"""DeepSpeed's profiling keys, all in one run on two ranks.

Each reports once what it is for, with plausible times.
"""

import json
import re
import time
from pathlib import Path

import pytest
from support import programs, recipes

ITERATIONS, MICRO_BATCHES = 4, 8


@pytest.fixture(scope="module")
def run(ground, tmp_path_factory) -> tuple[programs.Result, Path, float]:
    """The run's result, its folder and its seconds."""
    folder = tmp_path_factory.mktemp("profiling")
    recipe = recipes.recipe(ground, batch_size=8, iterations=ITERATIONS)
    config = {
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 1},
        "flops_profiler": {
            "enabled": True,
            "profile_step": 2,
            "output_file": str(folder / "flops.txt"),
        },
        "comms_logger": {"enabled": True, "prof_all": True, "verbose": False, "debug": False},
        "wall_clock_breakdown": True,
    }
    (folder / "profiled.json").write_text(json.dumps(config))
    path = recipes.write_recipe(folder / "recipe.yaml", recipe)
    command = [
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        folder / "work",
    ]
    started = time.monotonic()
    result = programs.finish([*command, "--deepspeed_config", folder / "profiled.json"], ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    return result, folder, time.monotonic() - started


def test_wall_clock_breakdown_per_micro_batch(run):
    """The wall clock breakdown has a line for each micro-batch and each iteration."""
    result, _, seconds = run
    micro = re.findall(
        r"fwd_microstep: ([\d.]+) \| bwd_microstep: ([\d.]+) .*step_microstep: ([\d.]+)",
        result.stdout,
    )
    whole = re.findall(r"\| fwd: ([\d.]+) \| bwd: ([\d.]+) .*\| step: ([\d.]+)", result.stdout)
    assert (len(micro), len(whole)) == (MICRO_BATCHES, ITERATIONS)
    assert 0 < sum(float(ms) for row in whole for ms in row) < 1000 * seconds
    forwards = [float(row[0]) for row in micro]
    assert float(whole[0][0]) == pytest.approx(forwards[0] + forwards[1], rel=0.3, abs=1)


def test_flops_profiler_table_has_all_parts(run):
    """The FLOPs profiler writes a table that times every part of the network."""
    result, folder, seconds = run
    table = (folder / "flops.txt").read_text()
    assert "Profile Summary at step 3:" in table
    assert re.search(r"^world size: +2 *$", table, re.M)
    assert re.search(r"params per GPU: +26\.\d+ K", table)
    for part in ("MobileNetV2(", "DenseDepth(", "(head): Dpm("):
        (line,) = [line for line in table.splitlines() if part in line]
        assert not re.search(r" 0 MACs|, 0 s =", line), line
    # Timed from 1970 on, the network takes gigaseconds, and its parts no share of them.
    whole = re.search(
        r"^Network\(\s+26\.\d+ K = 100% Params, .*, ([\d.]+) (ms|s) = 100% latency", table, re.M
    )
    assert float(whole[1]) * {"ms": 1, "s": 1000}[whole[2]] < 1000 * seconds
    assert "Flops Profiler" not in result.stdout


def test_comms_logger_times_fit_run(run):
    """The table of the communications logger has times that fit into the run."""
    result, _, seconds = run
    assert result.stdout.count("Comm. Op  ") == 1
    lines = result.stdout[result.stdout.index("Comm. Op  ") :].splitlines()
    sums, counts, name = {}, {}, None
    for line in lines[1:]:
        if re.fullmatch(r"[a-z_]+", line):
            name = line
        elif name and (row := re.match(r" +[\d.]+ ?[KM]?B +(\d+) +([\d.]+) ", line)):
            counts[name] = counts.get(name, 0) + int(row[1])
            sums[name] = sums.get(name, 0.0) + float(row[2])
    assert {"broadcast", "all_reduce", "all_gather_into_tensor"} <= counts.keys()
    assert counts["all_gather_into_tensor"] >= ITERATIONS
    # Timers that run on would give each operation the time of all before it, which no run has.
    assert sum(sums.values()) < 1000 * seconds / 2
