"""The record of what a run reads.

A resume says what has changed since, and refuses what it may not take.
"""

import importlib
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from support import tar_shards
from support.fake_data import write_png
from support.recorded_run import Run, write_frame

from tiekd.data import file_fingerprints, teacher_maps
from tiekd.data.build import build_dataset
from tiekd.engine.config import EngineConfig
from tiekd.errors import CheckpointError
from tiekd.training import input_changes, inputs
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.settings import Recipe
from tiekd.workdir.weights_file import write_weights


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def changes(run, started) -> input_changes.Verdict:
    return input_changes.compare(started, run.record(started))


def refusals(run, started) -> list[str]:
    return changes(run, started).refused


def test_inputs_record_round_trip(run):
    """A record reads back equal, compares without changes and holds counts and file facts."""
    record = run.record()
    inputs.write(run.folder, record)
    assert inputs.read(run.folder) == record
    assert changes(run, record) == ([], [], [])
    assert inputs.of_checkpoint(run.folder / "checkpoints" / "iter_3") == record
    assert inputs.of_checkpoint(None) is None
    train = record["splits"]["train"]
    assert train["count"] == len(train["names"]) == 8
    assert record["iterations_per_epoch"] == 4
    image = run.folder / "data" / "pictures" / train["names"][0]
    assert train["files"]["picture"][0] == [
        image.stat().st_size,
        file_fingerprints.crc(image),
        image.stat().st_mtime_ns,
    ]
    assert sorted(map(os.path.basename, record["recipe_files"])) == ["base.yaml", "recipe.yaml"]


def sets_of(run) -> dict:
    recipe = Recipe(run.recipe())
    return {split: build_dataset(recipe.dataset, split) for split in ("train", "val")}


def test_fingerprint_splits_follows_contents_and_not_places(run):
    """A fingerprint has no paths or times of small files, and a changed image changes it."""
    sets = sets_of(run)
    first = inputs.fingerprint_splits(sets)
    assert json.loads(json.dumps(first)) == first
    image = Path(sets["train"].frames[0].image)
    os.utime(image, ns=(1, 1))
    assert inputs.fingerprint_splits(sets) == first
    assert str(run.folder) not in json.dumps(first)
    image.write_bytes(image.read_bytes() + b"x")
    assert inputs.fingerprint_splits(sets) != first


def test_fingerprint_files_follows_contents(run):
    """The files beside the frames are in it by name, with the state of their contents."""
    (run.folder / "start.pth").write_bytes(b"weights")
    run.node["load"] = {"checkpoint": str(run.folder / "start.pth")}
    recipe, sets = Recipe(run.recipe()), sets_of(run)
    first = inputs.fingerprint_files(recipe, sets)
    assert first == {"load.checkpoint": zlib.crc32(b"weights")}
    (run.folder / "start.pth").write_bytes(b"others")
    assert inputs.fingerprint_files(recipe, sets) != first


def test_fingerprint_splits_of_large_data_has_times(run, monkeypatch):
    """Where contents are too large to be read, the modification times count."""
    monkeypatch.setattr(inputs, "READ_UP_TO", 0)
    sets = sets_of(run)
    first = inputs.fingerprint_splits(sets)
    os.utime(sets["train"].frames[0].image, ns=(1, 1))
    assert inputs.fingerprint_splits(sets) != first


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "Expecting value"),
        ("[]", "it has no version"),
        ('{"version": 1', "Expecting ',' delimiter"),
        ('{"version": 1}', "recipe is missing or wrong"),
        ("splits", "splits is missing or wrong"),
        ("split", "splits.train is wrong"),
        ("names", "splits.train is wrong"),
        ("state", "splits.train is wrong"),
        ("file", "files is wrong"),
    ],
)
def test_inputs_read_damaged_record_refused(run, content, told):
    """A damaged record is refused by name: as a missing one it would be overwritten."""
    record = run.record()
    if content == "splits":
        record["splits"] = 3
    elif content == "split":
        record["splits"]["train"] = 3
    elif content == "names":
        record["splits"]["train"]["names"] = 3
    elif content == "state":
        record["splits"]["train"]["files"]["picture"][0] = 3
    elif content == "file":
        record["files"]["teacher.checkpoint"] = 3
    else:
        record = None
    path = run.folder / inputs.NAME
    path.write_text(content if record is None else json.dumps(record))
    with pytest.raises(CheckpointError) as error:
        inputs.read(run.folder)
    assert str(error.value).startswith(f"{path}: not the record of a run's inputs ({told}")
    assert str(error.value).endswith(
        "; put the run's own file back, or delete it to resume without a comparison with the start"
    )


@pytest.mark.parametrize("content", [None, '{"version": 99}'])
def test_inputs_read_missing_record(run, content):
    """A missing record, or another version's, reads as None, and the comparison says so."""
    if content is not None:
        (run.folder / inputs.NAME).write_text(content)
    assert inputs.read(run.folder) is None
    assert inputs.held_out(None, Recipe({})) is None
    verdict = changes(run, None)
    assert verdict.keys is None
    assert verdict.refused == []
    assert verdict.only_logged[0].startswith(
        "There is no inputs.json of this run's start, so nothing says what has changed"
    )


def test_inputs_added_images_refused(run):
    """Added images are refused, and the validation frames stay those of the start."""
    started = run.record()
    for index in range(10, 40):
        write_frame(run.folder / "data", f"{index:02d}", index)
    verdict = changes(run, started)
    assert verdict.refused == ["30 train frames were added (10.png, 11.png, 12.png and 27 more)"]
    assert "The validation frames stay those of the start" in verdict.only_logged
    assert run.record(started)["splits"]["val"] == started["splits"]["val"]
    assert (
        run.record()["splits"]["val"]["names"] != started["splits"]["val"]["names"]
    )  # what would be picked anew


def test_inputs_removed_or_renamed_images_refused(run):
    """Removed and renamed images are refused by split and name."""
    started = run.record()
    train, val = (started["splits"][split]["names"] for split in ("train", "val"))
    (run.folder / "data" / "pictures" / train[2]).unlink()
    (run.folder / "data" / "pictures" / val[0]).rename(run.folder / "data" / "pictures" / "new.png")
    write_png(run.folder / "data" / "depth" / "new.png", np.full((8, 12), 500, np.uint16))
    assert refusals(run, started) == [
        "1 train frames were added (new.png)",
        f"1 of 8 train frames were removed ({train[2]})",
        f"1 of 2 val frames were removed ({val[0]})",
    ]


@pytest.mark.parametrize("kind", ["pictures", "depth"])
def test_inputs_changed_content_refused(run, kind):
    """A file with changed content is refused although its size and time are unchanged."""
    started = run.record()
    name = started["splits"]["train"]["names"][1]
    path = run.folder / "data" / kind / name
    before, bits = path.stat(), bytearray(path.read_bytes())
    bits[-1] ^= 1
    path.write_bytes(bits)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    word = {"pictures": "image", "depth": "depth map"}[kind]
    assert refusals(run, started) == [
        f"the {word} of 1 train frames was changed, added or removed ({name})"
    ]


def test_inputs_added_or_removed_depth_refused(run):
    """Depth maps that were added or removed since the start are refused."""
    run.node["teacher"] = {"maps": "maps"}
    (run.folder / "data" / "depth" / "03.png").unlink()
    run.node["data"]["val_split"] = "val.txt"
    (run.folder / "data" / "val.txt").write_text("00.png\n")
    started = run.record()
    write_png(run.folder / "data" / "depth" / "03.png", np.full((8, 12), 500, np.uint16))
    (run.folder / "data" / "depth" / "05.png").unlink()
    assert refusals(run, started) == [
        "the depth map of 2 train frames was changed, added or removed (03.png, 05.png)"
    ]


def test_inputs_changed_mtime_not_refused(run, monkeypatch):
    """A changed time alone isn't refused; it is only noted for files too large to read."""
    started = run.record()
    for path in (run.folder / "data").rglob("*.png"):
        os.utime(path, (1, 1))
    assert changes(run, started) == ([], [], [])
    monkeypatch.setattr(inputs, "READ_UP_TO", 0)
    started = run.record()
    assert started["splits"]["train"]["files"]["picture"][0][1] is None
    for path in (run.folder / "data").rglob("*.png"):
        os.utime(path, (2, 2))
    verdict = changes(run, started)
    assert verdict.refused == []
    assert verdict.only_logged == [
        f"{count} files of the {split} frames have another modification time and the same size; "
        "they are assumed to be unchanged"
        for split, count in (("train", 16), ("val", 4))
    ]
    write_frame(run.folder / "data", "03", 77)  # another size
    (run.folder / "data" / "pictures" / "03.png").write_bytes(b"short")
    assert any(text.startswith("the image of 1 ") for text in refusals(run, started))


def test_inputs_reread_recorded_contents(run, monkeypatch):
    """Contents recorded at the start are read again although the set is now too large."""
    started = run.record()
    monkeypatch.setattr(inputs, "READ_UP_TO", 0)
    write_frame(run.folder / "data", "50", 50)
    now = run.record(started)
    crcs = dict(
        zip(
            now["splits"]["train"]["names"], now["splits"]["train"]["files"]["picture"], strict=True
        )
    )
    assert crcs["50.png"][1] is None
    assert all(crcs[name][1] for name in started["splits"]["train"]["names"])


def test_inputs_moved_folder_not_refused(run):
    """A moved data folder with equal files is noted and not refused."""
    started = run.record()
    (run.folder / "data").rename(run.folder / "elsewhere")
    run.node["data"]["root"] = str(run.folder / "elsewhere")
    verdict = changes(run, started)
    assert verdict.keys == ["data.root"]
    assert verdict.refused == []
    where = run.folder / "elsewhere" / "pictures", run.folder / "data" / "pictures"
    assert (
        f"The train frames are now those of {where[0]}; at the start, of {where[1]}"
        in verdict.only_logged
    )


def test_inputs_split_file_changes(run):
    """A split file's change is noted, and refused only if it changes the frames."""
    path = run.folder / "data" / "val.txt"
    path.write_text("00.png\n01.png\n")
    run.node["data"]["val_split"] = "val.txt"
    started = run.record()
    path.write_text("\n00.png\n\n01.png\n")
    verdict = changes(run, started)
    assert verdict.refused == []
    assert verdict.only_logged == [f"data.val_split: {path} has another content"]
    path.write_text("00.png\n")
    assert refusals(run, started) == [
        "1 train frames were added (01.png)",
        "1 of 2 val frames were removed (01.png)",
        f"data.val_split: {path} has another content",
    ]


def test_inputs_reordered_split_refused(run):
    """Training frames in another order, or listed twice, are refused."""
    run.node["data"] = {
        "name": "kitti",
        "root": str(run.folder / "k"),
        "train_split": "t.txt",
        "val_split": "v.txt",
    }
    lines = [f"{index:02d}.png {index:02d}.png 721.5\n" for index in range(4)]
    for index in range(4):
        write_png(run.folder / "k" / "input" / f"{index:02d}.png", np.zeros((8, 12, 3), np.uint8))
        write_png(
            run.folder / "k" / "gt_depth" / f"{index:02d}.png", np.full((8, 12), 500, np.uint16)
        )
    (run.folder / "k" / "t.txt").write_text("".join(lines[:3]))
    (run.folder / "k" / "v.txt").write_text(lines[3])
    started = run.record()
    (run.folder / "k" / "t.txt").write_text("".join([lines[1], lines[0], lines[2]]))
    path = run.folder / "k" / "t.txt"
    assert refusals(run, started) == [
        "the train frames have another order",
        f"data.train_split: {path} has another content",
    ]
    (run.folder / "k" / "t.txt").write_text("".join([*lines[:3], lines[0]]))  # a frame twice
    assert refusals(run, started)[0] == "1 train frames were added (00.png)"


def test_inputs_replaced_teacher_refused(run):
    """A moved teacher checkpoint is noted; a replaced or reconfigured teacher is refused."""
    paths = [run.folder / f"{name}.pth" for name in "ab"]
    for number, path in enumerate(paths):
        write_weights(path, {}, {"number": number}, 0)
    run.node["teacher"] = {
        "network": {"encoder": {}, "decoder": {}, "head": {}},
        "checkpoint": str(paths[0]),
    }
    started = run.record()
    paths[0].rename(run.folder / "c.pth")
    run.node["teacher"]["checkpoint"] = str(run.folder / "c.pth")
    verdict = changes(run, started)
    assert verdict.refused == []
    assert (
        f"teacher.checkpoint: {run.folder / 'c.pth'} has the content that {paths[0]} had"
        in verdict.only_logged
    )
    paths[1].rename(run.folder / "c.pth")
    assert refusals(run, started)[0].startswith(
        f"teacher.checkpoint: {run.folder / 'c.pth'}, where {paths[0]} was"
    )
    run.node["teacher"]["flip"] = True
    assert "teacher.flip is True, was None" in refusals(run, started)
    run.node["teacher"] = None
    assert any(text.startswith("teacher is None") for text in refusals(run, started))


def test_inputs_remade_teacher_maps_refused(run):
    """Teacher maps with another manifest or content are refused."""
    manifest = run.folder / "data" / "maps" / "manifest.json"
    facts = {
        "full_scale_m": 80.0,
        "max_depth_m": 80.0,
        "kb_crop": None,
        "flip": True,
        "teacher_digest": "a" * 64,
    }
    manifest.write_text(json.dumps(facts))
    run.node["teacher"] = {"maps": "maps"}
    started = run.record()
    manifest.write_text(json.dumps(facts | {"teacher_digest": "b" * 64}))
    assert refusals(run, started) == [f"teacher.maps: {manifest} has another content"]
    name = started["splits"]["train"]["names"][0]
    write_png(run.folder / "data" / "maps" / name, np.full((8, 12), 1234, np.uint16))
    assert (
        refusals(run, started)[0]
        == f"the teacher map of 1 train frames was changed, added or removed ({name})"
    )


def test_inputs_changed_reference_refused(run):
    """An evaluation that compares with the teacher can't take over the best of ground truth."""
    started, now = run.record(), run.record()
    now["recipe"]["evaluation"]["against"] = "teacher"
    told = "evaluation.against is teacher, was ground_truth"
    assert input_changes.compare(started, now).refused == [told]


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("data", "depth_unit", 500, "data.depth_unit is 500, was 1000"),
        ("data", "invalid", [777], "data.invalid is [777], was None"),
        (
            "data",
            "intrinsics",
            [9.0, 9.0, 5.5, 3.5],
            "data.intrinsics is [9.0, 9.0, 5.5, 3.5], was None",
        ),
        ("evaluation", "crop", "garg", "evaluation.crop is garg, was none"),
        ("evaluation", "cap", 50.0, "evaluation.cap is 50.0, was 80.0"),
        ("evaluation", "flip", False, "evaluation.flip is False, was True"),
        ("network", "max_depth", 40.0, "network.max_depth is 40.0, was 80.0"),
    ],
)
def test_inputs_changed_depth_keys_refused(run, section, key, value, told):
    """A changed key that affects how depth is read or scored is refused."""
    started = run.record()
    run.node[section][key] = value
    assert refusals(run, started) == [told]


@pytest.mark.parametrize(
    ("section", "node"),
    [
        ("data", {"workers": 3, "augment": {"crop": [4, 8]}, "on_error": "skip"}),
        ("data", {"unmatched": "allow"}),
        ("evaluation", {"interval": 3, "batch_size": 2, "save_best": "rmse"}),
        ("evaluation", {"flip": True, "cap": 80.0}),  # as it is where nothing is said
        ("optimizer", {"lr": 0.1}),
        ("losses", {"silog": {}}),
    ],
)
def test_inputs_other_changed_keys_not_refused(run, section, node):
    """Changed keys that affect neither how depth is read nor scored are listed, not refused."""
    started = run.record()
    run.node.setdefault(section, {}).update(node)
    verdict = changes(run, started)
    assert verdict.refused == []
    assert all(key.startswith(section) for key in verdict.keys)
    assert ("data.workers" in verdict.keys) is False


def test_inputs_changed_val_fraction_refused(run):
    """Another val_fraction picks new validation frames and is refused."""
    started = run.record()
    run.node["data"]["val_fraction"] = 0.5
    assert refusals(run, started)[0].startswith("3 of 8 train frames were removed (")


def test_inputs_noted_file_and_engine_changes(run):
    """Changed recipe files, engine config and initial weights are noted and not refused."""
    (run.folder / "start.pth").write_bytes(b"1")
    run.node["load"] = {"checkpoint": str(run.folder / "start.pth")}
    started = run.record()
    (run.folder / "start.pth").write_bytes(b"2")
    (run.folder / "base.yaml").write_text("# a word\ntrain: {epochs: 2, batch_size: 2}\n")
    run.engine = {
        "bf16": {"enabled": True},
        "train_micro_batch_size_per_gpu": 1,
    }  # the latter follows the ranks
    verdict = changes(run, started)
    assert verdict.keys == verdict.refused == []
    assert verdict.only_logged == [
        f"load.checkpoint: {run.folder / 'start.pth'} has another content",
        "Engine config: bf16.enabled is True, was False",
        f"Recipe files that have changed since the start, or are gone: {run.folder / 'base.yaml'}; "
        "bin/resume keeps to "
        "config.yaml in the work dir, bin/train.py --resume-from takes them as they are now",
    ]
    (run.folder / "start.pth").unlink()
    (run.folder / "base.yaml").write_text("_base_: gone.yaml\n")
    datasets, engine = {"train": [1, 2], "val": None}, EngineConfig({}, 1, 1)
    now = inputs.collect(
        Recipe(started["recipe"]), run.folder / "recipe.yaml", engine, datasets, 1, started
    )
    told = input_changes.compare(started, now).only_logged
    assert any(
        text.endswith("start.pth, which was read at the start, is missing or no longer used")
        for text in told
    )
    assert any(f"or are gone: {run.folder / 'base.yaml'}" in text for text in told)


def test_inputs_external_code_changes(run, monkeypatch):
    """Changed code or files of an external teacher are refused; a loss's code is noted."""
    package = run.folder / "own_inputs"
    package.mkdir()
    for name in ("teacher", "loss"):
        (package / f"{name}.py").write_text("build = dict\n")
    (package / "weights.bin").write_bytes(b"1")
    monkeypatch.syspath_prepend(run.folder)
    import importlib

    for name in ("teacher", "loss"):
        importlib.import_module(f"own_inputs.{name}")
    run.node["teacher"] = {"name": "own_inputs.teacher", "weights": str(package / "weights.bin")}
    run.node["losses"] = {"own": {"name": "own_inputs.loss"}}
    started = run.record()
    (package / "loss.py").write_text("build = list\n")
    verdict = changes(run, started)
    assert verdict.refused == []
    assert verdict.only_logged == [
        f"module own_inputs.loss: {package / 'loss.py'} has another content"
    ]
    (package / "weights.bin").write_bytes(b"2")
    assert refusals(run, started) == [
        f"teacher.weights: {package / 'weights.bin'} has another content"
    ]
    (package / "teacher.py").write_text("build = list\n")
    assert f"teacher.name: {package / 'teacher.py'} has another content" in refusals(run, started)


def test_inputs_keep_val_frames_without_validation(run):
    """A resume without validation keeps the recorded frames; starting it later is noted."""
    started = run.record()
    without = run.record(started, validate=False)
    assert without["splits"]["val"] == started["splits"]["val"]
    verdict = input_changes.compare(started, without)
    assert verdict.refused == []
    assert verdict.only_logged == []
    begins = run.record(validate=False)
    assert "val" not in begins["splits"]
    assert input_changes.compare(begins, run.record(begins)).only_logged == [
        "There was no validation at the start; it begins now"
    ]


def test_inputs_data_without_files_compares_counts(run):
    """Data without files is compared by its number of frames."""
    config = EngineConfig({}, 1, 1)
    records = [
        inputs.collect(Recipe(run.recipe()), Path("x"), config, {"train": range(n), "val": None}, 1)
        for n in (3, 4)
    ]
    assert input_changes.compare(*records).refused == ["there are 4 train frames, were 3"]
    assert input_changes.compare(records[0], records[0]).refused == []


def compare_or_refuse(run, started, path=Path("w/checkpoints/iter_3"), accept=False):
    return input_changes.compare_or_refuse(started, run.record(started), path, accept)


def test_judge_refuses_unless_accepted(run):
    """Changes raise one line unless accepted, and a new run is not checked."""
    started = run.record()
    write_frame(run.folder / "data", "zz")
    with pytest.raises(CheckpointError) as caught:
        compare_or_refuse(run, started)
    assert str(caught.value) == (
        "w/checkpoints/iter_3: not as at the start of the run: 1 train frames were added (zz.png); "
        "put that back, or resume with --accept-changes, which restarts the search for the best "
        "weights"
    )
    assert compare_or_refuse(run, started, accept=True).refused == [
        "1 train frames were added (zz.png)"
    ]
    assert compare_or_refuse(run, started, path=None) == (None, [], [])


def test_log_epoch_change_logs_renumbering(tmp_path):
    """A changed epoch length is logged once with the old and new position of the run."""
    log = TextLog()
    log.open(tmp_path, "now")
    was, now = {"iterations_per_epoch": 12}, {"iterations_per_epoch": 23}
    input_changes.log_epoch_change(log, was, now, 24)
    for started, of_now, iteration in ((None, now, 24), (was, now, 0), (now, now, 24)):
        input_changes.log_epoch_change(log, started, of_now, iteration)
    log.after_train(None)
    (row,) = map(json.loads, (tmp_path / "now.log.json").read_text().splitlines())
    assert row == {
        **{"mode": "epochs_renumbered", "iteration": 24, "was": {"epoch": 2, "iter": 12, "of": 12}},
        "now": {"epoch": 2, "iter": 1, "of": 23},
    }
    (line,) = (tmp_path / "now.log").read_text().splitlines()
    assert (
        "Epochs have 23 iterations now, 12 before: iteration 24 was iteration 12 of epoch 2 and "
        "counts as iteration 1 of epoch 2" in line
    )


def test_file_facts_keep_order(tmp_path, monkeypatch):
    """Facts of many files keep the order of the paths, with None for missing ones."""
    paths = [str(tmp_path / str(number)) for number in range(40)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(b"x" * number)
    paths[7], paths[9] = None, str(tmp_path / "gone")
    few = file_fingerprints.map_paths(file_fingerprints.size_and_time, paths)
    monkeypatch.setattr(file_fingerprints, "_FEW", 0)
    assert file_fingerprints.map_paths(file_fingerprints.size_and_time, paths) == few
    assert few[7] is few[9] is None
    assert [fact[0] for fact in few[10:]] == list(range(10, 40))
    assert file_fingerprints.crc(paths[9]) is None
    assert file_fingerprints.crc(paths[3]) == zlib.crc32(b"xxx")


@pytest.mark.parametrize(
    ("was", "is_now", "told"),
    [
        ("keep [8, 12]", "keep [4, 6]", "the working resolution is 4x6, cover, was 8x12, cover"),
        (
            "nothing",
            "half",
            "the working resolution is scaled by 0.5, was the image's own size",
        ),
        ("keep [8, 12]", "cover", None),
    ],
)
def test_inputs_changed_working_resolution_refused(run, was, is_now, told):
    """Another working resolution is refused, and an equivalent spelling of it is not."""
    data = dict(run.node["data"])
    nodes = {
        "nothing": {},
        "half": {"resize": {"scale": 0.5}},
        "cover": {"resize": {"height": 8, "width": 12, "mode": "cover"}},
        "keep [8, 12]": {"augment": {"sizes": "keep_aspect", "crop": [8, 12]}},
        "keep [4, 6]": {"augment": {"sizes": "keep_aspect", "crop": [4, 6]}},
    }
    run.node["data"] = data | nodes[was]
    started = run.record()
    run.node["data"] = data | nodes[is_now]
    assert refusals(run, started) == ([] if told is None else [told])


def test_crc_of_pipe_is_none(tmp_path):
    """The CRC of a pipe or a folder is None, without waiting for data."""
    os.mkfifo(tmp_path / "pipe.png")
    assert file_fingerprints.crc(tmp_path / "pipe.png") is None
    assert file_fingerprints.crc(tmp_path) is None


def test_inputs_file_created_since_start_not_refused(run, monkeypatch):
    """A file that an external teacher created after the start is noted and not refused."""
    (run.folder / "made_since").mkdir()
    (run.folder / "made_since" / "teacher.py").write_text("build = dict\n")
    monkeypatch.syspath_prepend(run.folder)
    run.node["teacher"] = {"name": "made_since.teacher", "cache": str(run.folder / "cache.bin")}
    importlib.import_module("made_since.teacher")
    started = run.record()
    (run.folder / "cache.bin").write_bytes(b"1")
    verdict = changes(run, started)
    assert verdict.refused == []
    assert (
        f"teacher.cache: {run.folder / 'cache.bin'} was not there at the start"
        in verdict.only_logged
    )


def test_inputs_of_several_teachers_are_named(run):
    """Maps of each teacher and of sigma, manifests and weights are recorded and compared."""
    folder = run.folder / "data"
    for name in ("a", "b"):
        shutil.copytree(folder / "maps", folder / name)
        manifest = teacher_maps.make_manifest(80.0, None, {"name": name}, None, False)
        teacher_maps.write_manifest(folder / name, manifest | {teacher_maps.SIGMA_SCALE: 80.0})
        shutil.copytree(folder / "maps", folder / name / teacher_maps.SIGMA)
    weights = run.folder / "t.pth"
    weights.write_bytes(b"1")
    run.node["teachers"] = [
        {"maps": "a", "weight": 2.0},
        {"maps": "b"},
        {"network": {"encoder": {}, "decoder": {}, "head": {}}, "checkpoint": str(weights)},
    ]
    started = run.record()
    kinds = ["teacher map", "teacher map 1", "sigma map", "sigma map 1"]
    assert list(started["splits"]["train"]["files"])[2:] == kinds
    assert all(all(started["splits"]["train"]["files"][kind]) for kind in kinds)
    named = ["teachers[0].maps", "teachers[1].maps", "teachers[2].checkpoint"]
    assert [name for name in started["files"] if name.startswith("teachers")] == sorted(
        named, key=["teachers[2].checkpoint", *named[:2]].index
    )
    inputs.write(run.folder, started)
    assert inputs.read(run.folder) == started
    assert refusals(run, started) == []
    # A moved folder of the same maps is only told, a changed weight or map is refused.
    (folder / "b").rename(folder / "c")
    weights.write_bytes(b"2")
    run.node["teachers"][1] = {"maps": "c"}
    run.node["teachers"][0]["weight"] = 3.0
    name = started["splits"]["train"]["names"][0]
    for place in ("c", "c/sigma"):
        write_png(folder / place / name, np.full((8, 12), 1, np.uint16))
    found = refusals(run, started)
    assert [line.partition(" frames")[0] for line in found] == [
        "the teacher map 1 of 1 train",
        "the sigma map 1 of 1 train",
        f"teachers[2].checkpoint: {weights} has another content",
        "teachers[0].weight is 3.0, was 2.0",
    ]
    del run.node["teachers"][1]
    assert any(line.startswith("the sigma map 1 of 8 train") for line in refusals(run, started))


def test_inputs_calibration_of_sigma_refused(run):
    """A changed calibration of a teacher's sigma is another teacher, and refused by name."""
    path = run.folder / "sigma.json"
    path.write_text("1")
    network = {"encoder": {}, "decoder": {}, "head": {}}
    sigma = {"from": "own", "calibration": str(path)}
    run.node["teacher"] = {"network": network, "checkpoint": str(path), "sigma": sigma}
    started = run.record()
    path.write_text("2")
    assert f"teacher.sigma.calibration: {path} has another content" in refusals(run, started)


def test_inputs_of_a_large_split_are_sampled(run, monkeypatch):
    """A large split is recorded by a digest of all names and the files of some frames."""
    monkeypatch.setattr(inputs, "LARGE_DATA_SET", 5)
    monkeypatch.setattr(inputs, "TEXTS_AT_ONCE", 5)
    monkeypatch.setattr(inputs, "_SAMPLED", 3)
    started = run.record()
    train = started["splits"]["train"]
    assert train.keys() == {"count", "source", "digest", "sample"}
    assert train["count"] == 8
    assert len(train["sample"]["names"]) == 3
    assert changes(run, started) == ([], [], [])
    inputs.write(run.folder, started)
    assert inputs.read(run.folder) == started
    assert inputs.held_out(started, Recipe(run.recipe())) == started["splits"]["val"].get("names")
    (line,) = inputs.left_out([sets_of(run)["train"], None])
    assert line.startswith("Of 8 frames a resume compares all names and 3 frames' files with the")
    # One of the three has another content.
    image = run.folder / "data" / "pictures" / train["sample"]["names"][1]
    content = image.read_bytes()
    image.write_bytes(content[:-1] + b"x")
    (line,) = refusals(run, started)
    assert line == (
        f"the image of 1 train frames of a sample was changed, added or removed ({image.name})"
    ) or line.endswith(f"was changed, added or removed ({train['sample']['names'][1]})")
    image.write_bytes(content)
    # Another frame has another name.
    other = json.loads(json.dumps(started))
    other["splits"]["train"]["digest"] = "0"
    assert refusals(run, other) == ["the names of the train frames, or their order, have changed"]
    other["splits"]["train"]["count"] = 9
    assert refusals(run, other) == ["there are 8 train frames, were 9"]
    other["splits"]["train"]["digest"] = 3
    inputs.write(run.folder, other)
    with pytest.raises(CheckpointError, match=r"splits\.train is wrong"):
        inputs.read(run.folder)


def test_inputs_of_shards_tell_folders_apart(tmp_path):
    """Shards of one name in two folders are compared each with itself."""
    for folder in "ab":
        tar_shards.write(tmp_path / folder / "0.tar", tar_shards.frame(7, folder))
    with (tmp_path / "a" / "0.tar").open("ab") as file:
        file.write(bytes(10240))
    frames = tar_shards.frames(tmp_path, shards="*/*.tar")
    record = inputs.fingerprint_splits({"train": frames})["train"]
    assert record["shards"]["names"] == ["a/0.tar", "b/0.tar"]
    first = inputs._split(frames, None)
    assert input_changes._split_changes("train", first, first) == ([], [])


def test_inputs_of_shards_are_their_files(tmp_path):
    """Shards are recorded as files, and a changed one is named."""
    frames = tar_shards.frames(tar_shards.make(tmp_path), val_shards="s2.tar")
    record = inputs._split(frames, None)
    assert record["count"] == 7
    assert record["shards"]["names"] == ["s0.tar", "s1.tar"]
    assert inputs._is_split(json.loads(json.dumps(record)))
    assert inputs.left_out([frames]) == []
    size, content, time = record["shards"]["files"]["shard"][1]
    assert (size, content) == ((tmp_path / "s1.tar").stat().st_size, None)
    other = json.loads(json.dumps(record))
    other["shards"]["files"]["shard"][1][0] += 512
    refused, told = input_changes._split_changes("train", other, record)
    assert refused == ["the shard of 1 train shards was changed, added or removed (s1.tar)"]
    assert told == []
    other["shards"]["files"]["shard"][1] = [size, None, time + 1]
    refused, told = input_changes._split_changes("train", other, record)
    assert refused == []
    assert told[0].startswith("1 files of the train shards have another modification time")
    first = inputs.fingerprint_splits({"train": frames})
    again = tar_shards.frames(tmp_path, val_shards="s2.tar")
    assert first == inputs.fingerprint_splits({"train": again})
    assert "source" not in first["train"]["shards"]
