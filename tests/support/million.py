"""A list of a million images, of which no file is there, and what reading it costs."""

import resource
import time
from collections.abc import Callable
from pathlib import Path


def write_list(path: Path, count: int) -> None:
    """Writes a split file in KITTI's form.

    Args:
        path: The file.
        count: The number of its lines.
    """
    lines = (
        f"2011_09_26/{number:010d}.png drive/{number:010d}.png 721.5377\n"
        for number in range(count)
    )
    path.write_text("".join(lines))


def cost(act: Callable[[], object]) -> tuple[float, float, object]:
    """Returns the CPU seconds of a call, the megabytes that the process grew by, and the result.

    Args:
        act: The call.
    """
    before, start = _resident_mb(), time.process_time()
    result = act()
    return time.process_time() - start, _resident_mb() - before, result


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
