"""bin/calibrate.py on rendered scenes: planted distributions, its files, and what it refuses."""

import json
import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from support import fake_data, recipes
from support.frames import kitti_frames
from torch import nn

import tiekd
from tiekd.config.recipe import load_recipe
from tiekd.data import trained_on
from tiekd.data.build import build_dataset
from tiekd.data.datasets.scenes import FIRST_HELD_OUT_INDEX, render, write_kitti_layout
from tiekd.data.frame_table import Texts
from tiekd.data.resize import OWN_SIZE
from tiekd.data.trained_on import Overlap
from tiekd.errors import CheckpointError, DataError, LaunchError, RecipeError, UserError
from tiekd.models.build import build_network
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.models.load import Trained
from tiekd.models.network import Network
from tiekd.tools import calibrate
from tiekd.training.canonical import require_focals
from tiekd.training.settings import Recipe
from tiekd.workdir import checkpoints, manifest, weights_file, workdir
from tiekd.workdir.launch_record import LaunchRecord

SIZE = (48, 128)
NUM_VAL = 6
NUM_BINS = 161
# The planted network states a variance of 1 / TEMPERATURE of that of its errors.
TEMPERATURE, SIGMA_M = 4.0, 2.0


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "kitti"
    write_kitti_layout(root, 0, *SIZE, 2, NUM_VAL)
    return root


@pytest.fixture
def run(root, tmp_path, monkeypatch) -> Path:
    """A finished run's folder: recipe, launch record and best weights."""
    monkeypatch.chdir(tmp_path)
    work_dir = tmp_path / "run"
    (work_dir / "checkpoints").mkdir(parents=True)
    write_run(work_dir, root, recipes.STUDENT)
    yield work_dir
    lock = workdir._locks.pop(work_dir, None)
    if lock is not None:
        lock.close()


def write_run(work_dir: Path, root: Path, network: dict, **changes) -> None:
    data = {"name": "scenes", "root": str(root), "height": SIZE[0], "width": SIZE[1]}
    node = {
        "network": network,
        "data": {**data, "num_train": 2, "num_val": NUM_VAL, "workers": 0},
        "train": {"iterations": 1},
        "evaluation": {"crop": "none"},
        **changes,
    }
    (work_dir / "config.yaml").write_text(yaml.safe_dump(node))
    record = LaunchRecord("r.yaml", "python", 1, 1, None, 29500, str(work_dir.parent))
    (work_dir / "launch.json").write_text(json.dumps(asdict(record)))
    torch.manual_seed(0)
    student = build_network(network)
    if isinstance(student.head, Dpm):
        # A wide distribution around 12 m, whatever the image: its likelihood has a maximum.
        edges = student.head.edges * 80 / student.head.edges[-1]
        with torch.no_grad():
            student.head.bias.copy_(-((edges[1:] + edges[:-1]) / 2 - 12).abs() / 4)
    facts = {"metrics": {"abs_rel": 0.1}, "resize": OWN_SIZE.node(), "teachers": []}
    weights_file.write_weights(
        work_dir / "best_abs_rel.pth", student.state_dict(), network, 7, **facts
    )


def arguments(work_dir: Path, **changes) -> Namespace:
    return Namespace(
        **{"work_dir": work_dir, "checkpoint": None, "out": None, "device": "cpu"}
        | {"on_trained": False, "overrides": [], "data_set": None}
        | changes
    )


class _Planted(nn.Module):
    """Gives the logits of overconfident Gaussians around rendered depth plus noise."""

    def __init__(self):
        super().__init__()
        self.number = 0
        self.scenes = {}
        for index in range(FIRST_HELD_OUT_INDEX, FIRST_HELD_OUT_INDEX + NUM_VAL):
            scene = render(0, index, *SIZE)
            self.scenes[int(scene.image.sum())] = torch.from_numpy(scene.depth).float()

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        levels = (image * std.view(3, 1, 1) + mean.view(3, 1, 1)) * 255
        depth = self.scenes[int(levels.round().long().sum())]
        draw = torch.Generator().manual_seed(int(depth.sum()))
        noisy = depth + SIGMA_M * torch.randn(SIZE, generator=draw)
        centres = torch.linspace(0.5, 99.5, NUM_BINS).view(1, -1, 1, 1)
        variance = SIGMA_M**2 / TEMPERATURE
        return [-(noisy - centres).square() / (2 * variance)]


class _Through(nn.Module):
    def forward(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        return features[0]


@pytest.fixture
def planted(monkeypatch):
    width = 99 / (NUM_BINS - 1)
    head = Dpm(NUM_BINS, 0.5 - width / 2, 99.5 + width / 2, options=DpmOptions(NUM_BINS))
    with torch.no_grad():
        head.weight.copy_(torch.eye(NUM_BINS)[:, :, None, None])
    network = Network(_Planted(), _Through(), head, 0.001, 100.0)
    nn.Module.register_parameter(network, "unused", nn.Parameter(torch.zeros(1)))
    monkeypatch.setattr(
        calibrate.load, "load_network", lambda *_: Trained(network, Path("w"), OWN_SIZE)
    )


@pytest.mark.usefixtures("planted")
def test_calibrate_finds_planted_temperature_on_scenes(run, capsys):
    """Overconfident planted distributions get their temperature, and all errors fall."""
    calibrate.run(arguments(run))
    found = json.loads((run / "confidence.json").read_text())
    assert found["temperature"] == pytest.approx(TEMPERATURE, rel=0.1)
    before, after = found["before"], found["after"]
    assert after["calibration_error"] < before["calibration_error"] / 2
    assert after["sigma_error"] < before["sigma_error"] / 3
    assert after["nll"] < before["nll"] - 0.2
    assert after["within_1_sigma"] == pytest.approx(0.683, abs=0.08)
    assert after["rms_error_m"] == before["rms_error_m"]
    assert (found["against"], found["same_sequence"]) == ("ground truth", True)
    assert found["fitted"]["frames"] + found["reported"]["frames"] == NUM_VAL - 1
    told = capsys.readouterr().out
    assert "Remark: the two halves: same sequence, optimistic" in told
    assert f"T = {found['temperature']:g}" in told


def test_calibrate_ignores_flip(run):
    """`evaluation.flip` changes no figure, since no prediction flips."""
    texts = []
    for flip in ("true", "false"):
        calibrate.run(arguments(run, overrides=[f"evaluation.flip={flip}"]))
        texts.append((run / "confidence.json").read_bytes())
    assert texts[0] == texts[1]


def test_calibrate_changes_one_entry_and_repeats_its_bytes(run):
    """Weights keep all else bit for bit, their time too; depth stays; a rerun changes no byte."""
    weights = run / "best_abs_rel.pth"
    os.utime(weights, ns=(10**18, 10**18))
    before = torch.load(weights, weights_only=True)
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    depth = tiekd.load_student(weights)(image)
    calibrate.run(arguments(run))
    written = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert {"confidence.json", "confidence.png", weights.name} <= written.keys()
    after = torch.load(weights, weights_only=True)
    record = after.pop("confidence")
    assert list(after) == list(before)
    tensors = after.pop("state_dict"), before.pop("state_dict")
    assert after == before
    assert list(tensors[0]) == list(tensors[1])
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[1])
    assert weights.stat().st_mtime_ns == 10**18
    student = tiekd.load_student(weights)
    assert record == {"temperature": student.temperature, "against": "ground truth"}
    assert student.temperature == json.loads(written["confidence.json"])["temperature"] != 1
    assert torch.equal(student(image, confidence=True).depth, depth)
    calibrate.run(arguments(run))
    assert all((run / name).read_bytes() == written[name] for name in written if name != ".lock")


def test_calibrate_of_a_canonical_camera_is_in_metres(run, root):
    """A network of twice the focal length and twice the bins has the figures of the plain one."""
    focal = float((root / "kitti_eigen_test.txt").read_text().split()[2])
    found = []
    for canonical in ({}, {"canonical_focal": 2 * focal, "canonical_factors": [2.0, 2.0]}):
        head = recipes.STUDENT["head"] | {"sigma": 4.0}
        write_run(run, root, {**recipes.STUDENT, "head": head, **canonical})
        calibrate.run(arguments(run))
        found.append(json.loads((run / "confidence.json").read_text()))
    plain, own = found
    assert own["temperature"] == pytest.approx(plain["temperature"], rel=1e-3)
    for name in ("nll", "calibration_error", "mean_sigma_m", "rms_error_m", "within_1_sigma"):
        assert own["after"][name] == pytest.approx(plain["after"][name], rel=0.01), name


def test_calibrate_keeps_fewer_logits_of_many_frames(run, monkeypatch):
    """All logits together have a bound: with more frames or bins, fewer pixels of each count."""
    monkeypatch.setattr(calibrate.calibration_pixels, "MOST_LOGITS", 34 * 2 * 60)
    calibrate.run(arguments(run))
    found = json.loads((run / "confidence.json").read_text())
    assert found["fitted"] == {"frames": 2, "sequences": 1, "pixels": 2 * 60}
    assert found["reported"]["pixels"] > 3 * 60


def test_calibrate_interrupted_leaves_whole_files(run, monkeypatch):
    """If writing the weights ends early, the old ones stay whole and nothing partial is left."""
    weights = run / "best_abs_rel.pth"
    before, names = weights.read_bytes(), {path.name for path in run.iterdir()}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights_file.os, "utime", interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate.run(arguments(run))
    assert weights.read_bytes() == before
    left = {path.name for path in run.iterdir()} - names
    assert left == {"confidence.json", "confidence.png", ".lock"}


def test_calibrate_leaves_checkpoints_alone(run, tmp_path):
    """Weights in a checkpoint aren't changed, so that it still resumes; --out takes them."""
    checkpoint = run / "checkpoints/iter_7"
    checkpoint.mkdir()
    (run / "best_abs_rel.pth").rename(checkpoint / checkpoints.STUDENT)
    files = manifest.Files()
    files.save(json.dumps({"iteration": 7}).encode(), checkpoint / checkpoints.STATE)
    student = checkpoint / checkpoints.STUDENT
    files.written[student.name] = [student.stat().st_size, manifest.digest(student)]
    manifest.write(checkpoint, files.written)
    for given in (None, checkpoint, student):
        with pytest.raises(CheckpointError, match="whose files may not change.*give --out FILE"):
            calibrate.run(arguments(run, checkpoint=given))
    with pytest.raises(LaunchError, match="--out .*: in a checkpoint"):
        calibrate.run(arguments(run, out=checkpoint / "other.pth"))
    out = tmp_path / "calibrated.pth"
    calibrate.run(arguments(run, out=out))
    assert checkpoints.find(run) == (checkpoint, [])
    assert tiekd.load_student(out).calibration is not None
    assert tiekd.load_student(run).calibration is None


def test_calibrate_against_teacher_says_so(run, root, tmp_path):
    """With `evaluation.against: teacher` the reference is its dense depth, and is named so."""
    teacher = build_network(recipes.TEACHER)
    with torch.no_grad():  # a teacher that says about 20 m, whatever the image
        teacher.head.conv.weight.zero_()
        teacher.head.conv.bias.fill_(-1.1)
    state = teacher.state_dict()
    weights_file.write_weights(tmp_path / "teacher.pth", state, recipes.TEACHER, 1)
    node = {"network": recipes.TEACHER, "checkpoint": str(tmp_path / "teacher.pth")}
    write_run(run, root, recipes.STUDENT, teacher=node)
    calibrate.run(arguments(run, overrides=["evaluation.against=teacher"]))
    found = json.loads((run / "confidence.json").read_text())
    assert found["reported"]["pixels"] == 1000 * found["reported"]["frames"]
    assert found["reference"] == f"the network of {tmp_path / 'teacher.pth'}"
    assert found["against"] == "the teacher"
    assert "agreement with the teacher, not accuracy" in found["remarks"]
    assert tiekd.load_student(run).calibration.against == "the teacher"


def test_calibrate_halves_are_data_sets(run):
    """Each half has the sizes and cameras of its own frames, which teachers may need."""
    frames = build_dataset(Recipe(load_recipe(run / "config.yaml")).dataset, "val")
    halves, *parts = calibrate._halves(frames)
    for names, part in zip((halves.fitted, halves.reported), parts, strict=True):
        assert {frame.name for frame in part.frames} == names
        assert part.image_sizes() == [SIZE] * len(names)
        assert len(part.frames.cameras.codes) == len(names)


def test_calibrate_takes_one_of_several_data_sets(run, root, capsys):
    """Of several sets the one of --data-set is used, with the figures that it has by itself."""
    write_run(run, root, recipes.STUDENT)
    calibrate.run(arguments(run))
    alone = json.loads((run / "confidence.json").read_text())
    scenes = yaml.safe_load((run / "config.yaml").read_text())["data"]
    sets = [scenes | {"set": "street"}, scenes | {"set": "far", "num_train": 1, "validate": False}]
    write_run(run, root, recipes.STUDENT, data=sets)
    calibrate.run(arguments(run, data_set="street"))
    found = json.loads((run / "confidence.json").read_text())
    assert found.pop("data_set") == "street"
    assert found == alone
    assert "Confidence against ground truth, data set street" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("chosen", "kind", "line"),
    [
        (None, LaunchError, "^--data-set: the recipe has several: street, far; give one of them$"),
        ("x", RecipeError, "^--data-set: got 'x'; the recipe has: street, far$"),
        ("2", RecipeError, "^--data-set: got '2'; the recipe has: street, far$"),
        (
            "far",
            RecipeError,
            "^data.far.validate: false, .*; set data.far.validate=true and data.f",
        ),
    ],
)
def test_calibrate_refuses_wrong_data_set(run, root, chosen, kind, line):
    """No name, an unknown one and a set that isn't validated are one line each."""
    scenes = yaml.safe_load((run / "config.yaml").read_text())["data"]
    sets = [scenes | {"set": "street"}, scenes | {"set": "far", "validate": False}]
    write_run(run, root, recipes.STUDENT, data=sets)
    with pytest.raises(kind, match=line):
        calibrate.run(arguments(run, data_set=chosen))
    assert not (run / "confidence.json").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "line"),
    [
        ({"network": recipes.TEACHER}, RecipeError, r"head \(Sigmoid\) gives no distribution"),
        ({"train": {"iterations": 1, "validate": False}}, RecipeError, "train.validate: false"),
        ({"evaluation": {"crop": "none", "cap": 0.01}}, DataError, "no pixel of 2 frame"),
    ],
)
def test_calibrate_refuses_what_has_nothing_to_calibrate(run, root, changes, kind, line):
    """A sigmoid head, no validation and no valid pixel are one line each; nothing is written."""
    network = changes.get("network", recipes.STUDENT)
    write_run(run, root, **{"network": network, **changes})
    before = (run / "best_abs_rel.pth").read_bytes()
    with pytest.raises(kind, match=line) as error:
        calibrate.run(arguments(run))
    assert "\n" not in str(error.value)
    assert (run / "best_abs_rel.pth").read_bytes() == before
    assert not (run / "confidence.json").exists()


def test_calibrate_refuses_wrong_files_and_frames(run, tmp_path, monkeypatch):
    """No run, no weights, overflowing weights, one frame and trained frames are one line each."""
    with pytest.raises(CheckpointError, match="no run to calibrate here"):
        calibrate.run(arguments(tmp_path))
    content = torch.load(run / "best_abs_rel.pth", weights_only=True)
    for tensor in content["state_dict"].values():
        if tensor.is_floating_point():
            tensor.fill_(1e30)
    torch.save(content, tmp_path / "huge.pth")
    with pytest.raises(DataError, match=r"depth isn't finite \(nan or inf\)"):
        calibrate.run(arguments(run, checkpoint=tmp_path / "huge.pth"))
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match="no weights file of tiekd"):
        calibrate.run(arguments(run, checkpoint=tmp_path / "plain.pth"))
    monkeypatch.setattr(calibrate.trained_on, "overlap_of", lambda *_: Overlap(NUM_VAL, NUM_VAL))
    with pytest.raises(DataError, match="was trained on all 6 validation frames"):
        calibrate.run(arguments(run))
    single = tmp_path / "single"
    write_kitti_layout(single, 0, *SIZE, 2, 1)
    given = [f"data.root={single}", "data.num_val=1"]
    with pytest.raises(DataError, match="1 validation frame, and two or more"):
        calibrate.run(arguments(run, overrides=given))
    (run / "best_abs_rel.pth").unlink()
    with pytest.raises(CheckpointError, match="there are no weights in"):
        calibrate.run(arguments(run))


def test_remarks_count_a_sampled_record(tmp_path, monkeypatch):
    """Of a large training set a part of the frames is recorded, and all are told as trained on."""
    fake_data.make(tmp_path / "kitti", 5)
    frames = kitti_frames(str(tmp_path / "kitti"), "val", 80.0)
    frames.frames = frames.frames.take(np.arange(5).repeat(8))
    frames.frames.names = Texts.of(f"{number}.png" for number in range(40))
    monkeypatch.setattr(trained_on, "MAX_HASHES", 10)
    record = trained_on.trained_on(frames)
    assert record.name_bits
    torch.save(trained_on.as_plain(record), tmp_path / "w.pth")
    monkeypatch.setattr(trained_on, "MAX_HASHES", 100)
    run = SimpleNamespace(weights=tmp_path / "w.pth", section="data")
    with pytest.raises(DataError, match="was trained on all 40 validation frames"):
        calibrate._remarks(run, frames, False)


def test_halves_keep_cameras_and_sizes(tmp_path):
    """A half has the frames' table, from which a teacher's focal lengths and sizes are read."""
    fake_data.make(tmp_path / "kitti", 5)
    frames = kitti_frames(str(tmp_path / "kitti"), "val", 80.0)
    halves, *parts = calibrate._halves(frames)
    assert [list(part.frames.names) for part in parts] == [
        [name for name in frames.frames.names if name in half]
        for half in (halves.fitted, halves.reported)
    ]
    assert all(len(require_focals(part, OWN_SIZE, "val")) == len(part) for part in parts)
