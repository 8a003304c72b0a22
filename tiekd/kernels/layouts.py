"""Layouts of convolutions on a CPU: a table by instruction set, shape class and dtype.

The table was measured once and committed. No timing decides inside a run, so that equal runs stay
equal. `bin/benchmark.py layouts` measures every row on a machine and reports where another choice
is faster there.

A run on a CPU writes its choices to its work dir (layouts.json). A resumed run takes those, also
on another CPU.

Instruction sets are those that both ATen and oneDNN use, so ATEN_CPU_CAPABILITY and
ONEDNN_MAX_CPU_ISA count. Left out: GPUs; AMX, which counts as AVX-512 with bf16; ARM and POWER,
which have not been measured and are left to torch.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import torch

from tiekd.errors import LaunchError
from tiekd.files import check_readable, replace_text

RECORD = "layouts.json"

# Instruction sets. "other" is everything older, and every architecture but x86.
ISAS = ("avx512_bf16", "avx512", "avx2", "other")

# Shape classes. A 3x3 convolution is large where its features are more than its weights.
LARGE_TRAINING, LARGE_FORWARD, SMALL = "large 3x3, training", "large 3x3, forward only", "small 3x3"
ANY = "any convolution"

# Choices in fp32. The reasons for them are in tiekd/kernels/convolution.py.
AS_IT_COMES = "as it comes"
CHANNELS_LAST = "channels_last"
PRODUCTS = "channels_last, weight gradient by products"
# Choices in bf16: as torch does it, or computed in fp32 from bf16 features and weights.
NATIVE, IN_FP32 = "native", "computed in fp32"

FP32, BF16 = "fp32", "bf16"

# By (instruction set, shape class, dtype). Times are those of `bin/benchmark.py layouts` on one
# thread of an AMD EPYC of the Zen 4 generation, torch 2.14.1, oneDNN and ATen held to the set.
TABLE = {
    ("avx512_bf16", LARGE_TRAINING, FP32): CHANNELS_LAST,
    ("avx512_bf16", LARGE_FORWARD, FP32): CHANNELS_LAST,
    ("avx512_bf16", SMALL, FP32): AS_IT_COMES,
    ("avx512_bf16", ANY, BF16): NATIVE,
    ("avx512", LARGE_TRAINING, FP32): CHANNELS_LAST,
    ("avx512", LARGE_FORWARD, FP32): CHANNELS_LAST,
    ("avx512", SMALL, FP32): AS_IT_COMES,
    ("avx512", ANY, BF16): IN_FP32,
    # oneDNN's own weight gradient of channels_last features has a fifth of the speed there.
    ("avx2", LARGE_TRAINING, FP32): PRODUCTS,
    ("avx2", LARGE_FORWARD, FP32): CHANNELS_LAST,
    ("avx2", SMALL, FP32): AS_IT_COMES,
    ("avx2", ANY, BF16): IN_FP32,
    # The default: what torch does by itself.
    ("other", LARGE_TRAINING, FP32): AS_IT_COMES,
    ("other", LARGE_FORWARD, FP32): AS_IT_COMES,
    ("other", SMALL, FP32): AS_IT_COMES,
    ("other", ANY, BF16): NATIVE,
}

# The choices that a row may have.
ALLOWED = {FP32: (AS_IT_COMES, CHANNELS_LAST, PRODUCTS), BF16: (NATIVE, IN_FP32)}

_chosen: dict[str, str] | None = None


def isa() -> str:
    """Returns the best of `ISAS` that ATen and oneDNN both use in this process."""
    aten = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    has = ISAS.index("avx512_bf16" if "avx512_bf16" in _cpu_flags() else "avx512")
    level = {"AVX512": has, "AVX2": ISAS.index("avx2")}.get(aten, ISAS.index("other"))
    return ISAS[max(level, _limit_of_onednn(limit.upper()))]


def of_isa(name: str) -> dict[str, str]:
    """Returns the table's choices for one of `ISAS`: {"<shape class>, <dtype>": choice}."""
    return {
        f"{shape}, {dtype}": choice for (of, shape, dtype), choice in TABLE.items() if of == name
    }


def choice(shape_class: str, dtype: str) -> str:
    """Returns the choice of this process: that of `set_choices`, else the table's.

    Args:
        shape_class: LARGE_TRAINING, LARGE_FORWARD, SMALL or ANY.
        dtype: FP32 or BF16.
    """
    choices = _of_this_cpu() if _chosen is None else _chosen
    return choices[f"{shape_class}, {dtype}"]


def set_choices(choices: dict[str, str] | None) -> None:
    """Sets the choices of this process, as `of_isa` returns them; None restores this CPU's."""
    global _chosen
    _chosen = choices
    _of_this_cpu.cache_clear()


def write(work_dir: Path, record: dict) -> None:
    """Writes a record {"isa": one of ISAS, "choices": as of `of_isa`} to a work dir."""
    replace_text(work_dir / RECORD, json.dumps(record, indent=2) + "\n")


def read(work_dir: Path) -> dict | None:
    """Reads the record of a work dir; None without one.

    Raises:
        LaunchError: the record can't be used.
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
    """Returns the layouts of a run, and lines for its log.

    Each process calls `set_choices` with the choices.

    Args:
        resumed_from: work dirs that may have a resumed run's record, in the order of search; empty
            for a new run.

    Returns:
        ({"isa", "choices"}, lines): the record of a resumed run, else this CPU's.

    Raises:
        LaunchError: a record can't be used.
    """
    here = isa()
    own = {"isa": here, "choices": of_isa(here)}
    if not resumed_from:
        return own, []
    record = next(filter(None, map(read, resumed_from)), None)
    if record is None:
        line = (
            f"{RECORD}: the run has none, so its convolutions run as this CPU ({here}) does them "
            "best"
        )
        return own, [line]
    lines = []
    if record["isa"] != here:
        same = record["choices"] == own["choices"]
        lines.append(
            f"The run was started on a CPU with {record['isa']}, this one has {here}: numbers will "
            f"differ by rounding. Its layouts are kept ({RECORD})"
            + ("" if same else "; a new run would take others here")
        )
    return record, lines


@lru_cache(maxsize=1)
def _of_this_cpu() -> dict[str, str]:
    return of_isa(isa())


def _limit_of_onednn(name: str) -> int:
    """Returns the index in `ISAS` of the best set that ONEDNN_MAX_CPU_ISA allows.

    It is 0 for names that oneDNN ignores.
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
    """Returns the kernel's names of the first CPU's features; empty if it doesn't list them."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()
