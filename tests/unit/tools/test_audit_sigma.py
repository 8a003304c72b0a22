"""The measurement of a teacher's sources of sigma: planted errors, files, and what is refused."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiekd.config.teacher_node import TeacherNode
from tiekd.data import image_io, teacher_maps
from tiekd.data.build import build_dataset
from tiekd.data.datasets.scenes import render, write_kitti_layout
from tiekd.data.target import Target
from tiekd.errors import DataError, TeacherError
from tiekd.evaluation.teacher_audit.observe import Observer
from tiekd.teachers.outputs.sigma import options_of
from tiekd.teaching import build_teachers
from tiekd.tools import audit_sigma
from tiekd.tools.cache_teacher import TeacherSettings
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")
SIZE = (48, 128)
NUM_FRAMES = 8
TEACHER = {"name": "moge", "model": "nowhere", "sigma": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("audit") / "kitti"
    write_kitti_layout(root, 0, *SIZE, NUM_FRAMES, 1)
    return root


class _Planted:
    """Gives the depth of rendered scenes with errors of a known sigma, and states a sigma."""

    description = {"digest": "ab12"}

    def __init__(self, is_blind: bool):
        self.draw = np.random.default_rng(0)
        self.is_blind = is_blind

    def __call__(self, batch):
        scene = render(0, int(Path(batch.names[0]).stem), *SIZE).depth
        true = 0.05 * scene * np.exp(self.draw.uniform(-1.2, 1.2, SIZE))
        depth = np.where(scene > 0, scene + true * self.draw.standard_normal(SIZE), 79)
        # A sigma that is half of the true one needs a factor of 2.
        stated = self.draw.uniform(1, 2, SIZE) if self.is_blind else true / 2
        depth, sigma = (torch.from_numpy(each).float()[None, None] for each in (depth, stated))
        return Target(depth.clamp(min=0.01), sigma)


def _plant(monkeypatch) -> list[dict]:
    """Lets flip order the errors, own be blind and between be missing; returns the nodes."""
    nodes = []

    def build(node, *_):
        nodes.append(node)
        if node["sigma"] == {"from": "between"}:
            raise TeacherError("teacher.sigma.from: got between, which this one lacks")
        return _Planted(is_blind=node["sigma"] == {"from": "own"})

    monkeypatch.setattr(audit_sigma, "build_teacher", build)
    return nodes


def _recipe(root: Path, **keys) -> Recipe:
    data = {"name": "kitti", "root": str(root), "workers": 0}
    network = {"min_depth": 0.001, "max_depth": 80.0}
    return Recipe({"network": network, "data": data, "teacher": TEACHER} | keys)


def _measure(root: Path, **keys) -> audit_sigma.Sigmas:
    recipe = _recipe(root, **keys)
    args = Namespace(recipe="r.yaml", checkpoint=None, overrides=[], frames=NUM_FRAMES)
    frames = build_dataset(_recipe(root).dataset, "train", held_out=())
    return audit_sigma.measure(recipe, args, Observer(None, frames, 80.0, CPU))


def test_measure_sources(root, tmp_path, monkeypatch):
    """A source that orders errors gets a calibration that a recipe can use, a blind one doesn't."""
    nodes = _plant(monkeypatch)
    found = _measure(root)
    # The recipe's own sigma is replaced by each source; only flip turns flip averaging on.
    assert [(node["sigma"]["from"], node.get("flip")) for node in nodes] == [
        ("flip", True),
        ("between", None),
        ("own", None),
    ]
    assert list(found.measured) == ["flip", "own"]
    assert found.missing == {"between": "got between, which this one lacks"}
    assert found.measured["flip"].correlation.low > 0.5
    assert not found.calibrations["own"].orders_errors
    audit_sigma.write(found, tmp_path)
    node = {"from": "flip", "calibration": str(tmp_path / "sigma.json")}
    options = options_of(node)
    options.check_teacher("ab12", flip=True)
    assert [factor for _, factor in options.factors] == pytest.approx(
        [2] * len(options.factors), rel=0.1
    )
    with pytest.raises(TeacherError, match="own doesn't order this teacher's errors better"):
        options_of(node | {"from": "own"})
    with Image.open(tmp_path / "sigma.png") as image:
        assert image.size == (1200, 400)
    told = audit_sigma.as_text(found, tmp_path)
    assert "own doesn't order the errors better than chance, and isn't offered" in told
    assert "between: got between, which this one lacks" in told
    assert f"Set teacher.sigma to {{from: flip, calibration: {tmp_path / 'sigma.json'}}}" in told
    assert "% of the errors are within sigma" in told


def test_measure_needs_ground_truth(root, monkeypatch):
    """Frames without ground truth can't measure a sigma, which is said in one line."""
    _plant(monkeypatch)
    monkeypatch.setattr(audit_sigma.sigmas, "observe", lambda *_: [])
    with pytest.raises(DataError, match="--sigma: only 0 frames have ground truth, sigma needs 8"):
        _measure(root)


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"maps": "folder"}, "--sigma: not for cached maps"),
        ({"name": "mine.teacher"}, "--sigma: mine.teacher is from outside the project"),
        ({"name": "stereo"}, "--sigma: teacher is a stereo teacher, whose sigma follows from its"),
    ],
)
def test_measure_refuses_teachers(root, teacher, told):
    """Cached maps, modules from outside and a second camera are refused in one line."""
    with pytest.raises(TeacherError, match=told):
        _measure(root, teacher=teacher)


def test_measure_passes_other_errors_on(root, monkeypatch):
    """An error that isn't about the source ends the measurement."""

    def build(*_):
        raise TeacherError("teacher.model: no folder")

    monkeypatch.setattr(audit_sigma, "build_teacher", build)
    with pytest.raises(TeacherError, match="no folder"):
        _measure(root)


def test_without_sigma():
    """The audit itself takes the teacher without its sigma; a module keeps its own keys."""
    assert "sigma" not in audit_sigma.without_sigma(TeacherSettings(TeacherNode(TEACHER), False))
    mine = TeacherNode({"name": "mine.teacher", "sigma": 2})
    assert audit_sigma.without_sigma(TeacherSettings(mine, False))["sigma"] == 2


def test_measure_mean_of_maps(root, tmp_path):
    """How far cached maps differ is measured against the errors of their mean."""
    frames = build_dataset(_recipe(root).dataset, "train", held_out=())
    draw, entries = np.random.default_rng(0), []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        for index in range(NUM_FRAMES):
            scene = render(0, index, *SIZE).depth
            # The left half is predicted worse, by both independently.
            sigma = np.where(np.arange(SIZE[1]) < SIZE[1] // 2, 0.3, 0.05)
            depth = np.where(scene > 0, scene, 70) * np.exp(sigma * draw.standard_normal(SIZE))
            encoded = image_io.encode_teacher_map(depth.astype(np.float32).clip(0.1, 79), 80.0)
            (folder / frames.map_name(index)).write_bytes(encoded)
        manifest = teacher_maps.make_manifest(80.0, None, {"name": "moge"}, f"digest {name}", False)
        teacher_maps.write_manifest(folder, manifest)
        entries.append({"maps": str(folder)})
    mean = {"name": "average", "teachers": entries}
    recipe = _recipe(root, teacher=mean)
    found = audit_sigma.measure_mean(recipe, Namespace(frames=NUM_FRAMES), CPU)
    assert found.measured["between"].at_depth.low > 0.2
    audit_sigma.write(found, tmp_path)
    sigma = {"from": "between", "calibration": str(tmp_path / "sigma.json")}
    teacher = build_teachers({"teacher": mean | {"sigma": sigma}}, CPU, 80.0)
    assert teacher.sigma.calibration.orders_errors
    assert found.calibrations["between"].teacher is not None
    # A relative folder of maps is one below data.root, and its maps are the same.
    below = [{"maps": Path(entry["maps"]).name} for entry in entries]
    node = mean | {"sigma": sigma, "teachers": below}
    build_teachers({"teacher": node, "data": {"root": str(tmp_path)}}, CPU, 80.0)
    with pytest.raises(TeacherError, match="it is of another teacher"):
        build_teachers({"teacher": node, "data": {"root": str(root)}}, CPU, 80.0)
    # Other weights are another mean.
    entries[0]["weight"] = 2.0
    with pytest.raises(TeacherError, match="it is of another teacher"):
        build_teachers({"teacher": mean | {"sigma": sigma}}, CPU, 80.0)


def test_measure_mean_needs_maps(root):
    """A network in the mean is refused in one line."""
    recipe = _recipe(root, teacher={"name": "average", "teachers": [TEACHER]})
    told = r"--sigma: teacher.teachers\[0\] has no cached maps; make them with bin/cache_teacher.py"
    with pytest.raises(TeacherError, match=told):
        audit_sigma.measure_mean(recipe, Namespace(frames=NUM_FRAMES), CPU)
