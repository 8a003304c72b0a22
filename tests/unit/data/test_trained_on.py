"""The record of the frames that a network was trained on.

It stands in the network's file, and figures on those frames are reported as such or refused.
"""

import copy
import types

import numpy as np
import pytest
import torch
from PIL import Image
from support import fake_data
from support.frames import kitti_frames
from support.noise_frames import CPU, Slanted
from support.small_student import NETWORK, write_recipe

from tiekd.data import trained_on
from tiekd.data.frame_table import Texts
from tiekd.data.loading.loader import Loading
from tiekd.data.trained_on import Overlap, TrainedOn, as_plain, from_plain, overlap, union
from tiekd.errors import DataError
from tiekd.evaluation import compare, report
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings
from tiekd.models.build import build_network
from tiekd.training.evaluation_hook import Evaluation
from tiekd.workdir import weights_file


def frames(root, count=5, split="val", first=0):
    """Frames of a KITTI folder, from `first` on."""
    if not root.exists():
        fake_data.make(root, 5)
    lines = (root / "kitti_eigen_test.txt").read_text().splitlines()
    (root / "some.txt").write_text("\n".join(lines[first:count]))
    return kitti_frames(str(root), split, 80.0, val_split="some.txt", train_split="some.txt")


def seen_of(record, dataset) -> Overlap:
    return overlap(record, trained_on.hashes_of(dataset))


def test_frame_hash_is_name_and_size(tmp_path):
    """A frame is recognised by its name and size, in whichever folder it lies."""
    record = trained_on.trained_on(frames(tmp_path / "a", 3))
    assert record.hashes.dtype == torch.int64
    assert len(record.hashes) == 3
    assert record.zero_bits == 0
    assert seen_of(record, frames(tmp_path / "a", 5)) == Overlap(3, 5)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = frames(tmp_path / "b", 5)
    assert seen_of(record, moved) == Overlap(3, 5)
    assert seen_of(record, frames(tmp_path / "b", 5, first=3)).seen == 0
    Image.new("RGB", (30, 20)).save(moved.frames[0].image)  # another image of the same name
    assert seen_of(record, moved) == Overlap(2, 5)
    assert overlap(None, [1]) is None
    assert overlap(record, None) is None
    assert trained_on.trained_on([1, 2]) is None  # a data set that says no files


def test_record_in_weights_file_round_trip(tmp_path):
    """The record is plain data in a weights file; a wrong or missing record reads as None."""
    record = trained_on.trained_on(frames(tmp_path / "a"))
    path = tmp_path / "w.pth"
    weights_file.write_weights(path, {"w": torch.ones(2)}, {}, 3, **as_plain(record))
    again = from_plain(torch.load(path, weights_only=True))
    assert torch.equal(again.hashes, record.hashes)
    assert again.zero_bits == 0
    assert torch.equal(trained_on.read(path).hashes, record.hashes)
    weights_file.write_weights(path, {"w": torch.ones(2)}, {}, 3, **as_plain(None))
    assert set(torch.load(path, weights_only=True)) == {"state_dict", "network", "iteration"}
    (tmp_path / "torn.pth").write_bytes(path.read_bytes()[:100])
    for other in (path, tmp_path / "torn.pth", tmp_path / "none.pth", None):
        assert trained_on.read(other) is None
    for node in (
        3,
        {},
        {"hashes": [1], "zero_bits": 0},
        {"hashes": torch.ones(1), "zero_bits": "x"},
    ):
        assert from_plain({"trained_on": node}) is None


def test_union_has_frames_of_both(tmp_path):
    """A union has the frames of both records."""
    first, second = (
        trained_on.trained_on(frames(tmp_path / "a", n, first=k)) for k, n in ((0, 3), (2, 5))
    )
    both = union(first, second)
    assert len(both.hashes) == 5
    assert seen_of(both, frames(tmp_path / "a")).is_whole
    assert union(None, first) is first
    assert union(first, None) is first
    assert union(None, None) is None


def test_large_record_is_thinned_and_estimated(monkeypatch):
    """A large record keeps a sample of the hashes, and its counts are estimates."""
    monkeypatch.setattr(trained_on, "MAX_HASHES", 500)
    hashes = [trained_on._hash(f"{number}.png", 7) for number in range(8000)]
    record = trained_on._thinned(hashes, 0)
    assert 200 < len(record.hashes) <= 500
    assert record.zero_bits >= 4
    found = overlap(record, hashes[:4000] + [trained_on._hash(f"x{n}", 7) for n in range(4000)])
    assert found.estimated
    assert found.seen == pytest.approx(4000, rel=0.2)
    assert not found.is_whole
    assert str(found).startswith("about ")
    assert overlap(record, hashes).is_whole
    merged = union(record, TrainedOn(torch.tensor(sorted(hashes[:300]))))
    assert merged.zero_bits == record.zero_bits
    assert torch.equal(merged.hashes, record.hashes)


def predictor(record):
    return compare.EvaluatedPredictor(lambda image: image[:, :1] + 9, None, record)


def test_evaluation_warns_or_refuses_trained_frames(tmp_path):
    """An evaluation warns of frames that were trained on and is refused if all were."""
    record, val = trained_on.trained_on(frames(tmp_path / "a", 2)), frames(tmp_path / "a", 5)
    networks = {
        "part": predictor(record),
        "unknown": predictor(None),
        "other": predictor(TrainedOn(torch.tensor([1]))),
    }
    seen = compare.overlaps(networks, val)
    assert seen == {"part": Overlap(2, 5), "unknown": None, "other": Overlap(0, 5)}
    compare.refuse_trained_on(seen, networks)
    protocol = EvaluationProtocol(EvaluationSettings(crop="none"), 1e-3, 80.0)
    results = {
        name: compare.evaluate(each, val, protocol, CPU, Loading(workers=0), None)._replace(
            overlap=seen[name]
        )
        for name, each in networks.items()
    }
    said = report.report_texts(results, protocol)[0].splitlines()
    assert said[2:] == ["Warning: part: 2 of 5 frames were trained on"]
    plain = compare.as_json(results, protocol)["networks"]
    assert [plain[name]["frames_trained_on"] for name in networks] == [2, None, 0]
    seen = compare.overlaps(networks, frames(tmp_path / "a", 2))
    with pytest.raises(
        DataError, match="^part: None was trained on all 2 frames .*, or say --on-trained$"
    ):
        compare.refuse_trained_on(seen, networks)


def test_load_networks_reads_record_of_weights_file(tmp_path):
    """Networks in an evaluation have the record of their weights file."""
    record = trained_on.trained_on(frames(tmp_path / "a", 2))
    state = build_network(NETWORK).state_dict()
    weights_file.write_weights(tmp_path / "w.pth", state, NETWORK, 0, **as_plain(record))
    (found,) = compare.load_networks(
        [(write_recipe(tmp_path), str(tmp_path / "w.pth"))], [], True, CPU
    ).values()
    assert torch.equal(found.trained_on.hashes, record.hashes)


def test_validation_warns_of_trained_frames(tmp_path):
    """A run's validation and best checkpoint say how many frames were trained on."""
    record, told = trained_on.trained_on(frames(tmp_path / "a", 2)), []
    val = frames(tmp_path / "a", 5)
    hook = Evaluation(
        EvaluationSettings(crop="none", flip=False), val, Slanted(), CPU, Loading(), told.append
    )
    state = types.SimpleNamespace(
        engine=None,
        average=None,
        trained_on=record,
        training_record=as_plain(record),
        metrics={"abs_rel": 0.5},
        iteration=3,
    )
    state.work_dir, state.recipe = tmp_path, {"network": NETWORK}
    hook.before_train(state)
    best = hook._save_best("abs_rel", {"w": torch.ones(2)}, state)
    assert told[0].startswith("Warning: validation: 2 of 5 frames were trained on, so")
    assert best.endswith("saved as best_abs_rel.pth (2 of 5 frames were trained on)")
    assert len(trained_on.read(tmp_path / "best_abs_rel.pth").hashes) == 2


def test_large_training_set_is_represented_by_some_names(tmp_path, monkeypatch):
    """Of a large training set only frames with certain names are looked at and counted."""
    whole = frames(tmp_path / "a")
    table = whole.frames.take(np.arange(5).repeat(400))
    table.names = Texts.of(f"{number}.png" for number in range(2000))
    whole.frames = table
    exact = trained_on.trained_on(whole)
    assert exact.name_bits == 0
    monkeypatch.setattr(trained_on, "MAX_HASHES", 300)
    looked_at = []
    size_of = trained_on._size_of
    monkeypatch.setattr(
        trained_on, "_size_of", lambda image: looked_at.append(image) or size_of(image)
    )
    record = trained_on.trained_on(whole)
    assert record.name_bits == 3
    assert len(record.hashes) == len(looked_at)
    assert 150 < len(record.hashes) < 400
    # Half of an evaluation's frames were trained on. A set that is small is looked up in full.
    other = copy.copy(whole)
    other.frames = table.take(np.arange(1500, 2000).repeat(2))
    other.frames.names = Texts.of(f"{number}.png" for number in range(1500, 2500))
    found = trained_on.overlap_of(record, other)
    assert found.estimated
    assert found.frames == 1000
    assert found.seen == pytest.approx(500, rel=0.25)
    # The record survives a weights file, and a union with a smaller one keeps its frames.
    again = from_plain(as_plain(record))
    assert torch.equal(again.hashes, record.hashes)
    assert again[1:] == record[1:] == (0, 3)
    small = TrainedOn(exact.hashes[:50])
    both = union(small, record)
    assert both.name_bits == 3
    assert trained_on.overlap_of(both, whole).is_whole
    assert trained_on.overlap_of(None, whole) is None
    assert trained_on.overlap_of(record, [1]) is None
