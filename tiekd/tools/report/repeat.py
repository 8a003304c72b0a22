"""Makes the shell commands that repeat a run, its evaluation, calibration, exports and report.

They have to be run in the folder in which the run was started, since relative paths in a recipe
refer to it. Not covered: the commands that made the data set or a teacher's cached maps, which the
run hasn't recorded.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiekd import console
from tiekd.tools.report.place import Place
from tiekd.workdir import workdir
from tiekd.workdir.launch_record import LaunchRecord

# The option by which bin/train.py gets another engine config.
_ENGINE = "--deepspeed_config"


def commands(
    place: Place,
    recipe: Path,
    launch: LaunchRecord | None,
    given: Sequence[str],
    evaluates: bool,
    calibrated: Sequence[str] | None,
    options: Mapping[str, Sequence[str]],
    threads: int | None = None,
) -> list[tuple[str, str]]:
    """Returns the commands that repeat a run, with descriptions, in the order in which to run them.

    Args:
        place: The files of the report.
        recipe: The recipe with which the report was made.
        launch: How the run was started; None if unknown.
        given: The report's options --data-set and --set, which evaluations have, too.
        evaluates: False if there are no validation frames.
        calibrated: The options of bin/calibrate.py with which the weights got their temperature;
            None if they hold none.
        options: Name of an exported file -> the options of bin/export.py with which it was made, as
            far as they can be seen in the file.
        threads: Number of CPU threads of a rank, on which the weights' last bits depend; None if
            unknown.

    Returns:
        (what the command does, the command) for each command.
    """
    work_dir = place.work_dir
    found = []
    if launch is not None:
        found.append(("enter the folder where the run was started", _line("cd", launch.folder)))
    ranks = 1 if launch is None else launch.world_size
    engine = work_dir / workdir.ENGINE_CONFIG
    engines = [_ENGINE, engine] if engine.is_file() else []
    again = work_dir.with_name(f"{work_dir.name}_again")
    trained = [recipe, "--work-dir", again, *engines]
    limited = "" if threads is None else f"OMP_NUM_THREADS={threads} "
    command = limited + _on_ranks("train", trained, ranks)
    found.append(("train again, into another work dir", command))
    if evaluates:
        evaluated = [recipe, work_dir, *given]
        found.append(("evaluate the best weights", _own("evaluate", evaluated)))
    if calibrated is not None:
        found.append(("calibrate the confidence", _own("calibrate", [work_dir, *calibrated])))
    for path in place.exports:
        again = path.with_name(f"again_{path.name}")
        exported = [recipe, work_dir, "--out", again, *options.get(path.name, ())]
        found.append((f"export as {path.suffix}", _own("export", exported)))
    reported = [place.folder, *given]
    outside = [path for path in place.exports if path.parent not in (place.folder, work_dir)]
    for path in outside:
        reported += ["--export", path]
    found.append(("write this report again", _own("report", reported)))
    return found


def options_of(data_set: str, overrides: Sequence[str]) -> list[str]:
    """Returns the words of the options --data-set and --set; empty without either.

    Args:
        data_set: The name of the data set; empty if the recipe has one.
        overrides: The overrides of the recipe.
    """
    named = ["--data-set", data_set] if data_set else []
    return [*named, *(["--set", *overrides] if overrides else [])]


def _on_ranks(program: str, words: Sequence[object], ranks: int) -> str:
    """Returns the shell command that runs a program on a number of ranks.

    Args:
        program: The name of the program's file without its suffix, such as "train".
        words: The program's arguments.
        ranks: Number of ranks; for 1 the command has no launcher.
    """
    if ranks == 1:
        return _own(program, words)
    # Put DeepSpeed's launcher before the program in a checkout. An installed `tiekd train` starts
    # the launcher itself.
    if console.names_bin():
        return f"deepspeed --num_gpus {ranks} {_own(program, words)}"
    return f"{_own(program, words)} --num_gpus {ranks}"


def _own(program: str, words: Sequence[object]) -> str:
    command = console.command(program)
    # Use the absolute path of a checkout's program, since the command is run in another folder.
    if console.names_bin():
        command = shlex.quote(str(console.SHARE.parents[1] / command))
    return " ".join([command, _line(*words)])


def _line(*words: object) -> str:
    return " ".join(shlex.quote(os.fspath(w) if isinstance(w, Path) else str(w)) for w in words)
