"""A hook that fills a disk, but for some bytes, after an iteration of the first start."""

import os
from pathlib import Path

from tiekd.distributed.comm import is_main
from tiekd.training.hook import Hook


class Filler(Hook):
    """Fills a disk.

    folder: on that disk; a file `filling` in it takes the room. A second start finds `filled` and
    does nothing.
    """

    def __init__(self, folder: str, after: int, free: int):
        self.folder, self.after, self.free = Path(folder), after, free

    def after_iteration(self, state) -> None:
        if state.iteration != self.after or not is_main() or (self.folder / "filled").exists():
            return
        (self.folder / "filled").touch()
        disk = os.statvfs(self.folder)
        with (self.folder / "filling").open("wb") as file:
            file.write(bytes(disk.f_bavail * disk.f_frsize - self.free))


build = Filler
