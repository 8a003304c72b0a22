#!/usr/bin/env python3
"""Compares this project's implementation with a plain one, timed alternately in one process.

    bin/benchmark.py head        or another benchmark's name

Prints the median ratio of the times and its range, the peak memory of both, and the hardware.
--json prints one JSON object instead. `bin/benchmark.py head --help` lists the options of `head`.
"""

import argparse
import ast
import contextlib
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import console  # noqa: E402
from tiekd.distributed import entrypoint  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    from tiekd.tools.benchmarks import COMMANDS, arguments

    parser = argparse.ArgumentParser(
        description=console.respelled(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name, help=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name not in sys.argv[1:2]:
            continue
        source = Path(arguments.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        # Read the docstring by parsing the file, since importing the module takes seconds.
        command.description = console.respelled(ast.get_docstring(ast.parse(source)))
        command.add_argument("--device", default="cpu", help="cpu or cuda, default cpu")
        command.add_argument(
            "--rounds",
            type=arguments.positive_int,
            default=7,
            help="how many times each is timed, default 7",
        )
        command.add_argument("--json", action="store_true", help="one JSON object instead of lines")
        arguments.OF[name](command)
    return parser.parse_args()


def main() -> None:
    """Runs one benchmark, and prints its results and the hardware."""
    args = parse_arguments()
    from tiekd.tools.benchmarks import measure

    module = importlib.import_module(f"tiekd.tools.benchmarks.{args.command}")

    # Redirect the output of libraries to stderr (DeepSpeed prints the device that it uses), so that
    # stdout has only the result.
    with contextlib.redirect_stdout(sys.stderr):
        figures = module.run(args)
    result = {"benchmark": args.command, **figures, "hardware": measure.hardware(args.device)}
    print(json.dumps(result) if args.json else measure.as_text(result))


if __name__ == "__main__":
    entrypoint.program(main)
