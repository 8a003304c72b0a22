"""Chooses memory layout and arithmetic of convolutions on a CPU by a table of measurements.

The table gives the fastest setting for an instruction set, a class of convolution shapes and a
dtype. It was measured once and is fixed in this file: choosing by timing at run time would make
runs irreproducible. `bin/benchmark.py layouts` measures every row on the present machine and
reports where another setting is faster.

A run on a CPU writes its settings to its work dir (layouts.json). A resumed run uses that file,
even on another CPU, so that its settings, and the results up to rounding, are those of the original
run.

The instruction set is the best one that both ATen and oneDNN use, so ATEN_CPU_CAPABILITY and
ONEDNN_MAX_CPU_ISA have an effect. Not covered: GPUs; AMX, which is treated as AVX-512 with bf16;
ARM and POWER, which have not been measured and use torch's defaults.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import torch

from tiekd.errors import LaunchError
from tiekd.files import check_readable, replace_text

RECORD = "layouts.json"

# Instruction sets, the fastest first. "other" is older x86 and every other architecture.
ISAS = ("avx512_bf16", "avx512", "avx2", "other")

# Classes of convolution shapes. A 3x3 convolution is large if it has more input and output values
# than weights. "forward only" means without gradients.
LARGE_TRAINING, LARGE_FORWARD, SMALL = "large 3x3, training", "large 3x3, forward only", "small 3x3"
ANY = "any convolution"

# Settings of fp32 convolutions: keep the input's memory layout; convert it to channels_last; or
# convert it, and compute the weight gradient by matrix products (tiekd/kernels/convolution.py).
KEEP_LAYOUT = "as it comes"
CHANNELS_LAST = "channels_last"
PRODUCTS = "channels_last, weight gradient by products"
# Settings of bf16 convolutions: torch's own arithmetic, or fp32 arithmetic on bf16 features and
# weights.
NATIVE, IN_FP32 = "native", "computed in fp32"

FP32, BF16 = "fp32", "bf16"

# Maps (instruction set, shape class, dtype) to the fastest setting. Measured by `bin/benchmark.py
# layouts` on one thread of a Zen 4 AMD EPYC with torch 2.14.1, with oneDNN and ATen limited to the
# instruction set.
TABLE = {
    ("avx512_bf16", LARGE_TRAINING, FP32): CHANNELS_LAST,
    ("avx512_bf16", LARGE_FORWARD, FP32): CHANNELS_LAST,
    ("avx512_bf16", SMALL, FP32): KEEP_LAYOUT,
    ("avx512_bf16", ANY, BF16): NATIVE,
    ("avx512", LARGE_TRAINING, FP32): CHANNELS_LAST,
    ("avx512", LARGE_FORWARD, FP32): CHANNELS_LAST,
    ("avx512", SMALL, FP32): KEEP_LAYOUT,
    ("avx512", ANY, BF16): IN_FP32,
    # On AVX2, compute the weight gradient by matrix products in training: oneDNN computes it for
    # channels_last features at about a quarter of the speed that it has for contiguous ones.
    ("avx2", LARGE_TRAINING, FP32): PRODUCTS,
    ("avx2", LARGE_FORWARD, FP32): CHANNELS_LAST,
    ("avx2", SMALL, FP32): KEEP_LAYOUT,
    ("avx2", ANY, BF16): IN_FP32,
    # Use torch's defaults for other instruction sets, which weren't measured.
    ("other", LARGE_TRAINING, FP32): KEEP_LAYOUT,
    ("other", LARGE_FORWARD, FP32): KEEP_LAYOUT,
    ("other", SMALL, FP32): KEEP_LAYOUT,
    ("other", ANY, BF16): NATIVE,
}

# The allowed settings of each dtype.
ALLOWED = {FP32: (KEEP_LAYOUT, CHANNELS_LAST, PRODUCTS), BF16: (NATIVE, IN_FP32)}

_settings: dict[str, str] | None = None


def isa() -> str:
    """Returns the best CPU instruction set that both ATen and oneDNN use in this process.

    Returns:
        "avx512_bf16", "avx512", "avx2" or "other".
    """
    aten = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    has = ISAS.index("avx512_bf16" if "avx512_bf16" in _cpu_flags() else "avx512")
    level = {"AVX512": has, "AVX2": ISAS.index("avx2")}.get(aten, ISAS.index("other"))
    return ISAS[max(level, _limit_of_onednn(limit.upper()))]


def of_isa(name: str) -> dict[str, str]:
    """Returns the settings that TABLE has for one instruction set.

    A setting is the memory layout or the arithmetic of a class of convolutions.

    Args:
        name: one of ISAS.

    Returns:
        A dict from "<shape class>, <dtype>" to a setting, such as {"any convolution, bf16":
        "native", ...}.
    """
    return {
        f"{shape}, {dtype}": setting for (of, shape, dtype), setting in TABLE.items() if of == name
    }


def setting(shape_class: str, dtype: str) -> str:
    """Returns the setting (memory layout and arithmetic) that a class of convolutions should use.

    The setting is the one passed to `set_settings` in this process, or else the one that TABLE has
    for this CPU.

    Args:
        shape_class: LARGE_TRAINING, LARGE_FORWARD or SMALL for FP32; ANY for BF16.
        dtype: FP32 or BF16.

    Returns:
        KEEP_LAYOUT, CHANNELS_LAST or PRODUCTS for FP32; NATIVE or IN_FP32 for BF16.
    """
    settings = _settings_of_this_cpu() if _settings is None else _settings
    return settings[f"{shape_class}, {dtype}"]


def set_settings(settings: dict[str, str] | None) -> None:
    """Sets the memory layouts and arithmetic of this process's convolutions.

    Args:
        settings: a dict from "<shape class>, <dtype>" to a setting, as `of_isa` returns it; None
            restores the settings that TABLE has for this CPU.
    """
    global _settings
    _settings = settings
    _settings_of_this_cpu.cache_clear()


def write(work_dir: Path, record: dict) -> None:
    """Writes the settings of a run's convolutions to layouts.json in its work dir.

    Args:
        work_dir: the run's work dir.
        record: {"isa": one of ISAS, "choices": the settings, a dict as `of_isa` returns it}.
    """
    replace_text(work_dir / RECORD, json.dumps(record, indent=2) + "\n")


def read(work_dir: Path) -> dict | None:
    """Reads the settings of a run's convolutions from layouts.json in its work dir.

    Args:
        work_dir: the run's work dir.

    Returns:
        {"isa": one of ISAS, "choices": the settings, a dict as `of_isa` returns it}; None if there
        is no such file.

    Raises:
        LaunchError: the file can't be read, is corrupt, or contains unknown settings.
    """
    path = work_dir / RECORD
    if not path.exists():
        return None
    check_readable(path, "record of a run's layouts", LaunchError)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, choices = record["isa"], record["choices"]
        for key in of_isa("other"):
            if choices[key] not in ALLOWED[key.rsplit(", ", 1)[1]]:
                raise ValueError(f"{key}: {choices[key]!r}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise LaunchError(
            f"{path}: not the layouts of a run ({reason}); put the run's own file back, or delete "
            "it to take this CPU's layouts"
        ) from None
    return {"isa": str(name), "choices": {key: choices[key] for key in of_isa("other")}}


def record_of_run(resumed_from: list[Path]) -> tuple[dict, list[str]]:
    """Returns the settings of a run's convolutions, and messages about them for the log.

    The settings aren't applied: each rank has to pass them to `set_settings`.

    Args:
        resumed_from: work dirs in which to look for a resumed run's layouts.json, in order of
            preference; empty for a new run.

    Returns:
        (record, lines). The record is the dict {"isa": ..., "choices": ...} that `write` takes: the
        content of the first layouts.json found, or else the settings of TABLE for this CPU. The
        lines are strings for the log if a resumed run has no layouts.json, or one from a CPU with
        another instruction set; otherwise the list is empty.

    Raises:
        LaunchError: a layouts.json can't be used, as for `read`.
    """
    this_isa = isa()
    own = {"isa": this_isa, "choices": of_isa(this_isa)}
    if not resumed_from:
        return own, []
    record = next(filter(None, map(read, resumed_from)), None)
    if record is None:
        line = (
            f"{RECORD}: the run has none, so its convolutions run as this CPU ({this_isa}) does "
            "them best"
        )
        return own, [line]
    lines = []
    if record["isa"] != this_isa:
        same = record["choices"] == own["choices"]
        lines.append(
            f"The run was started on a CPU with {record['isa']}, this one has {this_isa}: numbers "
            f"will differ by rounding. Its layouts are kept ({RECORD})"
            + ("" if same else "; a new run would take others here")
        )
    return record, lines


@lru_cache(maxsize=1)
def _settings_of_this_cpu() -> dict[str, str]:
    return of_isa(isa())


def _limit_of_onednn(name: str) -> int:
    """Returns the index in `ISAS` of the best instruction set that ONEDNN_MAX_CPU_ISA allows.

    Args:
        name: value of the environment variable ONEDNN_MAX_CPU_ISA in upper case. For a value that
            sets no limit, or that oneDNN doesn't know, the result is 0.
    """
    if name in ("SSE41", "AVX"):
        return ISAS.index("other")
    if name.startswith("AVX2"):
        return ISAS.index("avx2")
    if name in ("AVX512_CORE", "AVX512_CORE_VNNI"):
        return ISAS.index("avx512")
    return 0


@lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    """Returns the feature flags of the first CPU in /proc/cpuinfo, or an empty set."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()
