"""The built-in scenes, with validation frames that leave a mark when they are read.

The mark says that an evaluation is running.
"""

from pathlib import Path

from tiekd.data.datasets import scenes


class Watched:
    """A data set that touches the file `mark` at every frame."""

    def __init__(self, frames, mark: Path):
        self.frames, self.mark = frames, mark

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int):
        self.mark.touch()
        return self.frames[index]


def build(
    mark: str,
    root: str,
    split: str,
    height: int,
    width: int,
    num_train: int,
    num_val: int,
    max_depth: float,
):
    options = scenes.ScenesOptions(root, height, width, num_train, num_val)
    frames = scenes.build(options, split, max_depth)
    return Watched(frames, Path(mark)) if split == "val" else frames
