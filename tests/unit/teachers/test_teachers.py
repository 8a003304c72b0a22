"""The frozen teacher, from our weights or published ones.

It is never trained, and valid where the camera saw something.
"""

import copy
import hashlib
import json
import sys
import types

import pytest
import torch
from support import canonical_student

from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.batch import Batch
from tiekd.data.resize import Resize, network_input
from tiekd.data.target import Target
from tiekd.errors import RecipeError, TeacherError
from tiekd.models.build import build_network
from tiekd.models.weights.state_dicts import to_published
from tiekd.teachers.average import Average
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.mixture import Mixture
from tiekd.teachers.network import FrozenTeacher
from tiekd.teaching import build_teacher, build_teachers, with_teachers_file
from tiekd.training import criterion
from tiekd.workdir.weights_file import write_weights

CPU = torch.device("cpu")
NODE = {
    "encoder": {"name": "resnet", "depth": 18},
    "decoder": {"name": "bts", "width": 128},
    "head": {"name": "sigmoid"},
    "min_depth": 0.001,
    "max_depth": 80.0,
}
STUDENT = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8]},
    "head": {"name": "dpm", "num_bins": 9, "sigma": 5.0},
    "min_depth": 0.001,
    "max_depth": 80.0,
}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return build_network(NODE)


@pytest.fixture(scope="module")
def weights_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "best_abs_rel.pth"
    write_weights(path, trained.state_dict(), NODE, 7)
    return path


def batch():
    torch.manual_seed(1)
    inside = torch.ones(2, 1, 32, 64, dtype=torch.bool)
    inside[0, :, :5], inside[1, :, :, 60:] = False, False
    depth = torch.rand(2, 1, 32, 64) * 70 + 1
    return Batch(
        torch.randn(2, 3, 32, 64),
        depth,
        inside,
        depth / 2,
        torch.eye(3).expand(2, 3, 3),
        ["a", "b"],
    )


def digest(network):
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def refused(node):
    with pytest.raises(TeacherError) as error:
        build_teacher(node, CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_frozen_teacher_is_eval_without_gradients(trained, weights_file):
    """The teacher has the trained weights, is in eval mode and gives depth 0 outside the image."""
    teacher = build_teacher({"network": NODE, "checkpoint": str(weights_file)}, CPU)
    assert isinstance(teacher, FrozenTeacher)
    assert digest(teacher.network) == digest(trained)
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    data = batch()
    depth = teacher(data)
    assert depth.shape == (2, 1, 32, 64)
    assert depth.dtype == torch.float32
    assert not depth.requires_grad
    with torch.no_grad():
        expected = copy.deepcopy(trained).eval()(data.image).depth
    assert torch.equal(depth[data.inside], expected[data.inside])
    assert (depth[data.inside] > 0).all()
    assert (depth[~data.inside] == 0).all()
    assert (~data.inside).any()


def test_frozen_teacher_unchanged_by_training_steps(weights_file):
    """Student training steps leave the teacher's state dict bit-identical, without gradients."""
    teacher = build_teacher({"network": NODE, "checkpoint": str(weights_file)}, CPU)
    before = digest(teacher.network)
    student = build_network(STUDENT).train()
    loss = criterion.build({"dpm": {}, "silog": {}}, True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    own = digest(student)
    for _ in range(2):
        data = batch()
        depth = teacher(data)
        optimizer.zero_grad()
        loss(student(data.image, depth), data, depth)["loss"].backward()
        optimizer.step()
    assert digest(teacher.network) == before
    assert digest(student) != own
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    assert not any(module.training for module in teacher.network.modules())


def test_frozen_teacher_bf16_returns_float32(weights_file):
    """A bf16 teacher keeps float32 parameters and returns float32 depth near full precision."""
    node = {"network": NODE, "checkpoint": str(weights_file)}
    data = batch()
    full, half = (
        build_teacher(node, CPU)(data),
        build_teacher(node | {"precision": "bf16"}, CPU)(data),
    )
    assert half.dtype == torch.float32
    assert (half - full).abs().max() > 1e-4 * full.max(), "eight bits are seen"
    assert ((half - full).abs() <= 0.05 * full + 0.05).all()
    teacher = build_teacher(node | {"precision": "bf16"}, CPU)
    assert all(p.dtype == torch.float32 for p in teacher.network.parameters())


def test_build_teacher_rejects_invalid_precision(weights_file):
    """Unknown precisions, fp16 on a CPU and a precision for cached maps are rejected."""
    node = {"network": NODE, "checkpoint": str(weights_file)}
    assert "allowed: fp32, bf16, fp16" in refused(node | {"precision": "int8"})
    assert "fp16 is not for CPUs" in refused(node | {"precision": "fp16"})
    assert "teacher.precision: cached maps stay" in refused({"maps": "maps", "precision": "bf16"})


def test_build_teacher_accepts_published_file(trained, tmp_path):
    """A published checkpoint gives the same teacher weights."""
    published = {"meta": {"epoch": 24}, "state_dict": to_published(trained.state_dict())}
    torch.save(published, tmp_path / "published.pth")
    teacher = build_teacher({"network": NODE, "checkpoint": str(tmp_path / "published.pth")}, CPU)
    assert digest(teacher.network) == digest(trained)


def test_build_teacher_accepts_work_dir(trained, weights_file):
    """A work dir given as teacher.checkpoint loads its best weights."""
    teacher = build_teacher({"network": NODE, "checkpoint": str(weights_file.parent)}, CPU)
    assert digest(teacher.network) == digest(trained)


@pytest.mark.parametrize("stated", [None, "elsewhere/run"])
def test_build_teacher_default_is_recipes_work_dir(trained, tmp_path, monkeypatch, stated):
    """Without a checkpoint the teacher loads from its recipe's work dir, or an error names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big.yaml").write_text(
        f"work_dir: {stated}\n" if stated else "log: {interval: 1}\n"
    )
    node = {"network": NODE, "recipe": str(tmp_path / "big.yaml")}
    work_dir = tmp_path / (stated or "work_dirs/big")
    message = refused(node)
    assert message.startswith(
        f"teacher.checkpoint: not given, and there are no weights in {stated or 'work_dirs/big'};"
    )
    assert message.endswith(f"train the teacher with bin/train.py {tmp_path / 'big.yaml'}")
    work_dir.mkdir(parents=True)
    write_weights(work_dir / "best_abs_rel.pth", trained.state_dict(), NODE, 7)
    assert digest(build_teacher(node, CPU).network) == digest(trained)


def test_build_teacher_maps_and_ground_truth():
    """Cached maps return the batch's teacher depth, and no teacher its ground truth."""
    data = batch()
    maps, truth = build_teacher({"maps": "gt_kd"}, CPU), build_teacher(None, CPU)
    assert isinstance(maps, CachedMaps)
    assert maps(data) is data.teacher_depth
    assert isinstance(truth, GroundTruth)
    assert truth(data) is data.depth


class Nearer(torch.nn.Module):
    """A metre for each grey level above the mean; not frozen, in training mode, on purpose."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, batch):
        return batch.image.mean(1, keepdim=True).abs().double() * self.scale + 1


def outside(monkeypatch, build):
    """The teacher of a module `somebodys.teacher` with this build, given scale 3."""
    module = types.ModuleType("somebodys.teacher")
    module.build = build
    monkeypatch.setitem(sys.modules, "somebodys.teacher", module)
    return build_teacher({"name": "somebodys.teacher", "scale": 3.0}, CPU)


def test_external_teacher_is_frozen_and_masked(monkeypatch):
    """An external teacher is frozen, and its depth is float32 and 0 outside the image."""
    teacher, data = outside(monkeypatch, Nearer), batch()
    assert not teacher.network.training
    assert not teacher.network.scale.requires_grad
    depth = teacher(data)
    assert depth.dtype == torch.float32
    assert not depth.requires_grad
    expected = data.image.mean(1, keepdim=True).abs() * 3 + 1
    torch.testing.assert_close(depth, expected * data.inside)
    assert teacher.name == "somebodys.teacher"
    assert (depth[~data.inside] == 0).all()


def test_external_teacher_may_be_callable(monkeypatch):
    """An external teacher may be any callable, may take the device, and its NaN becomes 0."""

    def build(scale: float, device):
        return lambda batch: torch.full(batch.depth.shape, scale, device=device)

    data = batch()
    teacher = outside(monkeypatch, build)
    assert teacher.network is None
    assert torch.equal(teacher(data), 3.0 * data.inside)
    nan_outside = outside(
        monkeypatch, lambda scale: lambda batch: torch.where(batch.inside, scale, torch.nan)
    )
    assert torch.equal(nan_outside(data), 3.0 * data.inside)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (
            torch.ones(2, 32, 64),
            "returned (2, 32, 64) torch.float32 on cpu; it must be depth in metres, (2, 1, 32",
        ),
        (torch.ones(2, 1, 32, 64, dtype=torch.int64), "returned (2, 1, 32, 64) torch.int64 on cpu"),
        (torch.ones(2, 1, 32, 64, device="meta"), "on meta; it must be depth in metres"),
        (None, "teacher (somebodys.teacher): returned None; it must be depth in metres"),
    ],
)
def test_external_teacher_rejects_wrong_output(monkeypatch, returned, words):
    """A wrong shape, dtype, device or type of teacher depth raises a one-line error."""
    teacher = outside(monkeypatch, lambda scale: lambda batch: returned)
    with pytest.raises(TeacherError) as error:
        teacher(batch())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [(-1.0, "returned -1 for 3 of"), (torch.nan, "returned nan for 3 of"), (torch.inf, "inf for")],
)
def test_external_teacher_rejects_impossible_depth_once(monkeypatch, value, told):
    """Negative or non-finite depth inside the image is refused in the first batch alone."""
    data = batch()
    depth = torch.full(data.depth.shape, 3.0)
    depth[1, 0, 2, :3] = value
    depth[0, :, :5] = value  # outside the first image
    returned = [depth, depth.clamp(min=0).nan_to_num(0, 0), depth]
    teacher = outside(monkeypatch, lambda scale: lambda batch: returned.pop(0))
    with pytest.raises(TeacherError) as error:
        teacher(data)
    assert str(error.value).startswith("teacher (somebodys.teacher): ")
    assert told in str(error.value)
    assert "4096 pixels, the first of them in b; it must be depth in metres, 0 where it" in str(
        error.value
    )
    teacher(data)
    teacher(data)


def test_external_teacher_may_give_a_target(monkeypatch):
    """An external teacher's Target is float32, masked, and its sigma and weight are kept."""
    data = batch()
    depth = torch.full((2, 3, 32, 64), 3.0, dtype=torch.float64)
    given = Target(depth, depth / 4, torch.tensor([1.0, 2.0, 0.0]))
    found = outside(monkeypatch, lambda scale: lambda batch: given)(data)
    assert torch.equal(found.depth, 3.0 * data.inside.expand(2, 3, -1, -1))
    assert found.depth.dtype == found.sigma.dtype == torch.float32
    assert (found.sigma == 0.75).all()
    assert torch.equal(found.weight, given.weight)


DEPTHS = torch.ones(2, 2, 32, 64)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Target(DEPTHS[:, :, :5]), "returned (2, 2, 5, 64) torch.float32 on cpu; it must be depth"),
        (Target(DEPTHS[:, :0]), "returned (2, 0, 32, 64) torch.float32 on cpu; it must be depth"),
        (Target(DEPTHS, DEPTHS[:, :1]), "it must be Target.sigma in metres, (2, 2, 32, 64)"),
        (
            Target(DEPTHS, constants=(1.0, 2.0)),
            "returned Target.constants; give Target.sigma, (",
        ),
        (Target(DEPTHS, 0.5), "returned 0.5; it must be Target.sigma in metres"),
        (Target(DEPTHS, None, torch.ones(3)), "it must be Target.weight, (2,), floating point"),
        (Target(DEPTHS, -DEPTHS), "Target.sigma is -1 for 7296 of 8192 values; it must be finite"),
        (Target(DEPTHS, None, DEPTHS * torch.nan), "Target.weight is nan for 7296 of 8192 values"),
        (Target(-DEPTHS), "returned -1 for 7296 of 8192 pixels"),
    ],
)
def test_external_teacher_rejects_a_wrong_target(monkeypatch, given, words):
    """A Target of wrong shapes or impossible values raises a one-line error."""
    teacher = outside(monkeypatch, lambda scale: lambda batch: given)
    with pytest.raises(TeacherError) as error:
        teacher(batch())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_external_teacher_rejects_invalid_build(monkeypatch):
    """A build that returns no callable or doesn't take a given key is rejected."""
    with pytest.raises(TeacherError, match="build made 3.0; it must be a callable"):
        outside(monkeypatch, lambda scale: scale)
    with pytest.raises(RecipeError, match=r"teacher \(somebodys.teacher\): unknown key 'scale'"):
        outside(monkeypatch, lambda factor: factor)


def test_build_teacher_rejects_invalid_nodes(weights_file, tmp_path):
    """Missing, torn, contradictory or unfitting teacher settings raise one-line errors."""
    node = {"network": NODE, "checkpoint": str(weights_file)}
    there = str(tmp_path / "nothing.pth")
    assert refused(node | {"checkpoint": there, "recipe": "big.yaml"}) == (
        f"teacher.checkpoint: no file at {there}; train one with bin/train.py big.yaml, "
        "or use cached maps (teacher.maps)"
    )
    assert "there are no weights in" in refused(node | {"checkpoint": str(tmp_path)})
    assert "needed beside teacher.network" in refused({"network": NODE})
    assert "has both maps and a recipe" in refused(
        {"maps": "x", "recipe": "big.yaml", "network": NODE}
    )
    assert "give `recipe` (and `checkpoint`) for a network, or `maps`" in refused(
        {"checkpoint": there}
    )
    torn = tmp_path / "torn.pth"
    torn.write_bytes(weights_file.read_bytes()[:1000])
    assert str(torn) in refused(node | {"checkpoint": str(torn)})
    other = NODE | {"decoder": {"name": "bts", "width": 256}}
    message = refused({"network": other, "checkpoint": str(weights_file)})
    assert "don't fit" in message
    assert message.endswith("made with, or another checkpoint")


@pytest.mark.parametrize("is_cached", [False, True])
def test_canonical_teacher_takes_the_focal_length_of_what_it_sees(is_cached):
    """A teacher with a canonical camera gives metres, of a training batch and of a cached frame."""
    resize = Resize(scale=0.5)
    pixels = canonical_student.image(160.0, 8.0)[None]
    intrinsics = torch.tensor([[[160.0, 0, 79.5], [0, 160.0, 23.5], [0, 0, 1]]])
    image = network_input(pixels, resize)
    depth = torch.zeros(1, 1, 48, 160)
    if not is_cached:
        # Training resizes depth and intrinsics with the image.
        depth = torch.zeros(1, 1, *image.shape[2:])
        intrinsics[:, :2] /= 2
    image = look_up(image, colour_table()[None])
    inside = torch.ones(1, 1, *image.shape[2:], dtype=torch.bool)
    teacher = FrozenTeacher(canonical_student.network(), CPU, resize=resize)
    assert teacher.needs_focal
    found = teacher(Batch(image, depth, inside, None, intrinsics, ["a"]))
    assert found.mean().item() == pytest.approx(8.0, rel=1e-3)


def test_build_teachers_of_a_recipe(weights_file, tmp_path):
    """Several teachers become a mixture or a mean, each with its own place of cached maps."""
    online = {"network": NODE, "checkpoint": str(weights_file), "weight": 3.0, "sigma": 1.0}
    entries = [{"maps": "a"}, online, {"maps": "b", "audit": "off"}]
    built = build_teachers({"teachers": entries}, CPU, 80.0)
    assert isinstance(built, Mixture)
    assert [(m.where, m.weight, m.sigma) for m in built.members] == [
        ("teachers[0]", 1.0, None),
        ("teachers[1]", 3.0, 1.0),
        ("teachers[2]", 1.0, None),
    ]
    assert [m.teacher.map_index for m in built.members if isinstance(m.teacher, CachedMaps)] == [
        0,
        1,
    ]
    assert isinstance(built.members[1].teacher, FrozenTeacher)
    mean = {"name": "average", "weights": "precision", "teachers": entries}
    built = build_teachers({"teacher": mean}, CPU, 80.0)
    assert isinstance(built, Average)
    assert built.by_precision
    assert isinstance(build_teachers({"teacher": {"maps": "a"}}, CPU, 80.0), CachedMaps)
    assert isinstance(build_teachers({}, CPU, 80.0), GroundTruth)
    gone = online | {"checkpoint": str(tmp_path / "gone.pth")}
    with pytest.raises(TeacherError, match=r"^teachers\[1\].checkpoint: no file at .*gone.pth"):
        build_teachers({"teachers": [{"maps": "a"}, gone]}, CPU, 80.0)


def test_with_teachers_file_fixes_each_checkpoint(weights_file, tmp_path):
    """Each network's weights file is named; a resumed run keeps those of its start."""
    entries = [{"maps": "a"}, {"network": NODE, "checkpoint": str(weights_file.parent)}]
    recipe = {"work_dir": str(tmp_path / "run"), "teachers": entries}
    found = with_teachers_file(recipe, resuming=False)
    assert found["teachers"][0] == {"maps": "a"}
    assert found["teachers"][1]["checkpoint"] == str(weights_file)
    assert entries[1]["checkpoint"] == str(weights_file.parent)
    assert with_teachers_file({"teachers": entries[:1]}, resuming=False) == {
        "teachers": entries[:1]
    }
    own = [{"network": NODE, "recipe": str(tmp_path / "big.yaml"), "weight": 2.0}]
    (tmp_path / "run").mkdir()
    started = own[0] | {"checkpoint": str(weights_file)}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"teachers": [started]}))
    found = with_teachers_file(recipe | {"teachers": own}, resuming=True)
    assert found["teachers"] == [started]
    with pytest.raises(TeacherError, match=r"^teachers\[0\].checkpoint: not given, and there"):
        with_teachers_file(recipe | {"teachers": own}, resuming=False)
