"""Finding the right checkpoint: whole ones only, the newest first, and nothing lost on the way."""

import json
import os

import pytest
import torch

from tiekd.errors import CheckpointError
from tiekd.training.hook import Hook
from tiekd.training.hooks.checkpoint import keyed
from tiekd.workdir import checkpoints, manifest, weights_file


def make(folder, iteration, content=b"weights"):
    """A whole checkpoint with one file beside its manifest."""
    path = folder / f"iter_{iteration}"
    path.mkdir(parents=True)
    files = manifest.Files()
    files.save(content, path / "student.pth")
    files.save(json.dumps({"iteration": iteration}).encode(), path / "state.json")
    manifest.write(path, files.written)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_whole_one_is_found_by_number_not_by_name(tmp_path):
    for iteration in (9, 10, 100):
        make(tmp_path / "checkpoints", iteration)
    assert checkpoints.find(tmp_path)[0].name == "iter_100"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "student.pth").write_bytes(b"weight"), "has 6 bytes, not 7"),
        (
            lambda path: (path / "student.pth").write_bytes(b"wEights"),
            "has changed since it was written",
        ),
        (lambda path: (path / "student.pth").unlink(), "is missing"),
        (lambda path: (path / "manifest.json").unlink(), "a save that never ended"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest can't be read"),
        (
            lambda path: (path / "manifest.json").write_text('{"files": {}}'),
            "manifest can't be read",
        ),
    ],
)
def test_a_damaged_one_is_passed_over_and_said_so(tmp_path, damage, reason):
    make(tmp_path / "checkpoints", 1)
    damage(make(tmp_path / "checkpoints", 2))
    assert reason in checkpoints.check(tmp_path / "checkpoints" / "iter_2")
    assert checkpoints.find(tmp_path)[0].name == "iter_1"
    damage(tmp_path / "checkpoints" / "iter_1")
    with pytest.raises(
        CheckpointError, match=f"passed over iter_2: .*{reason}.*iter_1: .*start the run"
    ):
        checkpoints.find(tmp_path)


def test_pruning_keeps_the_last_and_clears_what_a_killed_save_left(tmp_path):
    for iteration in (5, 10, 15):
        make(tmp_path, iteration)
    (tmp_path / ".iter_20.partial").mkdir()
    checkpoints.prune(tmp_path, keep_last=2)
    assert names(tmp_path) == ["iter_10", "iter_15"]


def test_going_on_from_an_older_one_sets_newer_ones_aside_and_pruning_spares_the_new_future(
    tmp_path,
):
    folder = tmp_path / "checkpoints"
    for iteration in (5, 10, 15):
        make(folder, iteration)
    checkpoints.set_aside_newer(tmp_path, 5)
    assert names(folder) == ["abandoned_iter_10", "abandoned_iter_15", "iter_5"]
    make(folder, 6)
    checkpoints.prune(folder, keep_last=1)
    assert names(folder) == ["abandoned_iter_10", "abandoned_iter_15", "iter_6"]
    make(folder, 10)
    checkpoints.set_aside_newer(tmp_path, 6)
    assert "abandoned2_iter_10" in names(folder), "what was set aside before is not overwritten"


def test_going_on_from_before_the_best_sets_its_weights_aside(tmp_path):
    for name, iteration in (("best_rmse.pth", 7), ("best_a1.pth", 8)):
        weights_file.write_weights(
            tmp_path / name, {"w": torch.ones(2)}, {"min_depth": 1.0}, iteration
        )
    checkpoints.set_aside_newer(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "abandoned_best_a1.pth",
        "best_rmse.pth",
    ]


def test_weights_are_the_newest_best_ones_else_the_newest_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no weights"):
        checkpoints.find_weights(tmp_path)
    make(tmp_path / "checkpoints", 3)
    of_three = tmp_path / "checkpoints" / "iter_3" / "student.pth"
    assert (
        checkpoints.find_weights(tmp_path) == checkpoints.find_weights(of_three.parent) == of_three
    )
    for age, name in enumerate(("best_rmse.pth", "best_a1.pth")):
        weights_file.write_weights(tmp_path / name, {"w": torch.ones(2)}, {"min_depth": 1.0}, 7)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert checkpoints.find_weights(tmp_path).name == "best_rmse.pth"
    content = torch.load(tmp_path / "best_rmse.pth", weights_only=True)
    assert content["iteration"] == 7
    assert content["network"] == {"min_depth": 1.0}


def test_hooks_of_one_class_have_states_of_their_own():
    hooks = [Hook(), Hook()]
    assert keyed(hooks) == {"Hook": hooks[0], "Hook_2": hooks[1]}


def test_a_manifest_lists_every_file_with_its_size(tmp_path):
    path = make(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert {name: size for name, (size, _) in files.items()} == {"state.json": 16, "student.pth": 7}


def test_the_best_of_the_checkpoint_comes_back_when_a_later_one_is_abandoned(tmp_path):
    path, node = tmp_path / "best_rmse.pth", {"min_depth": 1.0}
    for iteration in (
        4,
        6,
        8,
    ):  # the checkpoint is of iteration 5, and no other was saved before the kill
        weights_file.replace_best(path, {"w": torch.ones(2) * iteration}, node, iteration)
        if iteration == 4:
            weights_file.forget_older_best(tmp_path)
    checkpoints.set_aside_newer(tmp_path, 5)
    assert torch.load(path, weights_only=True)["iteration"] == 4
    assert torch.load(tmp_path / "abandoned_best_rmse.pth", weights_only=True)["iteration"] == 8
    (tmp_path / "best_mine.pth").write_bytes(b"not ours")
    checkpoints.set_aside_newer(tmp_path, 0)
    assert (tmp_path / "best_mine.pth").read_bytes() == b"not ours"
