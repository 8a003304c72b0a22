"""A hostfile that is wrong is refused by bin/resume and by the ranks, before anything starts."""

import json
import os
import subprocess
import sys

import pytest
from support.launched_run import RECORD
from support.programs import ROOT

from tiekd.workdir import launch_record


@pytest.mark.parametrize(
    ("options", "variables", "told"),
    [
        (["--hostfile", "typo"], {}, "--hostfile typo: no such file"),
        (["--hostfile", "typo", "--restarts", "3"], {}, "--hostfile typo: no such file"),
        (["--num_gpus", "4"], {"RANK": "0"}, "--num_gpus=4: a launcher has started this already"),
    ],
)
def test_resume_invalid_launch_options_exit_2(options, variables, told, tmp_path):
    """With an invalid hostfile or launch option bin/resume exits with 2 and one line."""
    (tmp_path / launch_record.RECORD).write_text(json.dumps(RECORD))
    command = [sys.executable, ROOT / "bin" / "resume", ".", *options]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(f"LaunchError: {told}"), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--hostfile", "typo"], "--hostfile {}/typo: no such file"),
        (["-H", "typo", "--num_gpus", "1"], "--hostfile {}/typo: no such file"),
        (["--hostfile=."], "--hostfile {}: a folder"),
        (["--num_nodes", "1", "--hostf=typo", "--no_ssh"], "--hostfile {}/typo: no such file"),
        (["--hostfile", "hosts"], None),
        (["--num_gpus", "1"], None),
    ],
)
def test_rank_checks_hostfile_of_launcher(options, told, tmp_path):
    """A rank rejects a hostfile that its launcher got and can't be read.

    A process that stands for DeepSpeed's launcher starts one that stands for a rank.
    """
    (tmp_path / "bin").mkdir()
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    (tmp_path / "rank.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tiekd.distributed import entrypoint\n"
        "entrypoint.program(lambda: 0)\n"
    )
    launcher = tmp_path / "bin" / "deepspeed"
    launcher.write_text(
        "import os, subprocess, sys\nos.chdir('/')\nos.chdir(sys.path[0] + '/..')\n"
        "rank = subprocess.run([sys.executable, 'rank.py'], cwd=sys.path[0] + '/..')\n"
        "sys.exit(rank.returncode)\n"
    )
    said = os.environ | {"CROSS_RANK": "0"}
    command = [sys.executable, launcher, *options, "rank.py", "--hostfile", "of the program"]
    result = subprocess.run(command, cwd=tmp_path, env=said, capture_output=True, text=True)
    if told is None:
        assert result.returncode == 0, result.stderr
    else:
        line = result.stderr.splitlines()[-1]
        assert result.returncode == 2, result.stderr
        assert line.startswith(f"LaunchError: {told.format(tmp_path)}"), result.stderr
