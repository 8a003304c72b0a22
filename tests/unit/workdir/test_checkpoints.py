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


def test_find_newest_checkpoint_by_number(tmp_path):
    """The newest checkpoint is found by its iteration number, not by its name's order."""
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
def test_find_skips_damaged_checkpoint(tmp_path, damage, reason):
    """A damaged checkpoint is skipped, and if none is whole the error gives each one's reason."""
    make(tmp_path / "checkpoints", 1)
    damage(make(tmp_path / "checkpoints", 2))
    assert reason in checkpoints.check(tmp_path / "checkpoints" / "iter_2")
    assert checkpoints.find(tmp_path)[0].name == "iter_1"
    damage(tmp_path / "checkpoints" / "iter_1")
    with pytest.raises(
        CheckpointError,
        match=f"passed over iter_2: .*{reason}.*iter_1: .*; "
        "put their files back, or start the run again with bin/train.py in another --work-dir$",
    ):
        checkpoints.find(tmp_path)


def test_prune_keeps_last_and_removes_partial(tmp_path):
    """Pruning keeps the last checkpoints and removes a killed save's partial folder."""
    for iteration in (5, 10, 15):
        make(tmp_path, iteration)
    (tmp_path / ".iter_20.partial").mkdir()
    checkpoints.prune(tmp_path, keep_last=2)
    assert names(tmp_path) == ["iter_10", "iter_15"]


def test_set_aside_newer_checkpoints(
    tmp_path,
):
    """Newer checkpoints are renamed as abandoned, never overwritten and never pruned."""
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


def test_set_aside_newer_best_weights(tmp_path):
    """Best weights newer than the checkpoint are renamed as abandoned."""
    for name, iteration in (("best_rmse.pth", 7), ("best_a1.pth", 8)):
        weights_file.write_weights(
            tmp_path / name, {"w": torch.ones(2)}, {"min_depth": 1.0}, iteration
        )
    checkpoints.set_aside_newer(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "abandoned_best_a1.pth",
        "best_rmse.pth",
    ]


def test_find_weights_prefers_newest_best(tmp_path):
    """The newest best weights are found, or else those of the newest checkpoint."""
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


def test_keyed_numbers_hooks_of_one_class():
    """Hooks of one class get distinct keys for their states."""
    hooks = [Hook(), Hook()]
    assert keyed(hooks) == {"Hook": hooks[0], "Hook_2": hooks[1]}


def test_manifest_lists_files_and_sizes(tmp_path):
    """The manifest lists every file of the checkpoint with its size."""
    path = make(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert {name: size for name, (size, _) in files.items()} == {"state.json": 16, "student.pth": 7}


def test_set_aside_newer_restores_older_best(tmp_path):
    """Abandoning a later best restores that of the checkpoint, and foreign files are kept."""
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
