"""The stages of a distillation: each prepares the inputs of a program of bin/, and runs it."""

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
from tiekd.tools.experiment.durations import seconds_in_report
from tiekd.tools.report import calibrated
from tiekd.workdir import checkpoints, weights_file, workdir

CHECK, AUDIT, EVALUATION, STUDENT_DATA = "check", "audit", "evaluation", "images.json"
CALIBRATE, REPORT = "calibrate", "report.html"
FOUND = 1  # the exit code of a check or an audit that found something
_MISTAKE = 2  # the exit code of a program that can't use what it is given
FEWEST = 12  # smallest number of images; a teacher can't be audited on fewer
_BATCH = 16  # images per iteration, if there are enough
_HELD_OUT = 0.1  # fraction of the images that are held out for evaluation
_CHECKPOINT_EVERY = 500  # iterations; used until their time is measured
_CHECKPOINT_EVERY_S = 600.0  # seconds between checkpoints, once that time is known
_AUDITED = 32  # largest number of images on which the teacher is audited
_FEWEST_AUDITED = 8  # smallest such number


class Stopped(BaseException):
    """Raised when a stage stops before it has finished; the exception's text is the reason.

    It derives from BaseException because a signal handler raises it in the middle of other code.
    Libraries that catch every Exception and continue, such as torch's ONNX exporter, don't catch
    it.

    Args:
        reason: The reason, for the user.
        code: The exit code of the program that stopped.
    """

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


class Work:
    """The stages of one distillation: methods that run a stage, and that digest its inputs.

    Args:
        plan: The plan. Stages fill in the values that are None.
        out: The folder of --out, called OUT in the methods.
        commands: Object that runs other programs of bin/.
        print_line: Function that prints a line.
    """

    def __init__(
        self, plan: Plan, out: Path, commands: Commands, print_line: Callable[[str], None]
    ):
        self.plan = plan
        self.out = out
        self.commands = commands
        self.print_line = print_line

    def stages(self) -> list[Stage]:
        """Returns all stages, in the order in which they run."""
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
        """The path of the exported file, which is student.onnx or student.pt2 in OUT.

        It is student.pt2, a file of torch.export, if the packages for ONNX aren't installed or
        latency is measured on a GPU.
        """
        is_onnx = latency.runtime(self.plan.latency_on) == "onnx"
        return self.out / ("student.onnx" if is_onnx else "student.pt2")

    def data(self) -> None:
        """Runs the stage `data`: links images, extracts video frames, and leaves faulty images out.

        It also chooses the student's input size and the batch size, unless the plan has them, and
        writes OUT/teacher.yaml. Every file is checked by bin/check_data.py.
        """
        plan, out = self.plan, self.out
        found = self._find_images()
        if plan.depth is not None:
            images.check_depth(Path(plan.depth), found)
        frames = self._extract_frames(found)
        section = self._teacher_section(found)
        images.link(found, out, frames)
        sizes = images.sizes_of(out / images.IMAGES)
        total = sum(sizes.values())
        if total < FEWEST:
            raise DataError(
                f"{plan.images}: {total} images can be read; a distillation needs {FEWEST} or more"
            )
        for (height, width), count in sizes.most_common(4):
            self.print_line(f"images: {count} of {height}x{width}")
        if len(sizes) > 4:
            self.print_line(
                f"images: {total - sum(n for _, n in sizes.most_common(4))} of other sizes"
            )
        # Choose image size, input size and batch size from the images, unless the plan has them
        # already.
        common = sizes.most_common(1)[0][0]
        plan.image_size = plan.image_size or list(common)
        plan.size = plan.size or images.default_size(common)
        plan.resize_mode = plan.resize_mode or images.resize_mode(sizes)
        plan.batch_size = plan.batch_size or batch_size(total, plan.ranks)
        plans.write(plan, out)
        self.print_line(
            f"working resolution: {plan.size[0]}x{plan.size[1]}, {plan.resize_mode}; the exported "
            f"file takes images of {plan.image_size[0]}x{plan.image_size[1]}"
        )
        recipe = recipes.teacher_recipe(plan, out, section)
        recipes.write(recipe, out / recipes.TEACHER, "The teacher and the images.")
        # Check all images. Switch validation off, because with it the frames between training and
        # validation frames are in neither split and wouldn't be checked.
        shutil.rmtree(out / CHECK, ignore_errors=True)
        arguments = [str(out / recipes.TEACHER), "--out", str(out / CHECK)]
        self._run("check-data", [*arguments, "--set", "train.validate=false"], (FOUND,))
        self._leave_out_faulty(found)

    def _leave_out_faulty(self, found: images.Found) -> None:
        """Removes the links of images that bin/check_data.py found faulty, and records the rest.

        It writes OUT/images.json: the number of images, the files that were left out with the
        reasons, and the linked files.

        Args:
            found: The user's files; faulty ones are added to `left_out`.
        """
        report = json.loads((self.out / CHECK / "report.json").read_text(encoding="utf-8"))
        for finding in report["findings"]:
            if finding["dropped"] and finding["frame"] not in found.left_out:
                found.left_out[finding["frame"]] = f"faulty: {finding['kind']}"
                (self.out / images.IMAGES / finding["frame"]).unlink(missing_ok=True)
        for line in found.describe_left_out():
            self.print_line(line)
        total = sum(path.is_symlink() for path in (self.out / images.IMAGES).rglob("*"))
        if total < FEWEST:
            raise DataError(
                f"{self.plan.images}: {total} images are left; a distillation needs {FEWEST} or "
                "more"
            )
        # Remove cached teacher maps of images that other images of the same name have replaced.
        files = images.read_links(self.out)
        images.drop_maps(self.out / recipes.MAPS, self._files_before(), files)
        kept = {"images": total, "left_out": found.left_out, "files": files}
        replace_text(self.out / STUDENT_DATA, json.dumps(kept, indent=1) + "\n")

    def audit(self) -> None:
        """Runs the stage `audit`: bin/audit_teacher.py on up to 32 images.

        It raises Stopped if a measurement is outside its limit, unless the user gave
        --accept-audit.
        """
        if not self.plan.audit:
            self.print_line("the audit's findings are accepted (--accept-audit)")
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
        """Runs the stage `cache`: writes the teacher's depth maps of all images to OUT/maps.

        It does nothing if the user gave cached maps as the teacher.
        """
        if teacher.is_cached(self.plan.teacher):
            self.print_line("the teacher is cached maps already")
            return
        arguments = [str(self.out / recipes.TEACHER), "--out", str(self.out / recipes.MAPS)]
        self._run("cache-teacher", arguments)

    def student(self) -> None:
        """Runs the stage `student`: chooses student and length, and writes OUT/recipe.yaml.

        If the user gave hours, the time of an iteration is measured to choose the number of
        iterations.
        """
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
        self.print_line(f"student: {plan.student}, {_length(plan)}")
        path, recipe = self.out / recipes.STUDENT, recipes.student_recipe(plan, self.out)
        purpose = "The student."
        # Rename an existing recipe that differs before it is replaced, since the user may have
        # edited it.
        text = recipes.text_of(recipe, purpose).encode(errors="surrogateescape")
        if path.exists() and path.read_bytes() != text:
            aside = weights_file.set_aside(path)
            self.print_line(f"{path}: is written anew; the one that was there is {aside.name} now")
        recipes.write(recipe, path, purpose)

    def measure(self) -> dict:
        """Measures the time of a training iteration with `bin/train.py --dry-run`.

        The result is also added to `plan.measured`.

        Returns:
            The dict that `iteration_in_report` returns.

        Raises:
            Stopped: The dry run failed.
        """
        # Use 1000 iterations if the number isn't known yet. It affects only the number of
        # evaluations, not the time of an iteration.
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
        found = iteration_in_report(text)
        path.unlink()
        if code or found is None:
            self.print_line(text[-3000:])
            raise Stopped(f"measuring an iteration ended with code {code}; see above", code or 1)
        log.unlink()
        self.plan.measured |= found
        return found

    def train(self) -> None:
        """Runs the stage `train`: starts or resumes the training of OUT/recipe.yaml in OUT/run."""
        run = self.out / recipes.RUN
        arguments = [str(self.out / recipes.STUDENT), "--work-dir", str(run)]
        self._run("train", [*arguments, "--resume-from", "auto"], folder=run)

    def evaluate(self) -> None:
        """Runs the stage `evaluate`: evaluates the best weights on the held-out images.

        The metrics against the teacher, and those of baselines that ignore the image, are written
        to OUT/evaluation.json and, per image, to evaluation.csv. If there is measured depth,
        metrics against it are written to OUT/accuracy.json.
        """
        recipe, run = str(self.out / recipes.STUDENT), str(self.out / recipes.RUN)
        plain = [recipe, run, "--floors", "--out", str(self.out / f"{EVALUATION}.json")]
        plain += ["--per-image", str(self.out / f"{EVALUATION}.csv")]
        self._run("evaluate", plain)
        if self.plan.depth is None:
            return
        # Evaluate the same held-out images against measured depth, too.
        listed = self._write_held_out_names()
        if listed is None:
            self.print_line(
                "no held-out image has measured depth, so there are no figures of accuracy"
            )
            return
        against = ["--set", "evaluation.against=ground_truth", f"data.val_split={listed}"]
        against += ["--out", str(self.out / "accuracy.json")]
        self._run("evaluate", [recipe, run, *against])

    def calibrate(self) -> None:
        """Runs the stage `calibrate`: calibrates the confidence of the best weights in OUT/run.

        If that isn't possible, for example with a single held-out image, a warning is printed.
        """
        code = self._run(CALIBRATE, [str(self.out / recipes.RUN)], (_MISTAKE,))
        if code == _MISTAKE:
            # Continue without a calibration, since the student can still be exported: there may be
            # only one held-out image, or the student may have learned too little.
            self.print_line(
                "WARNING: the confidence isn't calibrated, as said above; depth is the same"
            )

    def export(self) -> None:
        """Runs the stage `export`: exports the best weights for images of the most common size.

        The file, `self.exported`, also outputs confidence, computed with the calibrated temperature
        that is stored with the weights.
        """
        # Remove the partial files of killed exports. Their names begin with a process ID, so the
        # next export doesn't replace them.
        for partial in self.out.glob(f".*.{self.exported.name}"):
            partial.unlink()
        size = "x".join(map(str, self.plan.image_size))
        arguments = [str(self.out / recipes.STUDENT), str(self.out / recipes.RUN)]
        arguments += ["--out", str(self.exported), "--size", size, "--overwrite", "--confidence"]
        self._run("export", arguments)

    def report(self) -> None:
        """Runs the stage `report`: writes OUT/report.html with bin/report.py."""
        self._run("report", [str(self.out), "--out", str(self.out / REPORT)])

    @property
    def images_left(self) -> int:
        """The number of images that the check of the stage `data` has left."""
        return json.loads((self.out / STUDENT_DATA).read_text(encoding="utf-8"))["images"]

    def _files_before(self) -> dict:
        """Returns the images of the last check, path -> [file, size]; empty before the first."""
        try:
            return json.loads((self.out / STUDENT_DATA).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError):
            return {}

    def _find_images(self) -> images.Found:
        without = [self.out, *([Path(self.plan.depth)] if self.plan.depth else [])]
        return images.find(Path(self.plan.images), without)

    def _extract_frames(self, found: images.Found) -> dict[str, Path]:
        """Extracts the frames of each video, unless that was done by an earlier call.

        Args:
            found: The user's files; a video that can't be read is added to `left_out`.

        Returns:
            Name of each readable video -> the folder of its frames.

        Raises:
            DataError: The package PyAV, which reads videos, isn't installed.
        """
        folders: dict[str, Path] = {}
        if not found.videos:
            return folders
        rate, done = self.plan.frame_rate, []
        self.print_line(f"videos: {len(found.videos)}, of each {rate:g} frames a second")
        with Progress("videos", len(found.videos), lambda: len(done), sys.stdout) as progress:
            for name, path in sorted(found.videos.items()):
                # Put frame rate and file size into the folder's name, so that frames of another
                # video of the same name aren't used.
                source = f"{rate:g}_a_second_of_{path.stat().st_size}_bytes"
                folder = self.out / images.FRAMES / name / source
                try:
                    images.extract(path, folder, rate, self.print_line)
                    folders[name] = folder
                except DataError as error:
                    # Raise the error if PyAV isn't installed, since then no video can be read.
                    if "PyAV" in str(error):
                        raise
                    found.left_out[name] = "a video that can't be read"
                done.append(name)
                progress.update()
        return folders

    def _teacher_section(self, found: images.Found) -> dict:
        """Returns the recipe's section of the teacher, adapted to the links in OUT/images.

        For a stereo teacher, right images are moved to OUT/right, and the section gets the rule
        that finds them there. Other sections are returned unchanged.

        Args:
            found: The user's files. For a stereo teacher, right images are removed from it.
        """
        section = self.plan.teacher
        node = section.get("teacher") or {}
        if node.get("name") != teacher.STEREO:
            return section
        rule = images.move_right_images(found, self.out, node.get("right"))
        return {"teacher": node | {"right": rule}}

    def _choose_student(self) -> None:
        plan = self.plan
        latency.check_device(plan.latency_on)
        kind = latency.runtime(plan.latency_on)
        where = f"{plan.latency_threads} threads" if plan.latency_on == "cpu" else plan.latency_on
        self.print_line(f"measuring exported students ({kind}, {where}) ...")

        def measure(name: str) -> latency.Latency:
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
            self.print_line(f"  {name}: {found}")
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
        self.print_line(
            f"{chosen.student} takes {chosen.measured[chosen.student]}, within "
            f"{plan.max_latency_ms:g} ms; {next_one}"
        )
        plans.write(plan, self.out)

    def _write_held_out_names(self) -> Path | None:
        """Writes the names of held-out images with measured depth to OUT/held_out.txt.

        Returns:
            The path of the file; None if there are no such images, and then no file is written.
        """
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
        """Runs a program of bin/ and returns its exit code.

        Args:
            program: The program's name in `tiekd NAME`, such as "check-data".
            arguments: The program's arguments.
            allowed: Exit codes besides 0 that aren't errors.
            folder: The work dir, if the program trains; None otherwise.

        Raises:
            Stopped: The program ended with another exit code, or a signal asked this process to
                stop.
        """
        code = self.commands.run(program, arguments, folder).code
        if self.commands.received_signals:
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
                images.fingerprint(self._find_images()),
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
        """Returns the SHA-256 of the file of best weights; "missing" if there is none.

        The file includes the calibrated temperature, so a calibration changes the result.
        """
        try:
            return _digest(checkpoints.find_weights(self.out / recipes.RUN))
        except CheckpointError:
            return "missing"

    def _figures_key(self) -> str:
        figures = _digest(self.out / recipes.RUN / calibrated.NAME)
        return f"{self._outcome_key()} {self._weights_key()} {figures}"


def batch_size(num_images: int, ranks: int) -> int:
    """Returns the number of images per iteration, summed over all ranks.

    It is 16, or less if there are fewer than 20 images, and divisible by the number of ranks. It is
    at least one image per rank.

    Args:
        num_images: Number of all images, from which the held-out ones are taken.
        ranks: Number of ranks.
    """
    most = min(_BATCH, int(0.8 * num_images))
    return max(ranks, most // ranks * ranks)


def iterations_in(hours: float, iteration_s: float, evaluation_s: float) -> int:
    """Returns the number of iterations that fit into a duration together with the evaluations.

    Args:
        hours: The duration in hours.
        iteration_s: Seconds of an iteration.
        evaluation_s: Seconds of all evaluations together.

    Raises:
        LaunchError: Fewer than 20 iterations fit.
    """
    found = int((3600 * hours - evaluation_s) / iteration_s)
    if found < 20:
        least = (20 * iteration_s + evaluation_s) / 3600
        raise LaunchError(
            f"--hours {hours:g}: {max(0, found)} iterations fit, of {iteration_s:.2f} s each, "
            f"beside {evaluation_s:.0f} s of evaluations; give {least:.3g} or more"
        )
    return found


def iteration_in_report(report: str) -> dict | None:
    """Reads the time of an iteration from the report of `bin/train.py --dry-run`.

    Args:
        report: The program's output.

    Returns:
        "seconds_per_iteration"; "seconds_of_evaluations", the sum of all evaluations;
        "seconds_of_training", which includes evaluations; and "disk_mb", the size of checkpoints
        and best weights in MB, None if the report doesn't state it. None instead of the dict if the
        report states no times.
    """
    iteration = re.search(r"^Time per iteration: ([\d.]+) s", report, re.M)
    total = re.search(r"^Iterations: \d+ an epoch, (\d+) in all", report, re.M)
    whole = seconds_in_report(report)
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
