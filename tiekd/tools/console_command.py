"""The command `tiekd` of an installed package, which runs the programs of bin/ by their names.

    tiekd train RECIPE [--num_gpus N] [options]

A program that works on several ranks starts DeepSpeed's launcher when one of the launcher's options
is given. The ranks run the program's file by its path and not as a module: `python -m` would first
look for tiekd in the current folder, which may contain another tiekd, or a file with the name of a
module of Python.
"""

import difflib
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tiekd import __version__, console
from tiekd.config import shipped
from tiekd.distributed import entrypoint, hostfile
from tiekd.errors import LaunchError
from tiekd.tools import arguments

# Programs for which this command starts DeepSpeed's launcher. The program `resume` starts the
# launcher itself.
_ON_RANKS = ("cache-teacher", "evaluate", "train")


def main() -> None:
    """Runs the program that the command line names; doesn't return."""
    words = sys.argv[1:]
    # Move the launcher's option behind the program's name: `deepspeed /path/to/tiekd train RECIPE`
    # puts it first.
    if words and words[0].startswith("--local_rank="):
        words = [*words[1:], words[0]]
    name, *rest = words or ["--help"]
    programs = shipped.programs()
    if name not in programs:
        entrypoint.program(lambda: _print_help(name, programs))
    # Tell the program, its ranks and its restarts by an environment variable to print commands in
    # the form `tiekd NAME`.
    os.environ[console.CONSOLE] = "1"
    given, own = arguments.split_launcher_options(rest) if name in _ON_RANKS else ([], rest)
    sys.argv = [f"tiekd {name}", *own]
    program = runpy.run_path(str(programs[name]))
    if given:
        entrypoint.program(lambda: _launch(given, programs[name], program["parse_arguments"]))
    entrypoint.program(program["main"])


def _print_help(name: str, programs: dict[str, Path]) -> None:
    """Prints help or the version if the command line begins with that option instead of a program.

    Args:
        name: The first word of the command line.
        programs: The file of each program, by its name.

    Raises:
        LaunchError: The word is neither a program nor an option.
    """
    if name == "--version":
        print(f"tiekd {__version__}")
    elif name in ("-h", "--help"):
        print(_help(programs))
    else:
        near = difflib.get_close_matches(name.replace("_", "-").lower(), programs, n=3)
        near = f"did you mean {' or '.join(near)}? " if near else ""
        raise LaunchError(f"{name}: no command of tiekd; {near}tiekd --help lists them")


def _help(programs: dict[str, Path]) -> str:
    lines = ["usage: tiekd COMMAND [arguments]", ""]
    for name, path in programs.items():
        # List each program with the first line of its docstring. The docstring is read from the
        # file, since running the program takes longer.
        docstring = path.read_text(encoding="utf-8").split('"""')[1]
        lines.append(f"  {name:16}{docstring.splitlines()[0]}")
    return "\n".join(
        [
            *lines,
            "",
            "tiekd COMMAND --help lists a command's options, tiekd --version prints the version.",
            f"{', '.join(_ON_RANKS)} and resume run on several ranks if options of DeepSpeed's",
            "launcher are given, such as --num_gpus 2. RECIPE is a YAML file or the name of one in",
            f"{shipped.folder(shipped.RECIPES)}",
            "An engine config is a JSON file or the name of one in",
            f"{shipped.folder(shipped.ENGINE_CONFIGS)}",
        ]
    )


def _launch(given: Sequence[str], program: Path, parse: Callable) -> None:
    """Replaces this process by DeepSpeed's launcher, which runs a program on each rank.

    Args:
        given: The launcher's options.
        program: The program's file.
        parse: The program's function that parses the command line. It is called here so that a
            mistake is reported once, and not by each rank.

    Raises:
        LaunchError: This process is a rank already, or an option is wrong.
    """
    parse()
    if "RANK" in os.environ:
        raise LaunchError(
            f"{given[0]}: a launcher has started this already; give its options to that launcher"
        )
    # Import launch_record only here: it needs psutil, which comes with DeepSpeed, and an
    # installation that only predicts has neither.
    from tiekd.workdir import launch_record

    hostfile.check_options(given)
    options = arguments.with_visible_devices(given)
    if options != list(given):
        # The options name the devices now, so remove the variable, which the launcher would ignore
        # with a message.
        del os.environ["CUDA_VISIBLE_DEVICES"]
    launch_record.replace_by_launcher(options, str(program), sys.argv[1:])
