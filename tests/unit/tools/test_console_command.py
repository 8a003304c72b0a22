"""The command `tiekd`: which program it runs, with what, and when it starts the launcher."""

import os
import sys
from pathlib import Path

import pytest

from tiekd import __version__, console
from tiekd.config import shipped
from tiekd.distributed import entrypoint, visible_devices
from tiekd.tools import console_command
from tiekd.workdir import launch_record

PROGRAM = """
\"\"\"Trains something.\"\"\"
import argparse, sys

def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    return parser.parse_args()

def main():
    print(sys.argv, parse_arguments().recipe)
    return 7
"""


@pytest.fixture
def typed(tmp_path, monkeypatch, capfd):
    """Types a command line of `tiekd`, with one program that can run on ranks and one that can't.

    Returns the exit code, what was printed, and the launcher's command if it was started.
    """
    for name in ("train.py", "predict.py", "resume"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(PROGRAM.lstrip())
    monkeypatch.setattr(shipped, "folder", lambda kind: tmp_path / kind)
    monkeypatch.setattr(
        entrypoint, "program", lambda main: (_ for _ in ()).throw(SystemExit(entrypoint.run(main)))
    )
    launched = []
    monkeypatch.setattr(
        launch_record,
        "replace_by_launcher",
        lambda options, script, words: launched.append((options, Path(script).name, words)),
    )
    for name in ("RANK", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "TIEKD_DEBUG", console.CONSOLE):
        monkeypatch.setenv(name, "0")  # so that the variable is put back after the test
        monkeypatch.delenv(name)

    def type_in(*words: str) -> tuple[int, str, list]:
        launched.clear()
        monkeypatch.setattr(sys, "argv", ["/somewhere/tiekd", *words])
        with pytest.raises(SystemExit) as end:
            console_command.main()
        return end.value.code, "".join(capfd.readouterr()), list(launched)

    return type_in


def test_console_help_and_version(typed):
    """--help, or nothing, lists the programs with what they do; --version names the version."""
    for words in ((), ("--help",), ("-h",)):
        code, told, _ = typed(*words)
        assert code == 0
        assert "\n  train           Trains something.\n" in told
        assert "\n  resume          Trains something.\n" in told
    assert typed("--version") == (0, f"tiekd {__version__}\n", [])


def test_console_unknown_command_suggests_near(typed):
    """An unknown command gives one line with near names, and exit code 2."""
    code, told, _ = typed("trian", "x")
    assert (code, told) == (
        2,
        "LaunchError: trian: no command of tiekd; did you mean train? tiekd --help lists them\n",
    )
    code, told, _ = typed("zzz")
    assert (code, told) == (2, "LaunchError: zzz: no command of tiekd; tiekd --help lists them\n")


def test_console_runs_program(typed):
    """A program runs with its own words and exit code, and is told that `tiekd` was typed."""
    assert typed("predict", "r") == (7, "['tiekd predict', 'r'] r\n", [])
    assert os.environ[console.CONSOLE] == "1"
    # What DeepSpeed's launcher puts in front, if the user gives it the path of `tiekd`.
    code, told, _ = typed("--local_rank=1", "predict", "r")
    assert "tiekd predict [-h] recipe" in told
    assert "unrecognized arguments: --local_rank=1" in told
    assert code == 2


def test_console_starts_launcher(typed, monkeypatch):
    """The launcher's options start the launcher, once the program's own arguments are right."""
    options = ["--num_gpus=2", "--master_port=29501"]
    assert typed("train", "--num_gpus", "2", "r", "--master_port=29501") == (
        0,
        "",
        [(options, "train.py", ["r"])],
    )
    code, told, launched = typed("train", "r", "--num_gpus", "2", "--typo")
    assert (code, launched) == (2, [])
    assert "unrecognized arguments: --typo" in told
    code, told, launched = typed("train", "r", "--num_gpus", "0")
    assert (code, launched) == (2, [])
    assert told == "LaunchError: --num_gpus: got '0'; it must be a whole number from 1\n"
    # A program that runs on one rank refuses the option itself.
    code, told, launched = typed("predict", "r", "--num_gpus", "2")
    assert (code, launched) == (2, [])
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    code, told, launched = typed("train", "r", "--num_gpus", "2")
    assert (code, launched) == (2, [])
    assert "--num_gpus=2: a launcher has started this already" in told


def test_console_keeps_visible_devices(typed, monkeypatch):
    """CUDA_VISIBLE_DEVICES selects the devices, which the launcher alone would ignore."""
    monkeypatch.setattr(visible_devices, "_uuids", lambda: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    _, _, [(options, _, _)] = typed("train", "r", "--num_gpus", "2", "--master_port", "29501")
    assert options == ["--include", "localhost:2,3", "--master_port=29501"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    code, told, launched = typed("train", "r", "--num_gpus", "2")
    assert (code, launched) == (2, [])
    assert told == (
        "LaunchError: --num_gpus is 2, but CUDA_VISIBLE_DEVICES=2 lists 1; make them agree\n"
    )
    _, _, [(options, _, _)] = typed("train", "r", "--include", "localhost:1")
    assert options == ["--include=localhost:1"]
