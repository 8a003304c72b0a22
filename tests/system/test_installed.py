"""An installed package, without a checkout: `tiekd` trains through the launcher, and resumes."""

import json
import subprocess
import sys
from pathlib import Path

from support import programs, recipes

TIEKD = "from tiekd.tools.console_command import main; main()"


def install(folder: Path) -> Path:
    """Puts the files of a wheel into a folder, as pip would, and returns the folder."""
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)]
    subprocess.run(build, cwd=programs.ROOT, check=True, capture_output=True)
    return folder


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_installed_package_trains_and_resumes(tmp_path):
    """`tiekd train --num_gpus` works in any folder, writes only there, and names itself."""
    site, here = install(tmp_path / "site"), tmp_path / "here"
    before = files(site)
    node = recipes.recipe(here, iterations=2)
    node |= {"losses": {"silog": {"weight": 1.0}}, "hooks": None, "teacher": None}
    recipes.write_recipe(here / "mine.yaml", node)

    def typed(*words: str) -> programs.Result:
        command = [sys.executable, "-c", TIEKD, *words]
        return programs.finish(command, cwd=here, recorder=False, PYTHONPATH=str(site))

    # The launcher runs the program of the package, whose engine configs are found by name.
    options = ["--num_gpus", "1", "--master_port", str(programs.free_port())]
    result = typed("train", "mine", *options, "--deepspeed_config", "fp32_zero1")
    assert result.code == 0, result.stderr[-3000:]
    assert str(site / "tiekd" / "share" / "bin" / "train.py") in result.stdout + result.stderr
    work_dir = here / "work_dirs" / "mine"
    assert json.loads((work_dir / "launch.json").read_text())["launcher"] == "deepspeed"
    assert json.loads((work_dir / "outcome.json").read_text())["outcome"] == "finished"
    assert files(site) == before
    # Without another import of torch: a run that is finished, and one that isn't there.
    result = typed("resume", "work_dirs/mine")
    assert result.code == 0
    assert result.stdout.startswith("work_dirs/mine is finished (2 of 2 iterations")
    result = typed("resume", "work_dirs/other")
    assert result.code == 2
    assert result.our_lines()[-1].endswith("give the work dir that tiekd train made")
