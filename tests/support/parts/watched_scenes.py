"""The built-in scenes; reading a validation frame touches a file.

The file shows that an evaluation is running.
"""

from pathlib import Path

from tiekd.data.datasets import scenes


class Watched:
    """A dataset that touches the file `mark` whenever a frame is read."""

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
