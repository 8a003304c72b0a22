#!/usr/bin/env python3
"""Writes the report of a training run as one HTML file.

    bin/report.py WORK_DIR [--out report.html]

WORK_DIR is the work dir of a run, or a folder in which a run's work dir lies beside its plan and
exported files. The report says what was learned from what, shows learning curves, errors by range,
edges, confidence, the worst, median and best validation frames, size and latency of the exported
files on this machine, what to try next, and the commands that repeat everything. Without ground
truth all figures are labelled as agreement with the teacher.

The file needs no network and no script. What can't be made, such as figures without validation
frames, is left out, and the report says so. Relative paths in the recipe and in --set begin at the
folder in which the run was started. By default the file is WORK_DIR/report.html. Only a report is
replaced; --force replaces any file.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd import paths  # noqa: E402
from tiekd.distributed import entrypoint  # noqa: E402
from tiekd.tools import arguments  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = arguments.new_parser(__doc__)
    add = parser.add_argument
    add("work_dir", metavar="WORK_DIR", type=paths.path_argument, help="the run's folder")
    add("--out", metavar="HTML", type=paths.path_argument, help="default WORK_DIR/report.html")
    add("--force", action="store_true", help="replace a file that is no report, too")
    add(
        "--recipe",
        type=arguments.recipe_argument,
        help="a YAML file, or a recipe of tiekd by its name; default: that of the work dir",
    )
    add(
        "--export",
        metavar="FILE",
        type=paths.path_argument,
        action="append",
        default=[],
        help="an exported .onnx or .pt2 elsewhere, whose size and latency to measure; repeatable",
    )
    add("--device", help="cpu, cuda, cuda:0 ...; default: a GPU if there is one")
    arguments.add_evaluated_set(parser)
    arguments.add_overrides(parser)
    return parser.parse_args()


def main() -> None:
    """Writes the report."""
    args = parse_arguments()
    from tiekd.tools.report import program

    program.run(args)


if __name__ == "__main__":
    entrypoint.program(main)
