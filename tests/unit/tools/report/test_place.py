"""Where a report finds its run, exported files and plan."""

import os

import pytest

from tiekd.errors import LaunchError
from tiekd.tools.report import place


def run_in(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return folder


def test_find_takes_work_dir_with_its_exports(tmp_path):
    """A work dir's exported files are found, partial and other ones aren't."""
    work_dir = run_in(tmp_path / "run")
    (work_dir / "exports").mkdir()
    names = ("b.onnx", "exports/a.pt2", ".123.c.onnx", "d.pth")
    for name in names:
        (work_dir / name).write_text("")
    found = place.find(work_dir, [work_dir / "b.onnx"], False)
    assert found.work_dir == found.folder == work_dir
    assert found.exports == [work_dir / "b.onnx", work_dir / "exports/a.pt2"]
    assert found.plan is None


def test_find_takes_folder_of_one_run(tmp_path):
    """In a folder with a plan, the one run and the files beside it are found."""
    work_dir = run_in(tmp_path / "run")
    (tmp_path / "plan.yaml").write_text("x")
    (tmp_path / "student.onnx").write_text("")
    (tmp_path / "logs").mkdir()
    found = place.find(tmp_path, [], False)
    assert found.work_dir == work_dir
    assert found.exports == [tmp_path / "student.onnx"]
    assert found.plan == tmp_path / "plan.yaml"
    # The run may have been repeated beside it.
    run_in(tmp_path / "run_again")
    assert place.find(tmp_path, [], False) == found
    # The work dir itself finds the files beside it by the plan, and not without one.
    inner = place.find(work_dir, [], False)
    assert (inner.exports, inner.plan) == (found.exports, found.plan)
    (tmp_path / "plan.yaml").unlink()
    assert place.find(work_dir, [], False).exports == []


def test_find_refuses_what_is_no_run(tmp_path, monkeypatch):
    """No folder, a file, no run and two runs are refused in one line that says what to do."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    run_in(tmp_path / "two" / "a b")
    run_in(tmp_path / "two" / "c")
    for name, told in {
        "none": "there is no such folder; give the work dir that bin/train.py made",
        "file": "is a file; give the work dir",
        "empty": "has no config.yaml, so no run was started here",
        "two": "has 2 runs; give the work dir of one, such as bin/report.py '",
    }.items():
        with pytest.raises(LaunchError, match=told) as error:
            place.find(tmp_path / name, [], False)
        assert "\n" not in str(error.value)
    assert place.find(tmp_path / "empty", [], True).work_dir == tmp_path / "empty"
    # A relative path is one of the current folder.
    monkeypatch.chdir(tmp_path)
    assert place.find(place.Path("two/c"), [], False).work_dir == tmp_path / "two" / "c"


def test_find_refuses_exports_that_are_none(tmp_path):
    """A missing export, a folder, a pipe and another kind of file are refused by name."""
    work_dir = run_in(tmp_path / "run")
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "x.pth").write_text("")
    for name, told in {
        "none.onnx": "there is no such file",
        "run": "a folder",
        "pipe.onnx": "a pipe",
        "x.pth": "allowed are files .onnx, .pt2",
    }.items():
        with pytest.raises(LaunchError, match=f"--export {tmp_path / name}: .*{told}"):
            place.find(work_dir, [tmp_path / name], False)
