"""The built-in scenes, with one training image all NaN, as after a fault of a camera driver."""

import math

import torch

from tiekd.data.datasets import scenes


class Bad(torch.utils.data.Dataset):
    def __init__(self, frames, bad: int):
        self.frames, self.bad = frames, bad

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int):
        sample = self.frames[index]
        if index != self.bad:
            return sample
        return sample._replace(image=torch.full_like(sample.image, math.nan, dtype=torch.float32))


def build(
    bad: int,
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
    return Bad(frames, bad) if split == "train" else frames
