"""The command line of bin/distill.py: mistakes, sizes and latencies as texts."""

import argparse
from pathlib import Path

import pytest

from tiekd.errors import LaunchError
from tiekd.tools.distill import options

NAMES = (
    *("teacher", "hours", "epochs", "size", "max_depth", "student", "max_latency", "on"),
    *("threads", "depth", "depth_unit", "init", "frame_rate", "batch_size", "seed", "patience"),
    *("accept_audit", "until", "intrinsics"),
)


def arguments(folder: Path, **given) -> argparse.Namespace:
    """Returns a parsed command line with an existing folder of images."""
    (folder / "rides").mkdir(exist_ok=True)
    node = dict.fromkeys(NAMES) | {"images": folder / "rides", "out": folder / "out"}
    return argparse.Namespace(**node | {"launcher": [], "teacher_set": []} | given)


MISTAKES = [
    ({"images": Path("/no/rides")}, "/no/rides: no such folder or list"),
    ({"hours": 0.0}, "--hours: got 0.0; it must be above 0"),
    ({"hours": -1.0}, "--hours: got -1.0"),
    ({"hours": float("nan")}, "--hours: got nan"),
    ({"epochs": 0}, "--epochs: got 0; it must be a whole number from 1"),
    ({"hours": 1.0, "epochs": 2}, "--hours and --epochs can't be combined"),
    ({"max_latency": "20ms", "threads": 0}, "--threads: got 0"),
    ({"threads": 2}, "--threads: says where --max-latency holds"),
    ({"on": "cpu"}, "--on: says where --max-latency holds"),
    ({"max_latency": "fast"}, "--max-latency: got 'fast'; give a time above 0, such as 20ms"),
    ({"max_latency": "0ms"}, "--max-latency: got '0ms'"),
    ({"max_latency": "20ms", "student": "lite0"}, "--student and --max-latency can't be combined"),
    ({"student": "resnet50"}, "--student: got 'resnet50'; the family has, from small to large: "),
    ({"size": "192"}, "--size: got '192'; give height x width"),
    ({"size": "32x640"}, "--size: got '32x640'"),
    ({"max_depth": 0.5}, "--max-depth: got 0.5; it must be above 1"),
    ({"depth": Path("/no/depth")}, "--depth: no folder at /no/depth"),
    ({"depth_unit": 1000.0}, "--depth-unit: is the unit of --depth's files"),
    ({"until": "training"}, "--until: got 'training'; the stages are data, audit, cache"),
    ({"init": "/no/weights.pth"}, "--init: nothing at /no/weights.pth"),
    ({"intrinsics": "721,721"}, "--intrinsics: got '721,721'; give FX,FY,CX,CY"),
    ({"intrinsics": "0,721,1,1"}, "--intrinsics: got '0,721,1,1'"),
    ({"intrinsics": "cams.txt"}, "--intrinsics: got 'cams.txt'"),
    ({"batch_size": 0}, "--batch-size: got 0"),
    ({"frame_rate": 0.0}, "--frame-rate: got 0.0"),
    ({"launcher": ["--num_gpus=0"]}, "--num_gpus: got '0'"),
    ({"launcher": ["--hostfile=hosts"]}, "--hostfile: distill runs on one machine"),
]


@pytest.mark.parametrize(("given", "told"), MISTAKES)
def test_options_mistake_is_one_line(tmp_path, given, told):
    """Each mistake is one line that begins with the option."""
    with pytest.raises(LaunchError) as error:
        options.check(arguments(tmp_path, **given))
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_options_accept_limits(tmp_path):
    """The least whole numbers, and any time above 0, are accepted."""
    args = arguments(tmp_path, hours=0.001, seed=0, batch_size=1, size="64x64", max_latency="1")
    options.check(args)
    assert (args.size, args.max_latency) == ([64, 64], 1.0)


@pytest.mark.parametrize("out", ["rides/out", "rides", "."])
def test_options_refuse_nested_folders(tmp_path, out):
    """--out may neither be inside the images' folder nor around it."""
    with pytest.raises(LaunchError, match="images"):
        options.check(arguments(tmp_path, out=tmp_path / out))


def test_options_refuse_folder_inside_through_link(tmp_path):
    """--out is compared by its real place."""
    args = arguments(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "rides")
    args.out = tmp_path / "link" / "out"
    with pytest.raises(LaunchError, match="inside the folder of the images"):
        options.check(args)


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("20ms", 20), ("20", 20), ("0.02s", 20), ("1.5 MS", 1.5)]
)
def test_options_read_latency(text, milliseconds):
    """A latency is read in milliseconds or seconds."""
    assert options.parse_latency(text) == pytest.approx(milliseconds)


def test_options_read_intrinsics(tmp_path):
    """Cameras are numbers, a file by its absolute path, or exif."""
    (tmp_path / "cams.txt").touch()
    assert options.parse_intrinsics("721.5,721.5,609,172") == [721.5, 721.5, 609.0, 172.0]
    assert options.parse_intrinsics(str(tmp_path / "cams.txt")) == str(tmp_path / "cams.txt")
    assert options.parse_intrinsics("exif") == "exif"


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ([], None),
        (["--num_gpus=3"], 3),
        (["--include=localhost:4,5"], 2),
        (["--master_port=1"], None),
    ],
)
def test_options_count_ranks(launcher, ranks):
    """The number of ranks follows from the launcher's options."""
    assert options.ranks_of(launcher) == ranks
