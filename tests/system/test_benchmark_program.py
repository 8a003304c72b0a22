"""bin/benchmark.py as a program: its options, its report, the benchmarks that need DeepSpeed."""

import json
import os
import sys

import pytest
import torch
from support import programs
from support.benchmark_options import ALWAYS

from tiekd.tools.benchmarks import COMMANDS, measure

PROGRAM = programs.ROOT / "bin" / "benchmark.py"
LIGHT = programs.ROOT / "model_configs" / "students" / "tiekd_light_bts_kitti.yaml"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOY = [
    "--recipe",
    LIGHT,
    "--height",
    "32",
    "--width",
    "64",
    "--rounds",
    "2",
    "--device",
    DEVICE,
    "--json",
]


def benchmark(*words) -> dict:
    result = programs.finish([sys.executable, PROGRAM, *words, *TOY])
    assert result.code == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def test_benchmark_engine_times_hooks_and_loop():
    """`benchmark.py engine` reports the time of each hook, of the loop and of the bare step."""
    told = benchmark("engine")
    assert told["hooks_ms"].keys() == {
        "TextLog",
        "TensorBoard",
        "Preemption",
        "Guard",
        "KeptMemory",
    }
    assert all(ms > 0 for ms in told["hooks_ms"].values())
    assert 0 < told["loop_ms"] < told["step_ms"]
    assert 0 < told["host_share"] < 0.5
    low, high = told["bare_against_itself_range"]
    assert low <= told["bare_against_itself"] <= high
    assert told["time_ratio"] > 0
    assert told["memory_ratio"] == pytest.approx(1, abs=0.2)


@pytest.mark.skipif(DEVICE == "cpu" and os.cpu_count() < 2, reason="needs two cores")
@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_benchmark_growth_starts_given_ranks():
    """`benchmark.py growth` measures each number of ranks that `--ranks` lists."""
    told = benchmark(
        "growth", "--batches", "1", "--crops", "1", "--bins", "32", "--ranks", "1", "2"
    )
    assert told["ranks"]["sizes"] == [1, 2]
    assert len(told["ranks"]["time_s"]) == 2
    one, two = told["ranks"]["peak_mb"]
    assert 1.5 < two / one < 2.5


# Runs a program, and says at the end which modules it has imported.
OBSERVER = """
import atexit, runpy, sys
atexit.register(lambda: print("imported:", *sys.modules, file=sys.stderr))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_benchmark_help_lists_commands():
    """The program's --help lists every command, and a command's has only its own options."""

    def told(*words: str) -> str:
        command = [sys.executable, "-c", OBSERVER, PROGRAM, *words]
        result = programs.finish(command, fresh=True)
        assert result.code == 0, result.stderr[-3000:]
        modules = result.stderr.rpartition("imported: ")[2].split()
        imported.append({name for name in COMMANDS if f"tiekd.tools.benchmarks.{name}" in modules})
        return result.stdout

    imported = []
    overview = told("--help")
    assert all(f"    {name} " in overview for name in COMMANDS)
    assert "--find" not in told("step", "--help")
    assert "--memory-format" in told("step", "--help")
    told("head", "--height", "8", "--width", "8", "--bins", "8", "--channels", "4", "--rounds", "1")
    assert imported == [set(), set(), set(), {"head"}]


def test_benchmark_json_is_one_object():
    """The --json option prints one object with the benchmark, the hardware and the ratios."""
    told = benchmark("student")
    assert told.keys() >= ALWAYS | {"benchmark", "hardware"}
    assert measure.as_text(told)
