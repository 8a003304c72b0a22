"""Programs that only print or read something start at once.

It needs no torch, a fraction of a second and little memory.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import programs, recipes

from tiekd.tools.benchmarks import COMMANDS

ROOT = Path(__file__).parents[2]
# bin/ has shell scripts, too.
PROGRAMS = sorted(
    path
    for path in (ROOT / "bin").iterdir()
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env py")
)
RECIPES = sorted(
    path
    for path in (ROOT / "model_configs").rglob("*.yaml")
    if not {"_base_", "experiments"} & set(path.parts)
)
HEAVY = {
    *("torch", "numpy", "deepspeed", "torchvision", "PIL", "tensorboard", "pydantic"),
    *("matplotlib", "timm"),
}
MEMORY_KB, TIME_S = 60_000, 2.0  # of the processor; 0.1 s on an idle machine

# Runs the program that argv names, then says what it imported and took.
RUNNER = f"""
import json, re, resource, runpy, sys
sys.argv = sys.argv[1:]
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({HEAVY!r} & set(sys.modules))
# ru_maxrss may be the parent's.
peak_kb = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps([code, heavy, peak_kb, used.ru_utime + used.ru_stime]), file=sys.stderr)
"""


def started(*words) -> tuple[int, str]:
    """The exit code and output of a program that must be light."""
    command = [sys.executable, "-c", RUNNER, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    code, heavy, memory_kb, time_s = json.loads(result.stderr.splitlines()[-1])
    assert heavy == []
    assert memory_kb < MEMORY_KB
    assert time_s < TIME_S
    return code, result.stdout + result.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_help_of_program_is_light(program):
    """`--help` of every program starts without torch, in little time and memory."""
    code, told = started(program, "--help")
    assert code == 0
    assert told.startswith(f"usage: {program.name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_benchmark_is_light(name):
    """`--help` of every benchmark starts without torch and describes the benchmark."""
    code, told = started(ROOT / "bin/benchmark.py", name, "--help")
    assert code == 0
    assert told.startswith(f"usage: benchmark.py {name}")
    assert "--rounds" in told
    assert len(told.partition("options:")[0]) > 500  # with what the module says of itself


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_unknown_option_is_refused_without_torch(program):
    """An unknown option is refused with code 2 before torch is imported."""
    code, told = started(program, "recipe.yaml", "--nonsense")
    assert code == 2
    assert "error: " in told


def test_program_list_is_complete():
    """The list of Python programs under test has all 19 of `bin/`."""
    assert len(PROGRAMS) == 19
    assert {"resume", "train.py", "print_config.py"} <= {path.name for path in PROGRAMS}


@pytest.mark.parametrize("path", RECIPES[::12], ids=lambda path: path.stem)
def test_print_config_needs_no_torch(path):
    """`print_config.py` prints a recipe with its overrides without importing torch."""
    code, told = started(
        ROOT / "bin/print_config.py", path, "--set", "train.epochs=3", "data.root=/x"
    )
    assert code == 0
    assert "epochs: 3" in told


def test_recipe_mistake_is_refused_without_torch(tmp_path):
    """An unknown recipe key is refused before torch is imported."""
    (tmp_path / "x.yaml").write_text("trian: {epochs: 1}\n")
    for program in ("train.py", "print_config.py"):
        code, told = started(ROOT / "bin" / program, tmp_path / "x.yaml")
        assert code == 2
        assert "unknown key 'trian'" in told


def test_tiekd_import_is_lazy_and_has_public_names():
    """`import tiekd` imports no dependency, and its public names load on first use."""
    code = """
import json, sys
import tiekd
found = {"imported": list(sys.modules), "names": dir(tiekd), "same": {}}
from tiekd import load_recipe
found["imported by load_recipe"] = list(sys.modules)
from tiekd import *
homes = {"load_recipe": "config.recipe", "build_network": "models.build"}
homes["load_student"] = "inference.student"
for name, module in homes.items():
    defined = getattr(sys.modules["tiekd." + module], name)
    found["same"][name] = globals()[name] is getattr(tiekd, name) is defined
try:
    tiekd.load_teacher
except AttributeError as error:
    found["unknown"] = str(error)
print(json.dumps(found))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        text=True,
    )
    found = json.loads(result.stdout)
    assert not {"torch", "numpy", "yaml", "tiekd.config.recipe"} & set(found["imported"])
    assert {"load_recipe", "load_student", "build_network", "__version__"} <= set(found["names"])
    assert "torch" not in found["imported by load_recipe"]
    assert found["same"] == {"load_recipe": True, "build_network": True, "load_student": True}
    assert found["unknown"] == "module 'tiekd' has no attribute 'load_teacher'"


def test_zero_run_imports_no_compiler(ground, tmp_path):
    """A run with ZeRO, which asks for the type of a compiled optimizer, imports no compiler."""
    recipe = recipes.recipe(ground, iterations=1)
    recipe["tensorboard"]["image_interval"] = 0
    path = recipes.write_recipe(tmp_path / "recipe.yaml", recipe)
    code = f"""
import sys
sys.argv = {["bin/train.py", str(path), "--work-dir", str(tmp_path / "work")]!r}
sys.argv += ["--deepspeed_config", "ds_configs/fp32_zero1.json"]
import runpy
try:
    runpy.run_path("bin/train.py", run_name="__main__")
finally:
    print("compiler:", "torch._inductor.compile_fx" in sys.modules)
"""
    result = programs.finish([sys.executable, "-c", code])
    assert result.code == 0, result.stderr[-3000:]
    assert result.stdout.endswith("compiler: False\n")
