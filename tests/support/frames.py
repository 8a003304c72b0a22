"""Builds the project's datasets from keyword arguments: options and arguments of `build`."""

from tiekd.data.datasets import folder, kitti, nyu, scenes, shards
from tiekd.data.frames import Frames

_OF_BUILD = ("needs_ground_truth", "maps", "on_error", "held_out")


def kitti_frames(root: str, split: str, max_depth: float, **arguments) -> Frames:
    """Returns the frames of a KITTI split."""
    return _made(kitti.build, kitti.KittiOptions, split, max_depth, {"root": root} | arguments)


def nyu_frames(root: str, split: str, max_depth: float, **arguments) -> Frames:
    """Returns the frames of an NYU split."""
    return _made(nyu.build, nyu.NyuOptions, split, max_depth, {"root": root} | arguments)


def scenes_frames(root: str, split: str, max_depth: float, **arguments) -> Frames:
    """Returns the frames of a split of the built-in scenes."""
    return _made(scenes.build, scenes.ScenesOptions, split, max_depth, {"root": root} | arguments)


def folder_frames(images: str, split: str, max_depth: float, **arguments) -> Frames:
    """Returns the frames of a split of a folder of images."""
    options = {"images": images} | arguments
    return _made(folder.build, folder.FolderOptions, split, max_depth, options)


def shards_frames(root: str, split: str, max_depth: float, **arguments) -> Frames:
    """Returns the frames of a split of tar shards."""
    options = {"root": root} | arguments
    return _made(shards.build, shards.ShardsOptions, split, max_depth, options)


def _made(build, options_class: type, split: str, max_depth: float, arguments: dict) -> Frames:
    options = {key: value for key, value in arguments.items() if key not in _OF_BUILD}
    of_build = {key: value for key, value in arguments.items() if key in _OF_BUILD}
    return build(options_class(**options), split, max_depth, **of_build)
