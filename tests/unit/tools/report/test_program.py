"""What bin/report.py refuses to replace, and the folder in which a recipe's paths begin."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import reported_run

from tiekd.errors import LaunchError
from tiekd.tools.distill import plan
from tiekd.tools.report import program
from tiekd.tools.report.place import Place


def test_check_out_replaces_reports_only(tmp_path, html):
    """A report is replaced, any other file only by force, and a folder never."""
    path = tmp_path / "x.html"
    program.check_out(path, is_given=True, force=False)
    path.write_text(html)
    program.check_out(path, is_given=True, force=False)
    path.write_text("mine")
    with pytest.raises(LaunchError, match=f"^--out {path}: is there already, and is no report"):
        program.check_out(path, is_given=True, force=False)
    with pytest.raises(LaunchError, match=f"^{path}: is there already"):
        program.check_out(path, is_given=False, force=False)
    program.check_out(path, is_given=True, force=True)
    for wrong in (tmp_path, tmp_path / "x.txt", tmp_path / "x.log.json"):
        with pytest.raises(LaunchError, match="--out"):
            program.check_out(wrong, is_given=True, force=True)


def test_threads_are_those_of_plan(tmp_path):
    """A plan says the threads of the training, and a damaged one is named."""
    where = Place(tmp_path, tmp_path / "run", [], tmp_path / plan.FILE)
    content = SimpleNamespace(place=where, left_out=[])
    plan.write(plan.new({"images": "/x", "teacher": {}, "epochs": 1}, threads=3), tmp_path)
    assert program.threads_of_plan(content) == 3
    where.plan.write_text("mine: 1")
    assert program.threads_of_plan(content) is None
    assert "can't be used as a plan" in content.left_out[0]
    content.place = where._replace(plan=None)
    assert program.threads_of_plan(content) is None


def test_in_folder_of_run_enters_and_leaves(tmp_path):
    """The current folder is that of the run's start, and afterwards the one before."""
    work_dir, before = reported_run.make(tmp_path), Path.cwd()
    with program._in_folder_of(work_dir) as problem:
        assert (Path.cwd(), problem) == (tmp_path, None)
    assert Path.cwd() == before
    # Without the folder the paths begin here, which the report has to say.
    record = json.loads((work_dir / "launch.json").read_text())
    gone = record | {"folder": str(tmp_path / "gone")}
    (work_dir / "launch.json").write_text(json.dumps(gone))
    with program._in_folder_of(work_dir) as problem:
        assert Path.cwd() == before
        assert f"{tmp_path / 'gone'}, where the run was started, can't be entered" in problem
    os.unlink(work_dir / "launch.json")
    with program._in_folder_of(work_dir) as problem:
        assert problem is None
