"""The plan of a distillation, a YAML file OUT/plan.yaml with all choices (OUT is --out's folder).

The plan has what the user asked for, what was chosen, and what was measured: sizes of images,
latencies, seconds of an iteration. Measurements are made once, before training begins. The
student's recipe is computed from the plan alone. A value that isn't known yet is null. The user may
edit the file. A later command line that contradicts it is refused.
"""

import argparse
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tiekd.config import recipe_yaml
from tiekd.config.schema import check_value
from tiekd.errors import LaunchError
from tiekd.files import check_readable, replace_text
from tiekd.tools.distill import family, options

FILE = "plan.yaml"
_HEAD = (
    "# The plan of `distill`: what was asked for, and what was measured before the training.\n"
    "# It is kept when the command is given again; recipe.yaml is made from it.\n"
)


@dataclass
class Plan:
    """The choices of one distillation; the keys of plan.yaml.

    Attributes:
        images: Absolute path of the folder of images, or of a text file that lists them.
        teacher: The recipe's section of the teacher, `{"teacher": {...}}` or `{"teachers": [...]}`.
        depth: Absolute path of the folder of measured depth maps; None if there is none.
        depth_unit: The value of 1 m in the PNG files of `depth`.
        intrinsics: Camera intrinsics of the images, as in the recipe's `data.intrinsics`; None if
            not given.
        frame_rate: Number of frames that are taken per second of video.
        max_depth: Largest depth that the student predicts, in metres.
        audit: True to stop if the audit of the teacher finds a measurement outside its limit.
        hours: Duration of the training in hours; None if `epochs` is given.
        epochs: Number of epochs of the training; None if `hours` is given.
        max_latency_ms: Largest latency of the exported file, in ms; None for no limit.
        latency_on: The device on which the latency is measured, "cpu" or "cuda".
        latency_threads: Number of CPU threads with which it is measured.
        init: Path of the student's initial weights, "random", or None for weights of ImageNet.
        seed: Random seed of the training.
        patience: Number of evaluations without an improvement after which training stops; None to
            never stop early.
        ranks: Number of ranks.
        rank_threads: Number of threads of a rank on a CPU.
        batch_size: Images per iteration, summed over all ranks; None until the images are counted.
        size: [height, width] of the student's input in pixels; None until images are read.
        resize_mode: How images are resized to `size`, a value of the recipe's `data.resize.mode`;
            None until images are read.
        image_size: [height, width] of most images in pixels, which is the exported file's input
            size; None until images are read.
        student: Name of the student in `family.py`; None until it is chosen.
        iterations: Number of iterations of the training if `hours` is given; None until the time of
            an iteration is measured.
        checkpoint_every: Iterations between two checkpoints; None until the student is chosen.
        measured: Measurements from which values above were computed, such as latencies. They are
            recorded for the user.
    """

    images: str
    teacher: dict
    depth: str | None = None
    depth_unit: float = 1000.0
    intrinsics: str | list[float] | None = None
    frame_rate: float = 2.0
    max_depth: float = 80.0
    audit: bool = True
    hours: float | None = None
    epochs: int | None = None
    max_latency_ms: float | None = None
    latency_on: str = "cpu"
    latency_threads: int = 1
    init: str | None = None
    seed: int = 0
    patience: int | None = None
    ranks: int = 1
    rank_threads: int = 1
    batch_size: int | None = None
    size: list[int] | None = None
    resize_mode: str | None = None
    image_size: list[int] | None = None
    student: str | None = None
    iterations: int | None = None
    checkpoint_every: int | None = None
    measured: dict = field(default_factory=dict)


# Option of the command line -> key of the plan, for those that have different names.
_KEYS = {
    "max_latency": "max_latency_ms",
    "on": "latency_on",
    "threads": "latency_threads",
}
_OPTIONS = (
    *("depth_unit", "frame_rate", "max_depth", "hours", "epochs", "max_latency", "on", "threads"),
    *("seed", "patience", "batch_size", "size", "student", "intrinsics"),
)


def values_of_arguments(args: argparse.Namespace, teacher: dict | None) -> dict:
    """Returns the values of the plan that a command line gives.

    Args:
        args: The command line, as `options.check` leaves it.
        teacher: The recipe's section for the teacher that it names; None if it names none.

    Returns:
        Attribute of Plan -> value. Options that aren't given are absent.
    """
    found = {_KEYS.get(name, name): getattr(args, name) for name in _OPTIONS}
    found["images"] = str(args.images.absolute())
    found["teacher"] = teacher
    found["depth"] = None if args.depth is None else str(args.depth.absolute())
    found["init"] = args.init
    if args.init not in (None, "random"):
        found["init"] = str(Path(args.init).absolute())
    found["audit"] = False if args.accept_audit else None
    found["ranks"] = options.ranks_of(args.launcher)
    return {key: value for key, value in found.items() if value is not None}


def new(requested: Mapping, threads: int) -> Plan:
    """Returns a new plan, with defaults for values that the command line doesn't give.

    Args:
        requested: Attribute of Plan -> value, as `values_of_arguments` returns it.
        threads: Number of threads of a rank on a CPU.

    Raises:
        LaunchError: The teacher, or the duration of the training (hours or epochs), isn't given.
    """
    if "teacher" not in requested:
        raise LaunchError(
            "--teacher: not given; give the teacher that the student learns from, such as a "
            "recipe, the folder of a model, or an exported network"
        )
    if "hours" not in requested and "epochs" not in requested:
        raise LaunchError(
            "--hours or --epochs: neither is given; give the duration of the training by one of "
            "them"
        )
    plan = Plan(**requested)
    plan.rank_threads = threads
    if plan.student is None and plan.max_latency_ms is None:
        plan.student = family.DEFAULT
    return plan


def threads_of_rank(ranks: int) -> int:
    """Returns the number of CPU threads of a rank.

    It is OMP_NUM_THREADS if that environment variable is set, otherwise the number of available
    cores divided by `ranks`, at least 1.

    Args:
        ranks: Number of ranks.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if text.isdecimal() and int(text) > 0:
        return int(text)
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def update_unused(plan: Plan, requested: Mapping, has_begun: bool) -> None:
    """Changes those values of a plan that no later stage has used yet to what a command line gives.

    The values are the latency limit and the student until a student is chosen, `hours` until the
    number of iterations is computed, and `audit` until training begins. So the user can answer an
    error about one of them with another value, although a command line mustn't contradict the plan.

    Args:
        plan: The plan, which is changed.
        requested: Attribute of Plan -> value, as `values_of_arguments` returns it for the command
            line.
        has_begun: True once training has begun.
    """
    keys = [] if has_begun else ["audit"]
    if plan.student is None:
        keys += ["max_latency_ms", "latency_on", "latency_threads", "student"]
    if plan.epochs is None and plan.iterations is None:
        keys += ["hours"]
    for key in keys:
        setattr(plan, key, requested.get(key, getattr(plan, key)))


def check_agreement(plan: Plan, requested: Mapping, out: Path) -> None:
    """Raises LaunchError if a command line gives another value than the plan has.

    Args:
        plan: The plan.
        requested: Attribute of Plan -> value, as `values_of_arguments` returns it for the command
            line.
        out: The folder of --out, for the error message.

    Raises:
        LaunchError: A value differs.
    """
    for key, value in requested.items():
        kept = getattr(plan, key)
        if value != kept:
            name = next((option for option, of in _KEYS.items() if of == key), key)
            named = {"images": "IMAGES", "ranks": "--num_gpus", "audit": "--accept-audit"}
            option = named.get(key, f"--{name.replace('_', '-')}")
            raise LaunchError(
                f"{option}: got {_short(value)}, but {out / FILE} says {key}: {_short(kept)}; give "
                "the first command again, or another --out"
            )


def read(out: Path) -> Plan | None:
    """Reads and checks the plan, OUT/plan.yaml; returns None if there is no such file.

    Args:
        out: The folder of --out, called OUT here.

    Raises:
        LaunchError: The file can't be read, or has an unknown key or a value of a wrong type.
    """
    path = out / FILE
    check_readable(path, "plan", LaunchError)
    if not path.exists():
        return None
    fields = {each.name: each for each in dataclasses.fields(Plan)}
    try:
        node = recipe_yaml.load(path.read_text(encoding="utf-8"))
        unknown = sorted(set(node) - set(fields))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]}")
        for key, value in node.items():
            check_value(value, fields[key].type, key)
        return Plan(**node)
    except Exception as error:  # noqa: BLE001 - YAML raises many types for a damaged file
        reason = " ".join(str(error).split())
        raise LaunchError(
            f"{path}: can't be used as a plan ({reason}); mend it, or remove it"
        ) from None


def write(plan: Plan, out: Path) -> None:
    """Writes a plan to OUT/plan.yaml, atomically.

    Args:
        plan: The plan.
        out: The folder of --out, called OUT here.
    """
    replace_text(out / FILE, _HEAD + recipe_yaml.dump(dataclasses.asdict(plan), width=100))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
