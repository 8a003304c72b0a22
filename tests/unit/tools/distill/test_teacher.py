"""What --teacher and --teacher-set may be."""

import json

import pytest

from tiekd.config.recipe_yaml import dump
from tiekd.errors import UserError
from tiekd.tools.distill import teacher

STEREO = ("baseline=0.5", "right=[left, right]")


def test_teacher_is_folder_of_transformers(tmp_path):
    """A folder with config.json is a model of transformers, given by its absolute path."""
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert teacher.parse(str(tmp_path), ["precision=bf16"]) == {
        "teacher": {"name": "huggingface", "model": str(tmp_path), "precision": "bf16"}
    }


def test_teacher_is_exported_file(tmp_path):
    """An .onnx file is an exported network; its options are read as a recipe's."""
    path = tmp_path / "deep.onnx"
    path.touch()
    options = ["output=metres", "mean=[0, 0, 0]", "std=[1, 1, 1]", "range=255"]
    node = teacher.parse(str(path), options)["teacher"]
    assert node == {
        **{"name": "exported", "file": str(path), "output": "metres"},
        **{"mean": [0, 0, 0], "std": [1, 1, 1], "range": 255},
    }


def test_teacher_is_recipe_by_name():
    """A name of tiekd's recipes is a network of ours, without options."""
    node = teacher.parse("bts_r50_kitti")["teacher"]
    assert node.keys() == {"recipe"}
    assert node["recipe"].endswith("teachers/bts_r50_kitti.yaml")


def test_teacher_is_own_recipe_with_checkpoint(tmp_path):
    """The checkpoint of a recipe's network is an option, and made absolute."""
    (tmp_path / "net.yaml").write_text(dump({"network": {"max_depth": 10.0}}))
    (tmp_path / "x.pth").touch()
    node = teacher.parse(str(tmp_path / "net.yaml"), [f"checkpoint={tmp_path}/x.pth"])["teacher"]
    assert node == {"recipe": str(tmp_path / "net.yaml"), "checkpoint": str(tmp_path / "x.pth")}


def test_teacher_is_work_dir(tmp_path):
    """A folder with config.yaml is a run of tiekd: its network, and its weights."""
    (tmp_path / "config.yaml").write_text(dump({"network": {"max_depth": 10.0}}))
    node = teacher.parse(str(tmp_path))["teacher"]
    assert node == {"recipe": str(tmp_path / "config.yaml"), "checkpoint": str(tmp_path)}


def test_teacher_is_node_in_file(tmp_path, monkeypatch):
    """A file with nothing but `teacher` is that node; paths of what exists become absolute."""
    (tmp_path / "maps").mkdir()
    (tmp_path / "t.yaml").write_text(dump({"teacher": {"maps": "maps"}}))
    monkeypatch.chdir(tmp_path)
    node = teacher.parse("t.yaml")
    assert node == {"teacher": {"maps": str(tmp_path / "maps")}}
    assert teacher.is_cached(node)


def test_teacher_is_that_of_students_recipe(tmp_path):
    """Of a student's recipe the teacher is meant, as by bin/cache_teacher.py."""
    recipe = {"teacher": {"maps": "/maps"}, "network": {"max_depth": 10.0}}
    (tmp_path / "t.yaml").write_text(dump(recipe))
    assert teacher.parse(str(tmp_path / "t.yaml")) == {"teacher": {"maps": "/maps"}}


def test_teacher_is_several_in_file(tmp_path):
    """A file with nothing but `teachers` is a mixture, which --teacher-set can't change."""
    several = [{"name": "stereo", "baseline": 0.5}, {"maps": "/maps", "weight": 2.0}]
    (tmp_path / "t.yaml").write_text(dump({"teachers": several}))
    assert teacher.parse(str(tmp_path / "t.yaml")) == {"teachers": several}
    assert not teacher.is_cached({"teachers": several})
    with pytest.raises(UserError, match="several teachers; write their options into the file"):
        teacher.parse(str(tmp_path / "t.yaml"), ["weight=1"])


def test_teacher_is_second_camera():
    """`stereo` takes its options from --teacher-set."""
    node = teacher.parse("stereo", STEREO)["teacher"]
    assert node == {"name": "stereo", "baseline": 0.5, "right": ["left", "right"]}


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        ("no_such_thing", (), "--teacher: nothing is called no_such_thing; give a recipe"),
        ("deep.onnx", (), "--teacher: no file at deep.onnx"),
        ("stereo", (), "teacher: stereo needs either `baseline`"),
        ("stereo", ("baseline",), "--teacher-set: got 'baseline'; write KEY=VALUE"),
        ("stereo", ("basline=0.5",), "teacher (stereo): unknown key 'basline'"),
        ("stereo", ("baseline=wide",), "teacher.baseline: got 'wide'; it must be a number"),
        ("folder.yaml", (), "--teacher: nothing is called folder.yaml"),
    ],
)
def test_teacher_mistake_is_one_line(tmp_path, monkeypatch, given, options, told):
    """A teacher that isn't there, and options that are missing or unknown, are one line."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        teacher.parse(given, options)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_teacher_exported_needs_options(tmp_path):
    """An exported file without its preprocessing is refused with a recipe's own message."""
    (tmp_path / "deep.pt2").touch()
    with pytest.raises(UserError, match=r"teacher \(exported\): needs output, mean, std, range"):
        teacher.parse(str(tmp_path / "deep.pt2"))


def test_teacher_folder_must_say_what_it_is(tmp_path):
    """A folder with neither config is refused."""
    with pytest.raises(UserError, match="has neither config.json"):
        teacher.parse(str(tmp_path))


def test_teacher_recipe_needs_network(tmp_path):
    """A recipe with neither a network nor a teacher is refused."""
    (tmp_path / "t.yaml").write_text(dump({"losses": {}}))
    with pytest.raises(UserError, match="has neither `teacher` nor `network`"):
        teacher.parse(str(tmp_path / "t.yaml"))
