#!/usr/bin/env python3
"""Runs a controlled experiment: rows (recipes) x seeds x sets, by default one after the other.

    bin/experiment.py SPEC.yaml --dry-run      lists the runs, with their expected time
    bin/experiment.py SPEC.yaml --power        the pilot: which differences can be found at all?
    bin/experiment.py SPEC.yaml                runs what isn't finished, and writes the report
    bin/experiment.py SPEC.yaml --report       writes the report of what is finished

Each run is started with the `deepspeed` launcher. An interrupted experiment continues with the same
command; finished runs are never repeated. The exit code is 1 if a run failed, and 75 if the
experiment was asked to stop. The page on experiments says how to write SPEC.yaml.
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
    parser.add_argument(
        "spec",
        type=arguments.experiment_argument,
        nargs="?",
        help="a YAML file, or an experiment of tiekd by its name",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        action="extend",
        default=[],
        help="only runs whose row, set, seed or SET/ROW/SEED matches (`*` and `?` allowed)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at the same time, each with its share of CUDA_VISIBLE_DEVICES or of the CPU",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the runs and the expected time"
    )
    parser.add_argument(
        "--power",
        action="store_true",
        help="run two rows with three seeds alone, and print the smallest detectable difference",
    )
    parser.add_argument(
        "--report", action="store_true", help="write the report of the finished runs, run nothing"
    )
    parser.add_argument(
        "--latency",
        action="store_true",
        help="with --report: measure each network's latency here, for the plot costs.png",
    )
    # Given by this program to the process that evaluates one run.
    parser.add_argument("--score", type=paths.path_argument, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.spec is None) == (args.score is None):
        parser.error("the following arguments are required: spec")
    if args.jobs < 1:
        parser.error(f"--jobs: got {args.jobs}; it must be 1 or more")
    if args.latency and not args.report:
        parser.error("--latency: only with --report, when nothing else runs; add --report")
    if args.dry_run + args.power + args.report > 1:
        parser.error("--dry-run, --power and --report can't be combined; give one of them")
    return args


def main() -> int:
    """Runs, lists or reports the experiment; returns the exit code."""
    args = parse_arguments()
    spec = None
    if args.spec is not None:
        # A mistake in the specification is told before torch is imported.
        from tiekd.tools.experiment.spec import read

        spec = read(args.spec)
    from tiekd.tools.experiment import program

    return program.run(args, spec, Path(__file__).resolve())


if __name__ == "__main__":
    entrypoint.program(main)
