"""What bin/report.py refuses to replace, and the folder in which a recipe's paths begin."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import reported_run

from tiekd.errors import LaunchError, RecipeError
from tiekd.tools.distill import plan
from tiekd.tools.report import evaluations, findings, page, place, program
from tiekd.tools.report.place import Place
from tiekd.training import inputs
from tiekd.workdir import workdir


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


def test_report_of_several_data_sets_takes_one(tmp_path):
    """Frames, metric, suggestions and commands are those of the set of --data-set."""
    work_dir = reported_run.make(tmp_path)
    recipe = work_dir / workdir.RECIPE
    reported_run.mix(work_dir, "own", "more")
    where = place.find(work_dir, (), False)
    for wrong in (None, "other"):
        with pytest.raises((LaunchError, RecipeError), match="^--data-set: .*own, more"):
            program.collect(where, recipe, [], torch.device("cpu"), wrong)
    content = program.collect(where, recipe, [], torch.device("cpu"), "own")
    names = json.loads((work_dir / inputs.NAME).read_text())["splits"]["own val"]["names"]
    assert len(content.validation.measured.frames) == len(names)
    assert findings._metric(content) == ([2, 4, 6, 8], [0.25, 0.125, 0.25 / 3, 0.0625])
    few = next(each for each in content.suggestions if "validation frames count" in each.symptom)
    assert few.options == ()  # the fraction is 0.4 already
    fraction = "data.own.val_fraction"
    fewer = program.collect(where, recipe, [f"{fraction}=0.15"], torch.device("cpu"), "own")
    assert (f"{fraction}=0.3",) in [each.options for each in fewer.suggestions]
    commands = dict(content.commands)
    for what in ("evaluate the best weights", "write this report again"):
        assert commands[what].endswith("--data-set own")
    content.records = content.records._replace(temperature=1.5)
    assert program._calibrated_with(content) == ["--data-set", "own"]
    document = page.document(content)
    assert "The run has the data sets own, more; the evaluated frames are those of own." in document
    assert "data set more" in document
    assert "own/abs_rel" in document
    other = replace(content, data_set=content.recipe.one_set("more"), left_out=[])
    assert evaluations.evaluate(other, None, torch.device("cpu")) is None
    assert "(data.more.validate is false)" in other.left_out[0]
