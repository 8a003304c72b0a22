"""Implements bin/report.py: collects the content of a report, and writes it as HTML.

An error is raised only if there is no run, the weights are missing, the recipe is invalid, or the
output can't be written. Other files that can't be read are listed in the report.
"""

import argparse
import contextlib
import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch

from tiekd import console, files
from tiekd.config.recipe import load_recipe
from tiekd.errors import CheckpointError, LaunchError, UserError
from tiekd.evaluation import compare
from tiekd.inference.student import pick_device
from tiekd.tools.distill import plan
from tiekd.tools.report import (
    calibrated,
    evaluations,
    exports,
    page,
    place,
    records,
    repeat,
)
from tiekd.tools.report.content import Content
from tiekd.tools.report.findings import findings_of
from tiekd.tools.report.symptoms import suggestions
from tiekd.training.settings import Recipe
from tiekd.workdir import launch_record, workdir

NAME = "report.html"
_ANY_SIZE = 480, 640  # (height, width) of the image to time, if there is no frame


def run(args: argparse.Namespace) -> None:
    """Writes a report to the file of --out, or by default to report.html in the run's folder.

    It prints the file's path, and the parts that are left out.

    Args:
        args: The program's parsed command line.

    Raises:
        UserError: There is no run or no weights, or an option is wrong.
    """
    # Make the paths of the command line absolute before the current folder changes. Relative paths
    # in the recipe refer to the folder in which the run was started.
    where = place.find(args.work_dir, args.export, args.recipe is not None)
    out = (where.folder / NAME if args.out is None else args.out).absolute()
    check_out(out, is_given=args.out is not None, force=args.force)
    recipe_path = (args.recipe or where.work_dir / workdir.RECIPE).absolute()
    device = pick_device(args.device)
    with _in_folder_of(where.work_dir) as problem:
        content = collect(where, recipe_path, args.overrides, device, args.data_set)
    content.warnings += [] if problem is None else [problem]
    text = page.document(content)
    try:
        files.replace_text(out, text)
    except OSError as error:
        raise LaunchError(
            f"--out {out}: can't be written ({files.cause_of(error)}); give another place"
        ) from None
    for line in content.left_out:
        print(f"Left out: {console.printable(line)}")
    print(f"Written: {out} ({len(text.encode(errors='surrogateescape')) / 1e6:.1f} MB)")


def check_out(out: Path, is_given: bool, force: bool) -> None:
    """Checks the output path of a report.

    Args:
        out: The path.
        is_given: True if the user gave it, for the error message.
        force: True to allow replacing a file that isn't a report.

    Raises:
        LaunchError: The path is a folder, doesn't end in .html, or is an existing file that isn't a
            report.
    """
    files.check_output("--out", out, ".html")
    if out.exists() and not force and not page.is_report(out):
        given = "--out " if is_given else ""
        raise LaunchError(
            f"{given}{out}: is there already, and is no report of tiekd; give another --out, or "
            "--force to replace it"
        )


def collect(
    where: place.Place,
    recipe_path: Path,
    overrides: list[str],
    device: torch.device,
    data_set: str | None = None,
) -> Content:
    """Evaluates the student, and collects everything else that a report shows.

    Args:
        where: The files that the report is about.
        recipe_path: The recipe.
        overrides: Overrides of the recipe's values, as for `--set`.
        device: The device of student and teacher.
        data_set: The option --data-set.

    Returns:
        The content of the report.

    Raises:
        UserError: The recipe is invalid, or there are no weights that fit it.
    """
    recipe = Recipe(load_recipe(recipe_path, overrides))
    chosen = recipe.one_set(data_set)
    named = [(str(recipe_path), str(where.work_dir))]
    try:
        (student,) = compare.load_networks(
            named, overrides, recipe.evaluation.flip, device
        ).values()
    except CheckpointError as error:
        if not str(error).startswith("there are no weights"):
            raise
        command = f"{console.command('resume')} {shlex.quote(str(where.work_dir))}"
        raise CheckpointError(
            f"{error} yet; they come with the first evaluation or checkpoint, and {command} "
            "resumes a run that stopped"
        ) from None
    network = student.predict.network
    content = Content(
        name=where.work_dir.name,
        time=datetime.now().strftime("%Y-%m-%d %H:%M"),
        place=where,
        recipe=recipe,
        data_set=chosen,
        records=records.read(where.work_dir, student.weights),
        parameters=sum(each.numel() for each in network.parameters()),
        resize=student.resize,
        max_depth_m=network.max_depth,
    )
    content.left_out += content.records.left_out
    if chosen.name:
        names = ", ".join(each.name for each in recipe.data_sets)
        content.warnings.append(
            f"The run has the data sets {names}; the evaluated frames are those of {chosen.name}."
        )
    with evaluations.attempt(content, "The calibrated confidence"):
        content.calibration = calibrated.read(where.work_dir)
    focal = evaluations.evaluate(content, student, device)
    # Measure latencies last, when no other work of this program slows them down.
    size = _image_size(content)
    content.timings = [exports.of_file(path, size) for path in where.exports]
    content.timings = content.timings or [exports.of_network(network, student.resize, size)]
    if content.validation is not None:
        content.suggestions = [
            each.of_set(chosen.name, recipe.node)
            for each in suggestions(findings_of(content, focal))
        ]
    content.commands = repeat.commands(
        where,
        recipe_path,
        content.records.launch,
        repeat.options_of(chosen.name, overrides),
        content.validation is not None,
        _calibrated_with(content),
        {each.name: each.options for each in content.timings},
        threads_of_plan(content),
    )
    return content


def _calibrated_with(content: Content) -> list[str] | None:
    """Returns the options with which the confidence was calibrated; None if it wasn't.

    Args:
        content: The content of the report.
    """
    if content.records.temperature is None:
        return None
    found = content.calibration
    # Without its record the data set is unknown, and of several one must be named.
    return repeat.options_of(content.data_set.name if found is None else found.data_set, [])


def threads_of_plan(content: Content) -> int | None:
    """Returns the number of CPU threads of a rank in plan.yaml of bin/distill.py.

    The result is None if there is no plan, or if it is damaged, which is recorded in
    `content.left_out`.

    Args:
        content: The content of the report.
    """
    if content.place.plan is None:
        return None
    with evaluations.attempt(content, "The plan's number of threads"):
        return plan.read(content.place.plan.parent).rank_threads
    return None


def _image_size(content: Content) -> tuple[int, int]:
    found = content.validation
    return found.measured.sizes.most_common(1)[0][0] if found is not None else _ANY_SIZE


@contextlib.contextmanager
def _in_folder_of(work_dir: Path) -> Iterator[str | None]:
    """Context manager in which the current folder is the one where a run was started.

    Relative paths in a run's recipe refer to it. If it isn't recorded or doesn't exist any more,
    the current folder isn't changed.

    Args:
        work_dir: The run's folder.

    Yields:
        None; or a warning for the user if the recorded folder can't be entered.
    """
    before, problem = os.getcwd(), None
    try:
        folder = launch_record.read(work_dir).folder
        os.chdir(folder)
    except UserError:
        pass  # the report lists the record as missing
    except OSError as error:
        problem = (
            f"{folder}, where the run was started, can't be entered ({error.strerror}), so the "
            f"recipe's relative paths were read from {before}."
        )
    try:
        yield problem
    finally:
        os.chdir(before)
