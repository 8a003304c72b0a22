"""bin/print_config.py as a program."""

import shlex
import subprocess
import sys

from support.programs import ROOT

from tiekd.config.provenance import annotated
from tiekd.config.recipe import load_recipe


def test_print_config_prints_recipe_or_one_line_error(tmp_path):
    """The program print_config.py prints the annotated recipe or one line of error."""
    program, recipe = ROOT / "bin" / "print_config.py", ROOT / "model_configs" / "demo.yaml"
    command = [sys.executable, program, recipe, "--set", "train.seed=7"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout == annotated(recipe, ["train.seed=7"])
    result = subprocess.run(
        [sys.executable, program, "no.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("RecipeError: no.yaml: no such recipe")


def test_print_config_round_trips_shell_argument(tmp_path):
    """A quoted override passes through the shell and print_config unchanged."""
    (tmp_path / "r.yaml").write_text("data: {name: kitti, root: x}\n")
    root = f"{tmp_path}/my  data #2 $HOME 'x'"
    words = [
        sys.executable,
        str(ROOT / "bin/print_config.py"),
        "r.yaml",
        "--set",
        f"data.root={root}",
    ]
    printed = subprocess.run(
        shlex.join(words), shell=True, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    (tmp_path / "printed.yaml").write_text(printed.stdout)
    assert load_recipe(tmp_path / "printed.yaml")["data"]["root"] == root
