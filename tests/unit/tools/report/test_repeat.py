"""The commands that repeat a run, as this installation spells them."""

import shlex
from pathlib import Path

import pytest

from tiekd import console
from tiekd.tools.report import repeat
from tiekd.tools.report.place import Place
from tiekd.workdir.launch_record import LaunchRecord


@pytest.fixture
def where(tmp_path):
    work_dir = tmp_path / "my run"
    work_dir.mkdir()
    (work_dir / "ds_config.json").write_text("{}")
    exports = [work_dir / "a.onnx", tmp_path / "far" / "b.pt2"]
    return Place(work_dir, work_dir, exports, None)


def commands(where, ranks=2, evaluates=True, calibrated=None):
    launch = LaunchRecord("r.yaml", "deepspeed", ranks, ranks, None, 1, "/data/of the run")
    options = {"a.onnx": ("--size", "64x96")}
    recipe = where.work_dir / "config.yaml"
    given = repeat.options_of("", ["data.root=x y"])
    found = repeat.commands(where, recipe, launch, given, evaluates, calibrated, options)
    return [shlex.split(command) for _, command in found]


def test_commands_in_a_checkout(where):
    """Paths are quoted, ranks are started by the launcher, and programs are found anywhere."""
    enter, train, evaluate, onnx, pt2, report = commands(where)
    root = Path(console.__file__).parents[1]
    recipe, work_dir = str(where.work_dir / "config.yaml"), str(where.work_dir)
    assert enter == ["cd", "/data/of the run"]
    assert train[:5] == ["deepspeed", "--num_gpus", "2", f"{root}/bin/train.py", recipe]
    assert train[5:] == [
        *("--work-dir", f"{work_dir}_again", "--deepspeed_config", f"{work_dir}/ds_config.json"),
    ]
    assert evaluate == [f"{root}/bin/evaluate.py", recipe, work_dir, "--set", "data.root=x y"]
    out = f"{work_dir}/again_a.onnx"
    assert onnx == [
        *(f"{root}/bin/export.py", recipe, work_dir, "--out", out, "--size", "64x96"),
    ]
    assert pt2[-1].endswith("far/again_b.pt2")
    assert report == [
        *(f"{root}/bin/report.py", work_dir, "--set", "data.root=x y"),
        *("--export", str(where.exports[1])),
    ]
    assert commands(where, ranks=1)[1][0] == f"{root}/bin/train.py"
    assert commands(where, calibrated=[])[3] == [f"{root}/bin/calibrate.py", work_dir]
    # The last bits of weights depend on the threads, where a plan says them.
    given = (where, where.work_dir / "config.yaml", None, [], False, None, {})
    assert repeat.commands(*given, threads=2)[0][1].startswith(
        f"OMP_NUM_THREADS=2 {root}/bin/train"
    )
    assert repeat.commands(*given)[0][1].startswith(f"{root}/bin/train")
    assert [words for words in commands(where, evaluates=False) if "evaluate" in words[0]] == []


def test_commands_of_an_installed_package(where, monkeypatch):
    """`tiekd train` starts the launcher itself."""
    monkeypatch.setenv(console.CONSOLE, "1")
    train = commands(where)[1]
    assert train[:2] == ["tiekd", "train"]
    assert train[-2:] == ["--num_gpus", "2"]


def test_commands_name_the_data_set(where):
    """Of several data sets the evaluated one is named, and that of the calibration in its own."""
    assert repeat.options_of("", []) == []
    given = repeat.options_of("own", ["a=1"])
    assert given == ["--data-set", "own", "--set", "a=1"]
    calibrated = repeat.options_of("far", [])
    found = repeat.commands(where, where.work_dir / "r.yaml", None, given, True, calibrated, {})
    by_name = {what: shlex.split(command) for what, command in found}
    assert by_name["evaluate the best weights"][-4:] == given
    assert by_name["calibrate the confidence"][-2:] == ["--data-set", "far"]
    assert "--data-set" not in by_name["train again, into another work dir"]
    assert by_name["write this report again"][2:6] == given
