"""The plan of a distillation, OUT/plan.yaml: everything that was asked for, chosen or measured.

What is measured (sizes of images, latencies, seconds of an iteration) is written here before
training begins, and never measured again: the recipe follows from the plan alone. A key that isn't
known yet is null. The user may edit the file; a command line that contradicts it is refused.
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
    """The choices of one distillation.

    Attributes:
        images: Absolute path of the folder of images, or of a list of them.
        teacher: `{"teacher": {...}}` or `{"teachers": [...]}`.
        depth: Absolute path of the folder of measured depth; None without.
        depth_unit: Levels that make a metre in its PNG.
        intrinsics: Cameras of the images, a value of data.intrinsics; None without.
        frame_rate: Frames a second that are taken of a video.
        max_depth: Largest depth of the student in metres.
        audit: False to go on whatever the teacher's audit says.
        hours: How long to train; None if `epochs` was asked for.
        epochs: How often each image is seen; None if `hours` was asked for.
        max_latency_ms: The largest latency of the exported file; None for any.
        latency_on: Where it holds, "cpu" or "cuda".
        latency_threads: Threads of the exported file when it is measured.
        init: Weights to start from, "random", or None for those of ImageNet.
        seed: The seed of the training.
        patience: Evaluations without an improvement after which it stops; None for never.
        ranks: Number of ranks.
        rank_threads: Threads of a rank on a CPU.
        batch_size: Images of an iteration, all ranks together; None until the images are counted.
        size: [height, width] of the working resolution; None until the images are read.
        resize_mode: How images get to it, a mode of data.resize; None until then.
        image_size: [height, width] of most images, which the exported file takes; None until then.
        student: Name of the student; None until it is chosen.
        iterations: Length of the training if `hours` was asked for; None until it is measured.
        checkpoint_every: Iterations between two checkpoints; None until then.
        measured: What the choices follow from: latencies and seconds, for people.
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


# Option of the command line -> key of the plan, where they differ.
_KEYS = {
    "max_latency": "max_latency_ms",
    "on": "latency_on",
    "threads": "latency_threads",
}
_OPTIONS = (
    *("depth_unit", "frame_rate", "max_depth", "hours", "epochs", "max_latency", "on", "threads"),
    *("seed", "patience", "batch_size", "size", "student", "intrinsics"),
)


def given(args: argparse.Namespace, teacher: dict | None) -> dict:
    """Returns what a command line says about the plan: key -> value.

    Args:
        args: The checked command line.
        teacher: The section of its teacher; None if it has none.
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


def new(asked: Mapping, threads: int) -> Plan:
    """Returns a plan of what is asked for, with the defaults of the rest.

    Args:
        asked: The result of `given`.
        threads: The threads of a rank on this machine.

    Raises:
        LaunchError: Something that a new plan needs isn't given.
    """
    if "teacher" not in asked:
        raise LaunchError("--teacher: not given; from whom shall the student learn?")
    if "hours" not in asked and "epochs" not in asked:
        raise LaunchError("--hours or --epochs: neither is given; how long shall it train?")
    plan = Plan(**asked)
    plan.rank_threads = threads
    if plan.student is None and plan.max_latency_ms is None:
        plan.student = family.DEFAULT
    return plan


def threads_of_rank(ranks: int) -> int:
    """Returns the threads of a rank on a CPU: OMP_NUM_THREADS, or a rank's share of the cores.

    Args:
        ranks: Number of ranks.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if text.isdecimal() and int(text) > 0:
        return int(text)
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def update_open(plan: Plan, asked: Mapping, has_begun: bool) -> None:
    """Takes over from a command line what no choice follows from yet.

    A budget that can't be met, or a finding of the audit, stops a call. The answer to it is given
    with the next call, and must not contradict the plan. Once the training has begun, the audit is
    over: another plan would be refused with every later call.

    Args:
        plan: The plan, which is changed.
        asked: The result of `given` for the command line.
        has_begun: True once the training has begun.
    """
    keys = [] if has_begun else ["audit"]
    if plan.student is None:
        keys += ["max_latency_ms", "latency_on", "latency_threads", "student"]
    if plan.epochs is None and plan.iterations is None:
        keys += ["hours"]
    for key in keys:
        setattr(plan, key, asked.get(key, getattr(plan, key)))


def agree(plan: Plan, asked: Mapping, out: Path) -> None:
    """Refuses a command line that contradicts a plan.

    Args:
        plan: The plan.
        asked: The result of `given` for the command line.
        out: The folder of the plan, for the message.

    Raises:
        LaunchError: A value differs.
    """
    for key, value in asked.items():
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
    """Reads the plan of a folder; None if there is none.

    Args:
        out: The folder.

    Raises:
        LaunchError: The plan can't be read, or has an unknown key or a value of another type.
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
        told = " ".join(str(error).split())
        raise LaunchError(
            f"{path}: can't be used as a plan ({told}); mend it, or remove it"
        ) from None


def write(plan: Plan, out: Path) -> None:
    """Writes a plan into its folder, atomically.

    Args:
        plan: The plan.
        out: The folder.
    """
    replace_text(out / FILE, _HEAD + recipe_yaml.dump(dataclasses.asdict(plan), width=100))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
