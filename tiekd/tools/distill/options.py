"""Checks the command line of `distill` before any image is read, and lists the stages.

An option that can't be used raises LaunchError, which is printed as one line with exit code 2.
Options that aren't given stay None, so that they don't replace values of the plan (plan.py).
"""

import argparse
import math
import re
from pathlib import Path

from tiekd.distributed import hostfile
from tiekd.errors import LaunchError
from tiekd.tools.distill import family

STAGES = (
    *("data", "audit", "cache", "student", "train", "evaluate", "calibrate", "export", "report"),
)
_LAUNCHER = ("num_gpus", "include", "master_port")
_LEAST_SIDE = 64  # twice the largest stride of the family's encoders
_LARGEST_SIDE = 4096


def check(args: argparse.Namespace) -> None:
    """Checks the options of bin/distill.py, and converts some of their texts to values, in place.

    `size` becomes [height, width] in pixels and `max_latency` a number of milliseconds.
    `intrinsics` becomes a list of numbers, the absolute path of a file, or "exif".

    Args:
        args: The parsed command line, which is changed.

    Raises:
        LaunchError: An option's value isn't allowed, two options exclude each other, or one needs
            another that isn't given.
    """
    _check_folders(args.images, args.out)
    if args.hours is not None and args.epochs is not None:
        raise LaunchError("--hours and --epochs can't be combined; give one of them")
    _check_positive(args)
    if args.student is not None:
        family.find(args.student)
        if args.max_latency is not None:
            raise LaunchError(
                "--student and --max-latency can't be combined: the second chooses the student; "
                "give one of them"
            )
    args.size = None if args.size is None else parse_size(args.size)
    if args.intrinsics is not None:
        args.intrinsics = parse_intrinsics(args.intrinsics)
    if args.max_latency is not None:
        args.max_latency = parse_latency(args.max_latency)
    for option in ("on", "threads"):
        if getattr(args, option) is not None and args.max_latency is None:
            raise LaunchError(f"--{option}: says where --max-latency holds; give that, too")
    if args.depth is not None and not args.depth.is_dir():
        raise LaunchError(f"--depth: no folder at {args.depth}; give that of the depth maps")
    if args.depth_unit is not None and args.depth is None:
        raise LaunchError("--depth-unit: is the unit of --depth's files; give that, too")
    if args.until is not None and args.until not in STAGES:
        raise LaunchError(f"--until: got {args.until!r}; the stages are {', '.join(STAGES)}")
    if args.init not in (None, "random") and not Path(args.init).exists():
        raise LaunchError(f"--init: nothing at {args.init}; give weights of tiekd, or random")
    _check_launcher(args.launcher)


def parse_size(text: str) -> list[int]:
    """Converts a text such as "192x640" to [height, width] in pixels.

    Args:
        text: The value of --size.

    Raises:
        LaunchError: The text has another form, or a side isn't from 64 to 4096 pixels.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = [int(side) for side in found.groups()] if found else []
    if not size or not _LEAST_SIDE <= min(size) <= max(size) <= _LARGEST_SIDE:
        raise LaunchError(
            f"--size: got {text!r}; give height x width in pixels, from {_LEAST_SIDE} to "
            f"{_LARGEST_SIDE} a side, such as 192x640"
        )
    return size


def parse_latency(text: str) -> float:
    """Converts a text such as "20ms", "20" or "0.02s" to a number of milliseconds.

    Args:
        text: The value of --max-latency.

    Raises:
        LaunchError: The text isn't a time above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|)", text.strip().lower())
    milliseconds = float(found[1]) * (1000 if found[2] == "s" else 1) if found else 0.0
    if not 0 < milliseconds < math.inf:
        raise LaunchError(f"--max-latency: got {text!r}; give a time above 0, such as 20ms")
    return milliseconds


def parse_intrinsics(text: str) -> list[float] | str:
    """Converts the value of --intrinsics to a value of the recipe's key `data.intrinsics`.

    Args:
        text: The value of --intrinsics: "exif", the path of a file of intrinsics, or four or six
            numbers separated by commas.

    Returns:
        "exif"; the file's absolute path; or the numbers [fx, fy, cx, cy] in pixels, with the
        image's width and height as further numbers if they are given.

    Raises:
        LaunchError: The value has another form, or a focal length isn't above 0.
    """
    if text == "exif":
        return text
    if Path(text).is_file():
        return str(Path(text).absolute())
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (4, 6) or not all(map(math.isfinite, found)) or min(found[:2]) <= 0:
        raise LaunchError(
            f"--intrinsics: got {text!r}; give FX,FY,CX,CY in pixels of the upright images, focal "
            "lengths above 0 (for images of several sizes also width and height), a file of "
            "intrinsics, or exif"
        )
    return found


def ranks_of(launcher: list[str]) -> int | None:
    """Returns the number of ranks that options of DeepSpeed's launcher ask for; None if none does.

    Args:
        launcher: The options, each as `--name=value`. `num_gpus` and `include` give a number.
    """
    given = dict(option.removeprefix("--").split("=", 1) for option in launcher)
    if "num_gpus" in given:
        return int(given["num_gpus"])
    if "include" in given:
        return max(1, len(re.findall(r"\d+", given["include"].partition(":")[2])))
    return None


def _check_folders(images: Path, out: Path) -> None:
    """Checks the folders of the images and of --out.

    Args:
        images: The folder of images, or a text file that lists them.
        out: The folder of --out.

    Raises:
        LaunchError: The images don't exist, `out` is a file, or one folder is inside the other.
    """
    if not images.exists():
        raise LaunchError(f"{images}: no such folder or list; give the folder of the images")
    if out.exists() and not out.is_dir():
        raise LaunchError(f"--out {out}: is a file; give a folder")
    if not images.is_dir():
        return
    inside, around = out.resolve(), images.resolve()
    if inside.is_relative_to(around):
        raise LaunchError(
            f"--out {out}: is inside the folder of the images, which is only read; give another"
        )
    if around.is_relative_to(inside):
        raise LaunchError(f"--out {out}: has the images in it; give a folder of its own")


def _check_positive(args: argparse.Namespace) -> None:
    for option, least, most in (
        ("hours", 0, 24 * 365),
        ("epochs", 1, 10**6),
        ("threads", 1, 1024),
        ("max_depth", 1, 1000),
        ("depth_unit", 1, 1e9),
        ("frame_rate", 0, 1000),
        ("batch_size", 1, 65536),
        ("patience", 1, 10**6),
        ("seed", 0, 2**31),
    ):
        value = getattr(args, option)
        if value is None:
            continue
        # Allow the smallest value itself only for options that are whole numbers: a time, a rate or
        # a depth must be above it.
        is_whole = isinstance(value, int)
        if not (least <= value <= most and (is_whole or value > least)):
            kind = "a whole number from" if is_whole else "above"
            name = option.replace("_", "-")
            raise LaunchError(f"--{name}: got {value}; it must be {kind} {least}, at most {most}")


def _check_launcher(launcher: list[str]) -> None:
    for option in launcher:
        name = option.removeprefix("--").partition("=")[0]
        if name not in _LAUNCHER:
            raise LaunchError(
                f"--{name}: distill runs on one machine; of the launcher's options it takes "
                f"{', '.join(f'--{each}' for each in _LAUNCHER)}"
            )
    hostfile.check_options(launcher)
