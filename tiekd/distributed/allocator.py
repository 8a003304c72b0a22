"""Lets a program keep freed host memory for reuse (TIEKD_ALLOCATOR=keep).

glibc returns large freed blocks (32 MB or more) and the free end of its heap to the kernel. So each
training step on a CPU requests the same memory from the kernel again, which maps it page by page (4
KB) in page faults. With TIEKD_ALLOCATOR=keep a program of tiekd makes glibc serve all blocks from
one heap and keep freed memory. `import tiekd` never does that. Computed results don't change.

The default is TIEKD_ALLOCATOR=system, which changes nothing: keeping memory saves training 2 to 4 %
of its CPU time, but costs 12 % more memory at its peak (tiekd/tools/benchmarks/README.md).
training/kept_memory_hook.py limits the memory that is kept between peaks.

The variable has no effect if the user has configured glibc's allocator (MALLOC_..., GLIBC_TUNABLES)
or preloaded another allocator, nor with another C library (musl, macOS).
"""

import ctypes
import os
from pathlib import Path

from tiekd.errors import LaunchError

VARIABLE = "TIEKD_ALLOCATOR"
_CHOICES = ("keep", "system")
# Parameters of glibc's mallopt(): the number of each in malloc.h, and the value to set. M_MMAP_MAX
# = 0: no block gets a memory mapping of its own. M_TRIM_THRESHOLD = -1: the top of the heap is
# never returned to the kernel. M_ARENA_MAX = 1: all threads share the main arena, since a thread's
# arena can't hold 64 MB blocks. M_MXFAST = 0: small blocks are merged as soon as they are freed,
# which reduces fragmentation.
_SETTINGS = {
    "mmap_max": (-4, 0),
    "trim_threshold": (-1, -1),
    "arena_max": (-8, 1),
    "mxfast": (1, 0),
}
# Environment variables by which a user configures glibc's allocator.
_OF_THE_USER = (
    "MALLOC_ARENA_MAX",
    "MALLOC_ARENA_TEST",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)

_kept = False


def set_by_environment() -> None:
    """Makes this process keep freed memory if the environment has TIEKD_ALLOCATOR=keep.

    Raises:
        LaunchError: The variable's value is neither keep nor system.
    """
    global _kept
    chosen = os.environ.get(VARIABLE) or "system"
    if chosen not in _CHOICES:
        allowed = ", ".join(_CHOICES)
        raise LaunchError(f"{VARIABLE}: got {chosen!r}; allowed: {allowed}; unset, it is system")
    if chosen == "system" or _glibc() is None or _preloaded() or _of_the_user():
        return
    library = ctypes.CDLL(None)
    _kept = all([library.mallopt(name, value) for name, value in _SETTINGS.values()])


def is_kept() -> bool:
    """Returns True if `set_by_environment` has made this process keep freed memory."""
    return _kept


def give_back() -> None:
    """Returns all freed memory to the kernel; does nothing without glibc.

    The call takes up to about 100 ms per GB.
    """
    if _glibc() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def description() -> str:
    """Returns a description of this process's memory allocator for the log.

    It states the library, such as "glibc 2.35", and whether freed memory is kept.
    """
    version = _glibc()
    if version is None:
        return "the system's"
    other = _preloaded()
    variable = _of_the_user()
    if other is not None:
        return f"{other} in place of glibc's"
    if _kept:
        return f"glibc {version}, keeps freed memory"
    return f"glibc {version}" if variable is None else f"glibc {version}, as set by {variable}"


def _glibc() -> str | None:
    """Returns the version of glibc, such as "2.35"; None with another C library."""
    try:
        version = ctypes.CDLL(None).gnu_get_libc_version
    except (AttributeError, OSError, TypeError):
        return None
    version.restype = ctypes.c_char_p
    return version().decode()


def _preloaded() -> str | None:
    """Returns the file name of a library that replaces glibc's malloc; None if there is none."""
    library = ctypes.CDLL(None)
    symbol = _SymbolInfo()
    if not library.dladdr(ctypes.cast(library.malloc, ctypes.c_void_p), ctypes.byref(symbol)):
        return None
    name = Path(os.fsdecode(symbol.file_name)).name
    return None if name.startswith(("libc.so", "libc-")) else name


class _SymbolInfo(ctypes.Structure):
    """The C struct Dl_info, which dladdr(3) fills with the library that defines a function."""

    _fields_ = [
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol", ctypes.c_void_p),
    ]


def _of_the_user() -> str | None:
    """Returns the name of the environment variable by which the user configured glibc's allocator.

    None if the user has set no such variable.
    """
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return "GLIBC_TUNABLES"
    return next((name for name in _OF_THE_USER if name in os.environ), None)
