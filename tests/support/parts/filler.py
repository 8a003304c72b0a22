"""A hook that fills a disk except for some bytes, once, after a given iteration."""

import os
from pathlib import Path

from tiekd.distributed.comm import is_main
from tiekd.training.hook import Hook


class Filler(Hook):
    """Fills the disk of a folder; a resumed run finds the file `filled` and fills nothing.

    Args:
        folder: a folder on the disk, in which the file `filling` takes up the space.
        after: the iteration after which the disk is filled.
        free: number of bytes to leave free.
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
