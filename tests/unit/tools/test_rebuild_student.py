"""Rebuilding the released student: weights in fp16, their digest, and the comparison of records."""

import argparse
import json
import os
import signal

import pytest
import torch

from tiekd.config.recipe import load_recipe
from tiekd.distributed import entrypoint
from tiekd.errors import CheckpointError, LaunchError
from tiekd.inference import released
from tiekd.models.build import build_network
from tiekd.tools import rebuild_student
from tiekd.workdir import weights_file, workdir


def record(digest="a", abs_rel=0.1, **changes) -> dict:
    found = {"digest": digest, "validation": {"abs_rel": abs_rel, "silog": 20.0}, "threads": 2}
    return {**found, "machine": {"CPU": "x", "PyTorch": "2"}, **changes}


def test_in_half_keeps_norms_in_full():
    """Weights of convolutions become fp16; those of norms and counters keep their type."""
    tensors = {"w": torch.rand(2, 3, 1, 1), "var": torch.full((4,), 1e-9), "n": torch.tensor(7)}
    found = rebuild_student.in_half(tensors)
    assert {name: each.dtype for name, each in found.items()} == {
        "w": torch.float16,
        "var": torch.float32,
        "n": torch.int64,
    }
    assert torch.equal(found["var"], tensors["var"])
    with pytest.raises(CheckpointError, match="w: has values beyond fp16, up to 70000"):
        rebuild_student.in_half({"w": torch.full((1, 1), 70000.0)})


def test_digest_sees_names_values_and_types():
    """Equal tensors have one digest, in any order; another name, value or dtype has another."""
    tensors = {"a": torch.tensor(3), "b": torch.rand(2, 3).half()}
    digest = rebuild_student.digest_of(tensors)
    assert rebuild_student.digest_of(dict(reversed(tensors.items()))) == digest
    flipped = tensors["b"].clone()
    flipped[0, 0] += 1
    for other in ({"c": tensors["b"]}, {"b": flipped}, {"b": tensors["b"].float()}):
        assert rebuild_student.digest_of({**tensors, **other}) != digest


def test_compared_allows_two_percent_and_names_what_differs():
    """Equal digests are equal; otherwise errors may differ by 2 %, and the machine is named."""
    assert rebuild_student.compared(record(), record(abs_rel=9)) == ("Equal bit for bit: a", True)
    line, equal = rebuild_student.compared(record("b", 0.1015), record())
    assert (line, equal) == (
        "Not equal bit for bit: abs_rel 0.1015, stored 0.1000, silog 20.0000, stored 20.0000",
        True,
    )
    line, equal = rebuild_student.compared(record("b", 0.0975, threads=1), record())
    assert line.endswith("; made with other threads")
    assert not equal
    other = record(machine={"CPU": "y", "PyTorch": "2"})
    assert rebuild_student.compared(record("b"), other)[0].endswith("; made with other CPU")
    line, _ = rebuild_student.compared(record("b", code="1", overrides=["a=1"]), record(code="2"))
    assert line.endswith("; made with other overrides, code")


@pytest.mark.parametrize("key", ["abs_rel", "silog"])
def test_compared_refuses_an_error_that_is_no_number(key):
    """An error of NaN is not within 2 %, whichever it is."""
    made = record("b")
    made["validation"][key] = float("nan")
    assert not rebuild_student.compared(made, record())[1]


def test_student_fits_into_ten_megabytes():
    """The recipe's network takes at most 10 MB as it is stored."""
    with torch.device("meta"):
        network = build_network(load_recipe(released.recipe_file())["network"])
    tensors = {
        name: torch.zeros(each.shape, dtype=each.dtype)
        for name, each in network.state_dict().items()
    }
    stored = rebuild_student.in_half(tensors).values()
    assert (
        sum(each.numel() * each.element_size() for each in stored) < 0.7 * rebuild_student.MAX_BYTES
    )


@pytest.fixture
def rebuild(tmp_path, monkeypatch):
    """Runs the program with a stand-in for the training; returns its exit code."""
    weight = [0.25]

    def train(work_dir, *_):
        work_dir.mkdir(exist_ok=True)
        tensors = {"w": torch.full((2, 2), weight[0]), "b": torch.ones(2)}
        path = work_dir / "best_abs_rel.pth"
        weights_file.write_weights(path, tensors, {"head": {}}, 5, teachers=[])
        lines = [{"mode": "train"}, {"mode": "val", "abs_rel": weight[0], "silog": 3.0}]
        (work_dir / "1.log.json").write_text("\n".join(map(json.dumps, lines)) + "\n")

    def run(**options):
        given = {"threads": 2, "work_dir": tmp_path / "work", "check": False, "overrides": []}
        args = argparse.Namespace(**{**given, "out": tmp_path / "deep" / "s.pth", **options})
        monkeypatch.setattr(rebuild_student, "_parse_arguments", lambda: args)
        return rebuild_student.main()

    monkeypatch.setattr(rebuild_student, "_train", train)
    run.weight = weight
    return run


def test_main_stores_weights_with_their_record(rebuild, tmp_path, capsys):
    """The file keeps all entries of the trained one, and the record has digest and machine."""
    assert rebuild() == 0
    content = torch.load(tmp_path / "deep" / "s.pth", weights_only=True)
    assert content["state_dict"]["w"].dtype == torch.float16
    assert (content["network"], content["iteration"]) == ({"head": {}}, 5)
    made = json.loads((tmp_path / "deep" / "s.json").read_text())
    assert made["digest"] == rebuild_student.digest_of(content["state_dict"])
    assert made["validation"] == {"abs_rel": 0.25, "silog": 3.0}
    assert (made["threads"], made["iterations"]) == (2, 5)
    assert made["bytes"] == (tmp_path / "deep" / "s.pth").stat().st_size
    assert "CPU" in made["machine"]
    assert f"Written: {tmp_path}/deep/s.pth" in capsys.readouterr().out


def test_main_check_compares_and_writes_nothing(rebuild, tmp_path, capsys):
    """--check tells equal weights from others, and changes no file."""
    rebuild()
    before = {path: path.read_bytes() for path in (tmp_path / "deep").iterdir()}
    assert rebuild(check=True) == 0
    assert "Equal bit for bit" in capsys.readouterr().out
    rebuild.weight[0] = 0.5
    assert rebuild(check=True) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "deep").iterdir()} == before


def test_main_check_refuses_what_would_prove_nothing(rebuild, monkeypatch):
    """Without a record, or with the finished training of the stored weights, --check is refused."""
    with pytest.raises(LaunchError, match="--check: .*s.json is no record of stored weights"):
        rebuild(check=True)
    rebuild()
    finished = workdir.Outcome(workdir.FINISHED, 5, 5, None, "now")
    monkeypatch.setattr(rebuild_student.workdir, "read_outcome", lambda folder: finished)
    with pytest.raises(LaunchError, match="--check: .*work holds a finished training"):
        rebuild(check=True)


def test_main_refuses_weights_above_ten_megabytes(rebuild, tmp_path, monkeypatch):
    """A file that is too large for the wheel isn't kept, and replaces none."""
    rebuild()
    before = {path: path.read_bytes() for path in (tmp_path / "deep").iterdir()}
    assert len(before) == 2
    monkeypatch.setattr(rebuild_student, "MAX_BYTES", 100)
    rebuild.weight[0] = 0.5
    with pytest.raises(CheckpointError, match="allowed: 10 MB"):
        rebuild()
    assert {path: path.read_bytes() for path in (tmp_path / "deep").iterdir()} == before


def test_main_refuses_to_resume_what_was_begun_with_something_else(rebuild, tmp_path):
    """The record states what the whole training was made with, so nothing may change in between."""
    rebuild()
    before = {path: path.read_bytes() for path in (tmp_path / "deep").iterdir()}
    for changes, told in (
        ({"threads": 3}, "was begun with other threads; give another folder, or delete it"),
        ({"overrides": ["train.seed=3"]}, "was begun with other overrides"),
    ):
        with pytest.raises(LaunchError, match=told):
            rebuild(**changes)
    # A refused training has learned nothing, and may be begun with other overrides.
    alone = {"machine": {}, "threads": 1, "overrides": ["typo=1"], "code": "c"}
    rebuild_student._claim(tmp_path / "refused", alone)
    rebuild_student._claim(tmp_path / "refused", {**alone, "overrides": []})
    begun = json.loads((tmp_path / "refused" / "rebuild.json").read_text())
    assert begun["overrides"] == []
    # A folder in which bin/train.py has trained, on any number of ranks, has no such record.
    (tmp_path / "work" / "rebuild.json").unlink()
    with pytest.raises(LaunchError, match="work isn't empty, and this program didn't begin"):
        rebuild()
    assert {path: path.read_bytes() for path in (tmp_path / "deep").iterdir()} == before


def test_train_fails_if_its_process_fails(tmp_path, monkeypatch):
    """A training that is refused leaves the outcome of an earlier one, which doesn't count."""
    finished = workdir.Outcome(workdir.FINISHED, 5, 5, None, "now")
    monkeypatch.setattr(rebuild_student.workdir, "read_outcome", lambda folder: finished)
    codes = [0, 2, entrypoint.STOPPED_CODE]
    monkeypatch.setattr(rebuild_student, "run_once", lambda *_: codes.pop(0))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    rebuild_student._train(tmp_path, 1, [])
    with pytest.raises(LaunchError, match="ended with code 2 before its end"):
        rebuild_student._train(tmp_path, 1, [])
    with pytest.raises(entrypoint.Stopped, match="the same command resumes"):
        rebuild_student._train(tmp_path, 1, [])


def test_train_hands_signals_on(tmp_path, monkeypatch):
    """A signal reaches the training, which saves; afterwards signals act as before."""

    def run(_command, _work_dir, received):
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert os.environ["OMP_NUM_THREADS"] == "3"
        return entrypoint.STOPPED_CODE

    monkeypatch.setattr(rebuild_student, "run_once", run)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(entrypoint.Stopped):
        rebuild_student._train(tmp_path, 3, [])
    assert signal.getsignal(signal.SIGTERM) == before
