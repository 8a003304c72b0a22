"""Benchmark options for toy sizes, and the keys that all benchmark reports have."""

from argparse import ArgumentParser

from tiekd.tools.benchmarks.arguments import OF

TOY = ["--height", "32", "--width", "64", "--rounds", "2"]
ALWAYS = {"compared", "time_ratio", "memory_ratio"}


def arguments(module, *words: str):
    """Parses `words` as a benchmark's options, with defaults of toy size on the CPU."""
    parser = ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    OF[module.__name__.rpartition(".")[2]](parser)
    return parser.parse_args([*TOY, *words])
