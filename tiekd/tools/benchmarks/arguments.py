"""Defines the command-line options of the benchmarks.

The benchmarks' own modules take seconds to import, so this one doesn't import them. The values that
an option allows are repeated here; tests/unit/tools/benchmarks/test_benchmarks.py compares them
with the values that the benchmarks accept.
"""

import argparse
import re
from pathlib import Path

from tiekd import paths
from tiekd.config import shipped

_STUDENTS = shipped.folder(shipped.RECIPES) / "students"
PUBLISHED = _STUDENTS / "tiekd_mobilenet_v2_adabins_kitti.yaml"
LIGHT = _STUDENTS / "tiekd_light_bts_kitti.yaml"
AUTOCAST = ("fp32", "bf16")
DTYPES = ("fp32", "bf16", "fp16")
TARGETS = ("gaussian", "released")
FORMATS = ("auto", "channels_last", "contiguous")
AGAINST = ("bare", "torch")
LARGEST = 10**6  # largest size or count that an option accepts
OTHERS = ("products", "compiled", "chunks")


def positive_int(text: str) -> int:
    """Converts the text of a command-line argument to an int from 1 to LARGEST, for argparse.

    Args:
        text: the text of a size or a count.

    Raises:
        argparse.ArgumentTypeError: the text isn't a whole number in this range.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"got {text!r:.80}; it must be a whole number from 1 to {LARGEST}"
        )
    return int(text)


def _add_batch(parser: argparse.ArgumentParser, of: str = "a step") -> None:
    """Adds the options `--batch`, the number of images in a batch, and `--height` and `--width`.

    Height and width are those of the images, in pixels.

    Args:
        parser: the benchmark's parser.
        of: text that follows the word "images" in the help of `--batch`, such as "a step".
    """
    parser.add_argument("--batch", type=positive_int, default=1, help=f"images {of}, default 1")
    parser.add_argument("--height", type=positive_int, default=352)
    parser.add_argument("--width", type=positive_int, default=704)


def _add_recipe(parser: argparse.ArgumentParser, default: Path, whose: str) -> None:
    """Adds the option `--recipe`, the path of the recipe of the network that is measured.

    The path is stored as a string, so that it can be part of the JSON report.

    Args:
        parser: the benchmark's parser.
        default: path of the recipe if the option isn't given.
        whose: text that names this recipe in the help.
    """
    parser.add_argument(
        "--recipe", type=paths.path_text_argument, default=str(default), help=f"default {whose}"
    )


def _add_kitti(parser: argparse.ArgumentParser) -> None:
    """Adds the options `--data FOLDER`, a folder with the KITTI dataset, and `--kb-crop H W`.

    Without the folder, the benchmark renders images. The crop is the rectangle of KITTI's images
    that is read.

    Args:
        parser: the benchmark's parser.
    """
    parser.add_argument(
        "--data",
        type=paths.path_argument,
        metavar="FOLDER",
        help="KITTI; without it scenes are rendered",
    )
    parser.add_argument(
        "--kb-crop",
        type=positive_int,
        nargs=2,
        default=(352, 1216),
        metavar=("H", "W"),
        help="default 352 1216",
    )


def _add_compile(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--compile`, which compiles encoder and decoder with torch.compile.

    Args:
        parser: the benchmark's parser.
    """
    parser.add_argument(
        "--compile", action="store_true", help="our encoder and decoder by torch.compile"
    )


def of_head(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `head` to a parser.

    The benchmark compares time and memory of the DPM head's kernels with a plain implementation.

    Args:
        parser: the benchmark's parser.
    """
    for name, default in (
        ("batch", 1),
        ("height", 352),
        ("width", 704),
        ("channels", 128),
        ("bins", 257),
    ):
        parser.add_argument(
            f"--{name}", type=positive_int, default=default, help=f"default {default}"
        )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of features and weights, default fp32"
    )
    parser.add_argument("--target", choices=TARGETS, default="gaussian", help="default gaussian")
    parser.add_argument("--layout", choices=("channels_last", "contiguous"), default="contiguous")
    parser.add_argument(
        "--also", choices=OTHERS, nargs="*", default=["products"], help="what else to compare with"
    )
    parser.add_argument(
        "--tb-per-s", type=float, help="of the device's memory, measured by default (cuda)"
    )


def of_step(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `step` to a parser.

    The benchmark compares time and memory of tiekd's training step with those of a plain one.

    Args:
        parser: the benchmark's parser.
    """
    _add_recipe(parser, PUBLISHED, "the published KITTI student's")
    _add_batch(parser)
    parser.add_argument(
        "--dtype", choices=AUTOCAST, default="fp32", help="of our step, by autocast; default fp32"
    )
    parser.add_argument(
        "--memory-format",
        choices=FORMATS,
        default="auto",
        help="of our step, as in an engine config",
    )
    _add_compile(parser)


def of_loader(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `loader` to a parser.

    The benchmark compares the time to make a training sample with the time to decode its files.

    Args:
        parser: the benchmark's parser.
    """
    _add_kitti(parser)
    parser.add_argument(
        "--crop",
        type=positive_int,
        nargs=2,
        default=(352, 704),
        metavar=("H", "W"),
        help="default 352 704",
    )


def of_eval(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `eval` to a parser.

    The benchmark compares time and memory of tiekd's evaluation with those of a plain one.

    Args:
        parser: the benchmark's parser.
    """
    _add_kitti(parser)
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        help="of our evaluation, default 8 on a GPU and 1 on a CPU",
    )
    parser.add_argument(
        "--student",
        type=paths.path_text_argument,
        metavar="RECIPE",
        help="a real network, too, with weights as initialised",
    )
    parser.add_argument(
        "--student-frames", type=positive_int, default=2, help="how many it is timed on, default 2"
    )


def of_engine(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `engine` to a parser.

    The benchmark compares time and memory of the training loop and its hooks with a bare loop.

    Args:
        parser: the benchmark's parser.
    """
    _add_recipe(parser, LIGHT, "the light KITTI student's")
    parser.add_argument(
        "--deepspeed_config",
        type=paths.path_argument,
        metavar="JSON",
        help="default ds_configs/fp32.json",
    )
    _add_batch(parser)
    parser.add_argument(
        "--block",
        type=positive_int,
        default=4,
        help="iterations between two changes of loop, default 4",
    )
    parser.add_argument("--against", choices=AGAINST, default="bare", help="default bare")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2], help="with --against torch, default 1 2"
    )
    parser.add_argument(
        "--zero",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        choices=range(4),
        help="with --against torch, default 0 1 2",
    )


def of_student(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `student` to a parser.

    The benchmark measures a network's number of parameters, latency and memory.

    Args:
        parser: the benchmark's parser.
    """
    _add_recipe(parser, PUBLISHED, "the published KITTI student's")
    parser.add_argument("--teacher", action="store_true", help="the recipe's teacher instead")
    _add_batch(parser, "a forward")
    parser.add_argument(
        "--dtype",
        choices=AUTOCAST,
        default="fp32",
        help="of our forward, by autocast; default fp32",
    )
    parser.add_argument("--memory-format", choices=FORMATS, default="auto", help="of our forward")
    _add_compile(parser)


def of_teacher(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `teacher` to a parser.

    The benchmark compares time and memory of a training step with cached teacher maps with those of
    a step that runs the teacher's network.

    Args:
        parser: the benchmark's parser.
    """
    _add_recipe(parser, PUBLISHED, "the published student's, from AdaBins")
    _add_batch(parser)
    parser.add_argument(
        "--dtype", choices=AUTOCAST, default="fp32", help="of student and teacher, by autocast"
    )


def of_layouts(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `layouts` to a parser.

    The benchmark measures the time of a CPU's convolutions in each memory layout.

    Args:
        parser: the benchmark's parser.
    """
    parser.add_argument(
        "--shrink",
        type=positive_int,
        default=1,
        help="divides rows and columns of pixels, default 1",
    )


def of_growth(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark `growth` to a parser.

    The benchmark measures how a training step's time and memory grow with batch size, crop, number
    of bins and number of ranks.

    Args:
        parser: the benchmark's parser.
    """
    _add_recipe(parser, LIGHT, "the light KITTI student's")
    parser.add_argument(
        "--batches", type=positive_int, nargs="+", default=[1, 2, 4, 8], help="default 1 2 4 8"
    )
    parser.add_argument(
        "--height", type=positive_int, default=176, help="of the smallest crop, default 176"
    )
    parser.add_argument(
        "--width", type=positive_int, default=352, help="of the smallest crop, default 352"
    )
    parser.add_argument(
        "--crops",
        type=positive_int,
        nargs="+",
        default=[1, 2, 4],
        help="times its pixels, default 1 2 4",
    )
    parser.add_argument(
        "--bins",
        type=positive_int,
        nargs="+",
        default=[64, 128, 256, 512],
        help="default 64 128 256 512",
    )
    parser.add_argument(
        "--ranks", type=int, nargs="*", default=[1, 2], help="default 1 2; none of them: --ranks"
    )
    parser.add_argument(
        "--dtype", choices=AUTOCAST, default="fp32", help="by autocast; default fp32"
    )
    parser.add_argument(
        "--plot",
        type=paths.path_argument,
        metavar="PNG",
        help="where the plot goes; none by default",
    )


OF = {
    "head": of_head,
    "step": of_step,
    "loader": of_loader,
    "eval": of_eval,
    "engine": of_engine,
    "student": of_student,
    "teacher": of_teacher,
    "layouts": of_layouts,
    "growth": of_growth,
}
