"""Programs on a recipe of several data sets: all in turn, or the one of --data-set."""

import argparse
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from support import mixed_sets

from tiekd.errors import LaunchError, RecipeError, TeacherError
from tiekd.tools import audit_teacher, cache_frames, cache_teacher, check_data, evaluate, show_batch
from tiekd.tools.experiment import runs
from tiekd.training import mixed_data
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return mixed_sets.make(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(autouse=True)
def metres(monkeypatch):
    """A module of the user's whose teacher says 8 m; programs run on one rank of this process."""
    module = types.ModuleType("mixed_teachers.metres")
    module.build = lambda: lambda batch: torch.full_like(batch.depth, 8.0)
    monkeypatch.setitem(sys.modules, "mixed_teachers", types.ModuleType("mixed_teachers"))
    monkeypatch.setitem(sys.modules, "mixed_teachers.metres", module)
    for tool in (cache_teacher, audit_teacher, evaluate):
        monkeypatch.setattr(tool.process_group, "start_rank", lambda *_: CPU)


def write(folder: Path, root: Path, **changes) -> Path:
    path = folder / "mixed.yaml"
    path.write_text(json.dumps(mixed_sets.recipe(root, **changes)))
    return path


def options(path: Path, **given) -> argparse.Namespace:
    defaults = {"overrides": [], "data_set": None, "out": None, "checkpoint": None}
    return argparse.Namespace(recipe=path, **defaults | {"workers": 0} | given)


TEACHER = {"name": "mixed_teachers.metres", "audit": "off"}


def test_maps_are_made_for_each_set_with_a_teacher(root, tmp_path, capsys):
    """Sets with cached maps are passed over; the printed overrides train on the new maps."""
    path = write(tmp_path, root, own={"teacher": TEACHER})
    cache_teacher.run(options(path, split="train", out=tmp_path / "out"))
    told = capsys.readouterr().out
    assert "Data set own:" in told
    assert "Data set maps:" not in told
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    given = f"--set data.own.teacher=null data.own.teacher.maps={tmp_path / 'out'}"
    assert told.strip().endswith(given)


def test_maps_of_sets_with_one_root_have_folders_of_their_own(root, tmp_path, capsys):
    """The default folder is named by the set, since frames of two sets may have one name."""
    twin = mixed_sets.recipe(root)["data"][0] | {"teacher": TEACHER}
    path = write(tmp_path, root, own={"teacher": TEACHER}, maps=twin | {"set": "twin"})
    cache_teacher.run(options(path, split="train"))
    folders = [root / "own" / f"gt_kd_metres_{name}" for name in ("own", "twin")]
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [4, 4]
    assert all(f".maps={folder}" in capsys.readouterr().out for folder in folders[:1])


@pytest.mark.parametrize(
    ("changes", "given", "told"),
    [
        ({}, {}, "^teacher: .* has no data set with a teacher that isn't cached maps"),
        ({}, {"data_set": "foo"}, "^--data-set: got 'foo'; the recipe has: own, maps"),
        ({}, {"data_set": "own"}, "^--data-set: own has no teacher in"),
        ({}, {"data_set": "maps"}, "^data.maps: teacher.maps: .* learns from cached maps"),
        (
            {"own": {"teacher": TEACHER}, "maps": {"teacher": TEACHER}},
            {"out": Path("out")},
            r"^--out: .* has maps to make for 2 data sets \(own, maps\); give --data-set",
        ),
    ],
)
def test_wrong_data_set_of_maps_is_refused(root, tmp_path, changes, given, told):
    """A set without a teacher to run, an unknown one, and one folder for two sets are refused."""
    path = write(tmp_path, root, **changes)
    with pytest.raises((TeacherError, RecipeError), match=told):
        cache_teacher.run(options(path, split="train", **given))


def test_check_reports_each_set_in_its_folder(root, tmp_path, capsys):
    """Each set has a report of its own, and what to type names the set."""
    (root / "own" / "rgb" / "own2.png").rename(tmp_path / "own2.png")
    (root / "own" / "rgb" / "own2.png").write_bytes(b"no image")
    path = write(tmp_path, root)
    try:
        given = {"split": "both", "neighbours": 0, "drop": [], "out": tmp_path / "out"}
        assert check_data.run(options(path, **given)) == 1
    finally:
        (tmp_path / "own2.png").replace(root / "own" / "rgb" / "own2.png")
    told = capsys.readouterr().out
    assert re.findall("^Data set (.*):$", told, re.M) == ["own", "maps"]
    assert f"--set data.own.train_split={tmp_path / 'out' / 'own' / 'train.txt'}" in told
    assert (tmp_path / "out" / "maps" / "report.json").is_file()


def test_frames_of_each_set_are_decoded(root, tmp_path, capsys):
    """Each set has a cache of its own, and the printed overrides name the sets."""
    path = write(tmp_path, root)
    cache_frames.run(options(path, split="train", verify=False))
    told = capsys.readouterr().out.strip().splitlines()[-1]
    folders = [f"data.{name}.decoded={root / name / 'decoded'}" for name in ("own", "maps")]
    assert told == f"Read from them with --set {' '.join(folders)}"


def test_audit_of_a_set_without_teacher_is_refused(root, tmp_path):
    """An audit of a set without a teacher is refused by its name."""
    path = write(tmp_path, root)
    with pytest.raises(TeacherError, match="has none for own$"):
        audit_teacher.run(options(path, data_set="own"))


def test_evaluation_of_several_sets_asks_for_one(root, tmp_path):
    """bin/evaluate.py evaluates one set; its options come before what the set states."""
    path = write(tmp_path, root, own={"evaluation": {"crop": "garg", "cap": 5}})
    recipe = Recipe(mixed_sets.recipe(root, own={"evaluation": {"crop": "garg", "cap": 5}}))
    with pytest.raises(LaunchError, match="^--data-set: the recipe has several: own, maps"):
        evaluate.run(options(path))
    args = options(path, data_set="own")
    chosen = evaluate._of_one_set(recipe, args).evaluation
    assert (chosen.crop, chosen.cap) == ("garg", 5)
    args.overrides = ["evaluation={cap: null}"]
    assert evaluate._of_one_set(recipe, args).evaluation.cap is None
    args.overrides = ["evaluation.crop=none"]
    chosen = evaluate._of_one_set(recipe, args).evaluation
    assert (chosen.crop, chosen.cap) == ("none", 5)


def test_shown_batch_names_the_sets(root):
    """bin/show_batch.py says of each sample its set, and its index and epoch there."""
    recipe = Recipe(mixed_sets.recipe(root))
    frames = mixed_data.training_frames(recipe, None)
    shown = show_batch.global_batch(frames, recipe.augment, recipe.loading, recipe.train, 1, 1, 3)
    (part,) = shown
    told = [show_batch.describe(part, number, None) for number in range(6)]
    for text, name, (epoch, index) in zip(told, part.data_sets, part.keys, strict=True):
        assert f"(sample {index} of {name}, epoch {epoch + 1})" in text
        assert f"{name}{index}.png" in text or name == "own"
    assert set(part.data_sets) == {"own", "maps"}
    # Samples 13 to 18 of the mixture of 4 and 9 frames are in the second epoch of the sets.
    assert max(epoch for epoch, _ in part.keys) == 1
    with pytest.raises(LaunchError, match="the run has iterations 1 to 4"):
        show_batch.check_iteration(5, frames, recipe)


def test_experiment_of_a_list_is_refused(root, tmp_path):
    """An experiment has data sets of its own, so it takes no recipe with several."""
    path = write(tmp_path, root)
    row = types.SimpleNamespace(set=())
    spec = types.SimpleNamespace(
        recipe_of=lambda _: path, set=(), steps=3, weights="best", rows={"a": row},
        sets={"b": types.SimpleNamespace(overrides=lambda _: [])},
    )  # fmt: skip
    with pytest.raises(RecipeError, match="data is a list of sets, and an experiment has"):
        runs._resolve_row(spec, "b", "a", None, None)
