"""Runs the stages of a distillation: prepares the inputs of each, and starts its program."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tiekd import console
from tiekd.config.recipe import load_recipe
from tiekd.console import Progress
from tiekd.data.resize import of_node
from tiekd.errors import CheckpointError, DataError, LaunchError
from tiekd.files import replace_text
from tiekd.inference.export import export
from tiekd.tools.distill import family, images, latency, recipes, teacher
from tiekd.tools.distill import plan as plans
from tiekd.tools.distill.commands import Commands
from tiekd.tools.distill.plan import Plan
from tiekd.tools.distill.stages import Stage
from tiekd.tools.experiment.launch import told_seconds
from tiekd.tools.report import calibrated
from tiekd.workdir import checkpoints, weights_file, workdir

CHECK, AUDIT, EVALUATION, STUDENT_DATA = "check", "audit", "evaluation", "images.json"
CALIBRATE, REPORT = "calibrate", "report.html"
FOUND = 1  # the exit code of a check or an audit that found something
_MISTAKE = 2  # the exit code of a program that can't use what it is given
FEWEST = 12  # images, below which a teacher can't be audited
_BATCH = 16
_HELD_OUT = 0.1  # the share of images that are held out for evaluation
_CHECKPOINT_EVERY = 500  # iterations at most, where their time isn't measured
_CHECKPOINT_EVERY_S = 600.0
_AUDITED = 32
_FEWEST_AUDITED = 8


class Stopped(BaseException):
    """Raised when a stage ends without being finished; the text says why.

    A signal raises it anywhere, also in code of others that takes every Exception for a failure of
    its own, as torch's ONNX exporter does, which then tries another way.

    Args:
        reason: The text.
        code: The exit code of its program.
    """

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


class Work:
    """The stages of one distillation.

    Args:
        plan: The plan, which the stages complete.
        out: The folder of the distillation.
        commands: Starts programs.
        tell: Prints a line.
    """

    def __init__(self, plan: Plan, out: Path, commands: Commands, tell: Callable[[str], None]):
        self.plan = plan
        self.out = out
        self.commands = commands
        self.tell = tell

    def stages(self) -> list[Stage]:
        """Returns the stages in their order."""
        out = self.out
        outcome = out / recipes.RUN / workdir.OUTCOME
        trained = self._outcome_key
        return [
            Stage("data", self.data, self._data_key, "images or plan", [out / images.IMAGES]),
            Stage("audit", self.audit, self._teacher_key, recipes.TEACHER),
            Stage("cache", self.cache, self._teacher_key, recipes.TEACHER),
            Stage("student", self.student, self._plan_key, plans.FILE, [out / recipes.STUDENT]),
            Stage("train", self.train, self._recipe_key, recipes.STUDENT, [outcome]),
            Stage("evaluate", self.evaluate, trained, "run", [out / f"{EVALUATION}.json"]),
            Stage(CALIBRATE, self.calibrate, trained, "run"),
            Stage("export", self.export, self._weights_key, "weights", [self.exported]),
            Stage("report", self.report, self._figures_key, "weights", [out / REPORT]),
        ]

    @property
    def exported(self) -> Path:
        """The exported file: ONNX, or torch.export's if the packages for ONNX aren't there."""
        is_onnx = latency.runtime(self.plan.latency_on) == "onnx"
        return self.out / ("student.onnx" if is_onnx else "student.pt2")

    def data(self) -> None:
        """Links the images, extracts frames of videos, checks all, and chooses the resolution."""
        plan, out = self.plan, self.out
        found = self._found()
        if plan.depth is not None:
            images.check_depth(Path(plan.depth), found)
        frames = self._frames(found)
        section = self._for_pairs(found)
        images.link(found, out, frames)
        sizes = images.sizes_of(out / images.IMAGES)
        total = sum(sizes.values())
        if total < FEWEST:
            raise DataError(
                f"{plan.images}: {total} images can be read; a distillation needs {FEWEST} or more"
            )
        for (height, width), count in sizes.most_common(4):
            self.tell(f"images: {count} of {height}x{width}")
        if len(sizes) > 4:
            self.tell(f"images: {total - sum(n for _, n in sizes.most_common(4))} of other sizes")
        # Choose what depends on the images, unless the plan has it already.
        common = sizes.most_common(1)[0][0]
        plan.image_size = plan.image_size or list(common)
        plan.size = plan.size or images.default_size(common)
        plan.resize_mode = plan.resize_mode or images.resize_mode(sizes)
        plan.batch_size = plan.batch_size or batch_size(total, plan.ranks)
        plans.write(plan, out)
        self.tell(
            f"working resolution: {plan.size[0]}x{plan.size[1]}, {plan.resize_mode}; the exported "
            f"file takes images of {plan.image_size[0]}x{plan.image_size[1]}"
        )
        recipe = recipes.teacher_recipe(plan, out, section)
        recipes.write(recipe, out / recipes.TEACHER, "The teacher and the images.")
        # The program reads every file, and names those that can't be used. Without validation also
        # those are read that are between training and validation images, and in neither split.
        shutil.rmtree(out / CHECK, ignore_errors=True)
        arguments = [str(out / recipes.TEACHER), "--out", str(out / CHECK)]
        self._run("check-data", [*arguments, "--set", "train.validate=false"], (FOUND,))
        self._leave_out_faulty(found)

    def _leave_out_faulty(self, found: images.Found) -> None:
        """Removes the links to images that the check found faulty, and writes what is left out.

        Args:
            found: The files, to which the faulty ones are added.
        """
        report = json.loads((self.out / CHECK / "report.json").read_text(encoding="utf-8"))
        for finding in report["findings"]:
            if finding["dropped"] and finding["frame"] not in found.left_out:
                found.left_out[finding["frame"]] = f"faulty: {finding['kind']}"
                (self.out / images.IMAGES / finding["frame"]).unlink(missing_ok=True)
        for line in found.told():
            self.tell(line)
        total = sum(path.is_symlink() for path in (self.out / images.IMAGES).rglob("*"))
        if total < FEWEST:
            raise DataError(
                f"{self.plan.images}: {total} images are left; a distillation needs {FEWEST} or "
                "more"
            )
        # Maps of images that were replaced by others of the same name would be kept otherwise.
        files = images.linked(self.out)
        images.drop_maps(self.out / recipes.MAPS, self._files_before(), files)
        kept = {"images": total, "left_out": found.left_out, "files": files}
        replace_text(self.out / STUDENT_DATA, json.dumps(kept, indent=1) + "\n")

    def audit(self) -> None:
        """Audits the teacher, and stops if something is above its limit."""
        if not self.plan.audit:
            self.tell("the audit's findings are accepted (--accept-audit)")
        count = self.images_left
        shutil.rmtree(self.out / AUDIT, ignore_errors=True)
        arguments = [str(self.out / recipes.TEACHER), "--out", str(self.out / AUDIT)]
        arguments += ["--frames", str(max(_FEWEST_AUDITED, min(_AUDITED, count)))]
        code = self._run("audit-teacher", arguments, (FOUND,))
        if code == FOUND and self.plan.audit:
            raise Stopped(
                f"The teacher's audit found something; {self.out / AUDIT}/audit.png shows it. If "
                "the teacher is right all the same, go on with --accept-audit",
                FOUND,
            )

    def cache(self) -> None:
        """Writes the teacher's maps of all images."""
        if teacher.is_cached(self.plan.teacher):
            self.tell("the teacher is cached maps already")
            return
        arguments = [str(self.out / recipes.TEACHER), "--out", str(self.out / recipes.MAPS)]
        self._run("cache-teacher", arguments)

    def student(self) -> None:
        """Chooses the student and the length of the training, and writes the recipe."""
        plan = self.plan
        if plan.student is None:
            self._choose_student()
        if plan.checkpoint_every is None:
            epoch = round((1 - _HELD_OUT) * self.images_left) // plan.batch_size
            plan.checkpoint_every = max(1, min(_CHECKPOINT_EVERY, epoch))
        if plan.epochs is None and plan.iterations is None:
            found = self.measure()
            seconds = found["seconds_per_iteration"]
            plan.checkpoint_every = max(1, round(_CHECKPOINT_EVERY_S / seconds))
            plan.iterations = iterations_in(plan.hours, seconds, found["seconds_of_evaluations"])
        plans.write(plan, self.out)
        self.tell(f"student: {plan.student}, {_length(plan)}")
        path, recipe = self.out / recipes.STUDENT, recipes.student_recipe(plan, self.out)
        purpose = "The student."
        # The user may have edited the recipe of an earlier plan.
        text = recipes.text_of(recipe, purpose).encode(errors="surrogateescape")
        if path.exists() and path.read_bytes() != text:
            aside = weights_file.set_aside(path)
            self.tell(f"{path}: is written anew; the one that was there is {aside.name} now")
        recipes.write(recipe, path, purpose)

    def measure(self) -> dict:
        """Measures an iteration by a dry run of the training, and puts the figures into the plan.

        Returns:
            The figures, as `told_iteration` returns them.

        Raises:
            Stopped: The dry run failed.
        """
        # Only the number of evaluations depends on the length.
        length = self.plan.iterations or (None if self.plan.epochs else 1000)
        trial = Plan(**(vars(self.plan) | {"iterations": length}))
        path = self.out / "measured.yaml"
        log = self.out / "measured.txt"
        recipes.write(recipes.student_recipe(trial, self.out), path, "To measure an iteration.")
        output, self.commands.output = self.commands.output, log
        log.unlink(missing_ok=True)
        try:
            code = self.commands.run("train", [str(path), "--dry-run"]).code
        finally:
            self.commands.output = output
        text = log.read_text(encoding="utf-8", errors="replace")
        found = told_iteration(text)
        path.unlink()
        if code or found is None:
            self.tell(text[-3000:])
            raise Stopped(f"measuring an iteration ended with code {code}; see above", code or 1)
        log.unlink()
        self.plan.measured |= found
        return found

    def train(self) -> None:
        """Trains the recipe, or resumes it."""
        run = self.out / recipes.RUN
        arguments = [str(self.out / recipes.STUDENT), "--work-dir", str(run)]
        self._run("train", [*arguments, "--resume-from", "auto"], folder=run)

    def evaluate(self) -> None:
        """Evaluates the best weights against the teacher and, if there is any, against depth."""
        recipe, run = str(self.out / recipes.STUDENT), str(self.out / recipes.RUN)
        plain = [recipe, run, "--out", str(self.out / f"{EVALUATION}.json")]
        plain += ["--per-image", str(self.out / f"{EVALUATION}.csv")]
        self._run("evaluate", plain)
        if self.plan.depth is None:
            return
        # Score the same frames, held out by sequence, with measured depth.
        listed = self._held_out()
        if listed is None:
            self.tell("no held-out image has measured depth, so there are no figures of accuracy")
            return
        against = ["--set", "evaluation.against=ground_truth", f"data.val_split={listed}"]
        against += ["--out", str(self.out / "accuracy.json")]
        self._run("evaluate", [recipe, run, *against])

    def calibrate(self) -> None:
        """Calibrates the confidence of the best weights, if the held-out images allow it."""
        code = self._run(CALIBRATE, [str(self.out / recipes.RUN)], (_MISTAKE,))
        if code == _MISTAKE:
            # One held-out image, or a student that has learned little, is no reason not to export.
            self.tell("WARNING: the confidence isn't calibrated, as said above; depth is the same")

    def export(self) -> None:
        """Exports the best weights for images of the most common size.

        The file gives confidence, too, with the temperature that the weights hold.
        """
        size = "x".join(map(str, self.plan.image_size))
        arguments = [str(self.out / recipes.STUDENT), str(self.out / recipes.RUN)]
        arguments += ["--out", str(self.exported), "--size", size, "--overwrite", "--confidence"]
        self._run("export", arguments)

    def report(self) -> None:
        """Writes the report of all stages."""
        self._run("report", [str(self.out), "--out", str(self.out / REPORT)])

    @property
    def images_left(self) -> int:
        """The number of images that are used."""
        return json.loads((self.out / STUDENT_DATA).read_text(encoding="utf-8"))["images"]

    def _files_before(self) -> dict:
        """Returns the images of an earlier check; empty without one."""
        try:
            return json.loads((self.out / STUDENT_DATA).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError):
            return {}

    def _found(self) -> images.Found:
        without = [self.out, *([Path(self.plan.depth)] if self.plan.depth else [])]
        return images.find(Path(self.plan.images), without)

    def _frames(self, found: images.Found) -> dict[str, Path]:
        """Returns the folder of the frames of each video, which are extracted if they aren't there.

        Args:
            found: The files; a video that can't be read is left out.
        """
        folders: dict[str, Path] = {}
        if not found.videos:
            return folders
        rate, done = self.plan.frame_rate, []
        self.tell(f"videos: {len(found.videos)}, of each {rate:g} frames a second")
        with Progress("videos", len(found.videos), lambda: len(done), sys.stdout) as progress:
            for name, path in sorted(found.videos.items()):
                # Another video of the same name has frames of its own.
                source = f"{rate:g}_a_second_of_{path.stat().st_size}_bytes"
                folder = self.out / images.FRAMES / name / source
                try:
                    images.extract(path, folder, rate, self.tell)
                    folders[name] = folder
                except DataError as error:
                    # Without PyAV none can be read, which the user has to know.
                    if "PyAV" in str(error):
                        raise
                    found.left_out[name] = "a video that can't be read"
                done.append(name)
                progress.update()
        return folders

    def _for_pairs(self, found: images.Found) -> dict:
        """Returns the teacher's section; of a second camera with the rule for OUT/images.

        Args:
            found: The files, from which the right images are removed.
        """
        section = self.plan.teacher
        node = section.get("teacher") or {}
        if node.get("name") != teacher.STEREO:
            return section
        rule = images.split_pairs(found, self.out, node.get("right"))
        return {"teacher": node | {"right": rule}}

    def _choose_student(self) -> None:
        plan = self.plan
        latency.check_device(plan.latency_on)
        kind = latency.runtime(plan.latency_on)
        where = f"{plan.latency_threads} threads" if plan.latency_on == "cpu" else plan.latency_on
        self.tell(f"measuring exported students ({kind}, {where}) ...")

        def measure(name: str) -> latency.Measured:
            trial = Plan(**(vars(plan) | {"student": name}))
            recipe = recipes.teacher_recipe(trial, self.out, plan.teacher, name)
            path = self.out / "measured.yaml"
            recipes.write(recipe, path, "To measure a latency.")
            node = load_recipe(path)
            path.unlink()
            settings = export.Settings(
                tuple(plan.image_size),
                kind,
                confidence=True,
                resize=of_node(node["data"]["resize"]),
            )
            found = latency.of_network(
                node["network"], settings, plan.latency_on, plan.latency_threads
            )
            self.tell(f"  {name}: {found}")
            return found

        chosen = latency.choose(family.names(), plan.max_latency_ms, measure)
        plan.student = chosen.student
        plan.measured |= {
            "latency_ms": {name: round(each.ms, 2) for name, each in chosen.measured.items()},
            "latency_runs": chosen.measured[chosen.student].runs,
            "latency_of": kind,
        }
        next_one = "it is the largest of the family"
        if chosen.larger is not None:
            next_one = f"{chosen.larger}, the next larger, takes {chosen.measured[chosen.larger]}"
        self.tell(
            f"{chosen.student} takes {chosen.measured[chosen.student]}, within "
            f"{plan.max_latency_ms:g} ms; {next_one}"
        )
        plans.write(plan, self.out)

    def _held_out(self) -> Path | None:
        """Writes OUT/held_out.txt, the held-out images with measured depth; None without any."""
        from tiekd.data.build import build_dataset
        from tiekd.training.settings import Recipe

        frames = build_dataset(Recipe(load_recipe(self.out / recipes.STUDENT)).dataset, "val")
        names = [frame.name for frame in frames.frames if frame.depth is not None]
        if not names:
            return None
        path = self.out.absolute() / "held_out.txt"
        replace_text(path, "".join(f"{name}\n" for name in names))
        return path

    def _run(
        self,
        program: str,
        arguments: Sequence[str],
        allowed: Sequence[int] = (),
        folder: Path | None = None,
    ) -> int:
        """Runs a program, and returns its exit code.

        Args:
            program: Its name.
            arguments: Its arguments.
            allowed: Exit codes besides 0 with which the stage goes on.
            folder: The work dir of a training.

        Raises:
            Stopped: It ended with another code, or this process was asked to stop.
        """
        code = self.commands.run(program, arguments, folder).code
        if self.commands.asked:
            raise Stopped("Stopped; the same command continues", code or 1)
        if code and code not in allowed:
            raise Stopped(
                f"{console.command(program.replace('-', '_'))} ended with code {code}; when that "
                "is mended, the same command continues",
                code,
            )
        return code

    def _data_key(self) -> str:
        plan = self.plan
        parts = [plan.teacher, plan.depth, plan.frame_rate, plan.max_depth, plan.size, plan.init]
        return json.dumps(
            [
                *parts,
                plan.depth_unit,
                plan.intrinsics,
                plan.resize_mode,
                plan.audit,
                images.fingerprint(self._found()),
            ]
        )

    def _teacher_key(self) -> str:
        return _digest(self.out / recipes.TEACHER)

    def _plan_key(self) -> str:
        return _digest(self.out / plans.FILE)

    def _recipe_key(self) -> str:
        return _digest(self.out / recipes.STUDENT)

    def _outcome_key(self) -> str:
        return _digest(self.out / recipes.RUN / workdir.OUTCOME)

    def _weights_key(self) -> str:
        """Returns the digest of the best weights, which hold the temperature, too."""
        try:
            return _digest(checkpoints.find_weights(self.out / recipes.RUN))
        except CheckpointError:
            return "missing"

    def _figures_key(self) -> str:
        figures = _digest(self.out / recipes.RUN / calibrated.NAME)
        return f"{self._outcome_key()} {self._weights_key()} {figures}"


def batch_size(num_images: int, ranks: int) -> int:
    """Returns the images of an iteration: 16, or fewer if there aren't as many to train on.

    Args:
        num_images: All images, a tenth of which are held out.
        ranks: The number of ranks, of which each gets as many images.
    """
    most = min(_BATCH, int(0.8 * num_images))
    return max(ranks, most // ranks * ranks)


def iterations_in(hours: float, iteration_s: float, evaluation_s: float) -> int:
    """Returns how many iterations fit into a time, beside the evaluations.

    Args:
        hours: The time.
        iteration_s: Seconds of an iteration.
        evaluation_s: Seconds of all evaluations.

    Raises:
        LaunchError: Fewer than 20 fit.
    """
    found = int((3600 * hours - evaluation_s) / iteration_s)
    if found < 20:
        least = (20 * iteration_s + evaluation_s) / 3600
        raise LaunchError(
            f"--hours {hours:g}: {max(0, found)} iterations fit, of {iteration_s:.2f} s each, "
            f"beside {evaluation_s:.0f} s of evaluations; give {least:.3g} or more"
        )
    return found


def told_iteration(report: str) -> dict | None:
    """Returns the figures in the report of `bin/train.py --dry-run`; None if they aren't there.

    Args:
        report: The report.

    Returns:
        `seconds_per_iteration`; `seconds_of_evaluations`, of all together;
        `seconds_of_training`, with the evaluations; and `disk_mb`, of checkpoints and best weights.
    """
    iteration = re.search(r"^Time per iteration: ([\d.]+) s", report, re.M)
    total = re.search(r"^Iterations: \d+ an epoch, (\d+) in all", report, re.M)
    whole = told_seconds(report)
    if iteration is None or total is None or whole is None:
        return None
    seconds = max(float(iteration[1]), 0.001)
    disk = re.search(r"^Disk: .* up to ([\d.]+) (MB|GB)", report, re.M)
    return {
        "seconds_per_iteration": seconds,
        "seconds_of_evaluations": round(max(0.0, whole - int(total[1]) * seconds), 1),
        "seconds_of_training": round(whole, 1),
        "disk_mb": float(disk[1]) * (1000 if disk[2] == "GB" else 1) if disk else None,
    }


def _length(plan: Plan) -> str:
    if plan.epochs is not None:
        return f"{plan.epochs} epochs"
    return f"{plan.iterations} iterations, which fit into {plan.hours:g} hours"


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"
