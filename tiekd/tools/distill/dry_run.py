"""Estimates the time, memory and disk space that each stage of a distillation needs: `--dry-run`.

The stages up to the choice of the student run on up to 32 of the user's images, in a temporary
folder and with the same programs. Times and sizes that grow with the number of images are
extrapolated. The printed table says what each estimate is based on. Nothing is written to the
folder of --out.
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiekd.data.frame_table import spaced
from tiekd.data.image_io import read_photo
from tiekd.errors import DataError
from tiekd.inference.predict.video import Video
from tiekd.tools.distill import images, recipes, stages
from tiekd.tools.distill.commands import Commands, ProgramResult
from tiekd.tools.distill.plan import Plan
from tiekd.tools.distill.teacher import STEREO
from tiekd.tools.distill.work import FEWEST, FOUND, Stopped, Work, batch_size

_SAMPLE = "sample"  # folder with links to the images on which the stages are tried
_MOST = 32  # largest number of these images, or of stereo pairs
_FRAME_BYTES_PER_PIXEL = 0.5  # typical size of a JPEG with quality 95


@dataclass(frozen=True)
class Estimate:
    """The estimated time, memory and disk space of a stage; each is None if it isn't known.

    Attributes:
        stage: The stage's name.
        seconds: Wall time.
        peak_bytes: Peak memory of the stage's processes together.
        disk_bytes: Size of the files that the stage writes.
        basis: What was measured for the estimate, as a phrase for the user.
    """

    stage: str
    seconds: float | None
    peak_bytes: int | None
    disk_bytes: float | None
    basis: str


def run(
    plan: Plan, user_out: Path, launcher: Sequence[str], print_line: Callable[[str], None]
) -> int:
    """Runs the first stages on a few images, and prints a table of estimates for all stages.

    Args:
        plan: The plan, which isn't changed.
        user_out: The folder of --out. Nothing is written to it; the table states the free space
            of its disk.
        launcher: Options of DeepSpeed's launcher, each as `--name=value`.
        print_line: Function that prints a line.

    Returns:
        The exit code: 0, or that of the program that failed.

    Raises:
        DataError: There are too few images.
    """
    with tempfile.TemporaryDirectory(prefix="distill_") as name:
        out = Path(name)
        found = images.find(Path(plan.images), [Path(plan.depth)] if plan.depth else [])
        frames = video_frames(found, plan.frame_rate, print_line)
        total = len(found.images) + sum(frames.values())
        print_line(f"{len(found.images)} images, {len(found.videos)} videos: {total} frames in all")
        if total < FEWEST:
            raise DataError(f"{plan.images}: {total} images; a distillation needs {FEWEST} or more")
        # Link the images under their own names, since teacher maps and right images are found by
        # name.
        for file, path in sample_of(found, plan.teacher).items():
            (out / _SAMPLE / file).parent.mkdir(parents=True, exist_ok=True)
            (out / _SAMPLE / file).symlink_to(path.absolute())
        # Leave measured depth out, since few of these images may have it. Accept the audit's
        # findings, so that they don't end the estimation.
        trial = dataclasses.replace(
            plan,
            images=str(out / _SAMPLE),
            depth=None,
            audit=False,
            batch_size=plan.batch_size or batch_size(total, plan.ranks),
            measured={},
        )
        commands = _RecordingCommands(out, plan.ranks, plan.rank_threads, launcher, print_line)
        commands.output = out / "output.txt"
        work = Work(trial, out, commands, print_line)
        seconds_by_stage = {}
        try:
            for stage in ("data", "audit", "cache", "student"):
                started = time.monotonic()
                getattr(work, stage)()
                seconds_by_stage[stage] = time.monotonic() - started
            if not trial.measured.get("seconds_per_iteration"):
                work.measure()
        except Stopped as stopped:
            print_line(commands.output.read_text(encoding="utf-8", errors="replace")[-3000:])
            print_line(str(stopped))
            return stopped.code
        if commands.results["audit-teacher"].code == FOUND and plan.audit:
            print_line("WARNING: the audit of the sample finds something; --until audit shows it")
        rows = estimates(work, seconds_by_stage, commands.results, total, sum(frames.values()))
        print_line("")
        print_line("\n".join(table(rows)))
        needed, free = sum(row.disk_bytes or 0 for row in rows), free_bytes(user_out)
        print_line(f"disk: {_bytes(needed)} in all, {_bytes(free)} are free for {user_out}")
        if needed > free:
            print_line("WARNING: that doesn't fit; make room, or give --out on another disk")
    return 0


@dataclass
class _RecordingCommands(Commands):
    """Runs programs like Commands, and records how each ended.

    Attributes:
        results: Name of a program, such as "check-data" -> how its last call ended.
    """

    results: dict[str, ProgramResult] = field(default_factory=dict)

    def run(
        self, program: str, arguments: Sequence[str], folder: Path | None = None
    ) -> ProgramResult:
        found = super().run(program, arguments, folder)
        self.results[program] = found
        return found


def video_frames(
    found: images.Found, rate: float, print_line: Callable[[str], None]
) -> dict[str, int]:
    """Estimates from each video's duration how many frames will be taken of it.

    Args:
        found: The user's files. Videos that can't be read are removed from it.
        rate: Number of frames that are taken per second of video.
        print_line: Function that prints a line; called for each video that is removed.

    Returns:
        Name of each video -> number of frames, at least 1.
    """
    frames = {}
    for name, path in list(found.videos.items()):
        try:
            video = Video(path)
        except DataError as error:
            if "PyAV" in str(error):
                raise
            print_line(f"left out: {error}")
            del found.videos[name]
            continue
        frames[name] = max(1, min(video.count, round(float(video.count / video.rate) * rate)))
    return frames


def sample_of(found: images.Found, teacher: dict) -> dict[str, Path]:
    """Chooses the files on which the first stages are tried: up to 32 evenly spaced images.

    The smallest video is added if there are fewer images than a distillation needs.

    Args:
        found: The user's files.
        teacher: The recipe's section of the teacher. If it is a stereo teacher, which needs a
            second camera's images, left images are chosen and their right images added.

    Returns:
        Path below the user's folder -> the file.
    """
    node, rights = teacher.get("teacher") or {}, {}
    if node.get("name") == STEREO:
        rights = images.pairs_of(found, node.get("right"))
    every = sorted(rights or found.images)
    names = [every[place] for place in spaced(len(every), _MOST)]
    sample = {name: found.images[name] for name in names}
    by_file = {path: name for name, path in found.images.items()}
    sample |= {by_file[rights[name]]: rights[name] for name in names if name in rights}
    if len(names) < FEWEST and found.videos:
        smallest = min(found.videos, key=lambda name: found.videos[name].stat().st_size)
        sample[smallest] = found.videos[smallest]
    return sample


def estimates(
    work: Work,
    seconds_by_stage: dict[str, float],
    results: dict[str, ProgramResult],
    total: int,
    from_videos: int,
) -> list[Estimate]:
    """Estimates the time, memory and disk space of each stage.

    Args:
        work: The stages, of which the first four have run on some images.
        seconds_by_stage: Name of each stage that has run -> its seconds.
        results: Name of each program that has run -> how it ended.
        total: Number of all images and video frames.
        from_videos: Number of video frames among them.

    Returns:
        One estimate per stage, in the order of the stages.
    """
    plan, out = work.plan, work.out
    seen = work.images_left
    more = max(0, total - seen)
    height, width = plan.image_size
    read_s = _reading_s(out)
    frames_bytes = from_videos * height * width * _FRAME_BYTES_PER_PIXEL
    rows = [
        Estimate(
            "data",
            seconds_by_stage["data"] + more * read_s,
            _peak(results, "check-data"),
            frames_bytes,
            f"{seen} of {total} images checked, {1000 * read_s:.0f} ms to read one",
        ),
        Estimate(
            "audit",
            seconds_by_stage["audit"],
            _peak(results, "audit-teacher"),
            1e6,
            f"measured on {seen} images",
        ),
    ]
    maps = sorted((out / recipes.MAPS).rglob("*.png"), key=lambda path: path.stat().st_mtime)
    if len(maps) > 1:
        each_s = (maps[-1].stat().st_mtime - maps[0].stat().st_mtime) / (len(maps) - 1)
        each_bytes = sum(path.stat().st_size for path in maps) / seen
        rows.append(
            Estimate(
                "cache",
                seconds_by_stage["cache"] + more * each_s,
                _peak(results, "cache-teacher"),
                total * each_bytes,
                f"{len(maps)} maps made, {each_s:.2f} s and {each_bytes / 1e6:.2f} MB each",
            )
        )
    rows.append(
        Estimate("student", seconds_by_stage["student"], None, 0.0, "measured; it doesn't grow")
    )
    return rows + _of_training(work, results, total / seen)


def _of_training(work: Work, results: dict[str, ProgramResult], growth: float) -> list[Estimate]:
    """Estimates the stages from the training on: train, evaluate, calibrate, export and report.

    Args:
        work: The stages, whose plan has the measured seconds of an iteration.
        results: Name of each program that has run -> how it ended.
        growth: Number of all images / number of those on which the first stages have run.

    Returns:
        One estimate per stage, in this order.
    """
    measured = work.plan.measured
    iteration_s = measured["seconds_per_iteration"]
    evaluations_s = measured["seconds_of_evaluations"] * growth
    plan = work.plan
    if plan.hours is not None:
        seconds = 3600 * plan.hours
        basis = f"--hours; an iteration takes {iteration_s:.2f} s"
    else:
        training = measured["seconds_of_training"] - measured["seconds_of_evaluations"]
        seconds = training * growth + evaluations_s
        basis = f"{plan.epochs} epochs; an iteration takes {iteration_s:.2f} s, as measured"
    peak = _peak(results, "train")
    disk = None if measured["disk_mb"] is None else 1e6 * measured["disk_mb"]
    return [
        Estimate("train", seconds, peak, disk, basis),
        Estimate("evaluate", evaluations_s / 10 + 10, peak, 1e6, "an evaluation in a dry run"),
        Estimate("calibrate", evaluations_s / 10 + 10, peak, 1e6, "as an evaluation"),
        Estimate("export", None, None, None, "not measured; about a minute"),
        Estimate("report", evaluations_s / 10 + 30, peak, 1e6, "as an evaluation, and timing"),
    ]


def table(rows: list[Estimate]) -> list[str]:
    """Formats estimates as lines of text: a header, a line for each stage, and the total time.

    Args:
        rows: The estimates.
    """
    lines = [f"{'stage':<10}{'time':>10}{'memory':>10}{'disk':>10}  estimated from"]
    for row in rows:
        time_text = "?" if row.seconds is None else stages.duration(row.seconds)
        lines.append(
            f"{row.stage:<10}{time_text:>10}{_bytes(row.peak_bytes):>10}"
            f"{_bytes(row.disk_bytes):>10}  {row.basis}"
        )
    known = sum(row.seconds or 0 for row in rows)
    lines.append(f"about {stages.duration(known)} in all; every figure is an estimate")
    return lines


def free_bytes(folder: Path) -> int:
    """Returns the free bytes of the disk on which a folder is or will be.

    Args:
        folder: The folder; it may not exist yet.
    """
    there = folder.absolute()
    return shutil.disk_usage(next(each for each in (there, *there.parents) if each.is_dir())).free


def _peak(results: dict[str, ProgramResult], program: str) -> int | None:
    return results[program].peak_bytes or None if program in results else None


def _bytes(count: float | None) -> str:
    if count is None:
        return "?"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _reading_s(out: Path) -> float:
    """Measures the mean seconds to read one of up to 8 images in OUT/images.

    Args:
        out: The temporary folder in which the first stages have run, called OUT here.
    """
    paths = [path for path in (out / images.IMAGES).rglob("*") if path.is_file()][:8]
    started = time.perf_counter()
    for path in paths:
        read_photo(path)
    return (time.perf_counter() - started) / max(1, len(paths))
