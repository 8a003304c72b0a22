"""A program keeps the memory that tensors free where one variable says so."""

import os
import subprocess
import sys
import textwrap

import pytest

from tiekd.distributed import allocator

glibc_only = pytest.mark.skipif(allocator._glibc() is None, reason="what is set is glibc's")
# Adds two tensors of 36 MB, of which glibc maps each by itself, until a thread's cache of small
# blocks is full, and says how many pages had to be paged in each time from then on.
ADDITIONS = """
    import resource, threading
    import torch
    from tiekd.distributed import allocator, entrypoint

    def faults():
        a, b = torch.ones(9_000_000), torch.ones(9_000_000)
        for count in range(44):
            if count == 40:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            c = a + b
            del c
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4

    def main():
        print(faults())
        found = []
        thread = threading.Thread(target=lambda: found.append(faults()))
        thread.start()
        thread.join()
        print(found[0])
        print(allocator.description())
"""
PROGRAM = "    entrypoint.program(main)"
KEEP = {"TIEKD_ALLOCATOR": "keep"}


def told(code: str, **variables: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != allocator.VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=kept | variables,
    )


def additions(end: str, **variables: str) -> tuple[float, float, str]:
    """Pages an addition in the main thread and in another, and what is said of the allocator."""
    done = told(ADDITIONS + end, **variables)
    assert done.returncode == 0, done.stderr
    main, thread, description = done.stdout.splitlines()
    return float(main), float(thread), description


@glibc_only
def test_allocator_keep_reuses_memory_in_threads():
    """With TIEKD_ALLOCATOR=keep, freed tensor memory is reused in every thread."""
    main, thread, description = additions(PROGRAM, **KEEP)
    assert main < 100
    assert thread < 100
    assert description.startswith("glibc 2.")
    assert description.endswith(", keeps freed memory")


@glibc_only
@pytest.mark.parametrize(
    ("end", "variables", "description"),
    [
        ("    main()", KEEP, ""),
        (PROGRAM, {}, ""),
        (PROGRAM, {"TIEKD_ALLOCATOR": "system"}, ""),
        (PROGRAM, {**KEEP, "MALLOC_ARENA_MAX": "2"}, ", as set by MALLOC_ARENA_MAX"),
        (
            PROGRAM,
            {**KEEP, "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
            ", as set by GLIBC_TUNABLES",
        ),
    ],
)
def test_allocator_unchanged_without_keep(end, variables, description):
    """An import, the default, `system` or the user's own settings leave it unchanged."""
    main, thread, said = additions(end, **variables)
    assert main > 1000
    assert thread > 1000
    assert said == f"glibc {allocator._glibc()}{description}"


def test_allocator_unknown_value_is_one_line_error():
    """An unknown TIEKD_ALLOCATOR ends the program with 2 and one line."""
    code = "from tiekd.distributed import entrypoint\nentrypoint.program(lambda: print('began'))"
    done = told(code, TIEKD_ALLOCATOR="jemalloc")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "LaunchError: TIEKD_ALLOCATOR: got 'jemalloc'; allowed: keep, system; unset, it is system\n"
    )


@glibc_only
def test_allocator_kept_memory_is_not_measured():
    """Kept memory doesn't count in the measured peak of a call or a micro-batch.

    A call or a micro-batch is measured as if nothing had been freed before.
    """
    done = told(
        """
        import torch
        from tiekd.distributed import allocator, memory
        from tiekd.tools import micro_batch
        from tiekd.tools.benchmarks.measure import peak_bytes

        cpu = torch.device("cpu")
        allocator.set_by_environment()
        kept = torch.ones(100_000_000)
        last = torch.ones(10)
        del kept
        print(peak_bytes(lambda: torch.ones(10_000_000), cpu))
        kept = torch.ones(100_000_000)
        last = torch.ones(10)
        del kept
        def make(n):
            return torch.ones(10_000_000 * n)
        for found in micro_batch.find_largest([1, 2, 4], make, cpu, 1e12):
            print(found.peak_bytes)
        allocator.give_back()
        print(memory.held_bytes(cpu))
    """,
        **KEEP,
    )
    assert done.returncode == 0, done.stderr
    call, one, _, four, held = map(float, done.stdout.splitlines())
    assert call == pytest.approx(40e6, abs=4e6)
    # glibc may need room for two tensors before it finds the first one's again.
    assert one - held < 150e6
    assert four - one > 80e6


@glibc_only
def test_allocator_keep_reuses_tensors_above_heap_size():
    """A thread reuses the memory of tensors larger than one of its heaps."""
    done = told(
        """
        import resource, threading
        import torch
        from tiekd.distributed import allocator

        def fill(count):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(count):
                torch.ones(17_000_000)
            return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count

        allocator.set_by_environment()
        thread = threading.Thread(target=lambda: print(fill(16), fill(4)))
        thread.start()
        thread.join()
    """,
        **KEEP,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[1]) < 100
