"""Published files into ours and back, whole networks by every name.

And published files taken as they are.
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import golden

from tiekd.config.recipe import load_recipe
from tiekd.models.build import build_network
from tiekd.models.weights.state_dicts import load_into, read_weights, to_published
from tiekd.teaching import build_teacher
from tiekd.training.build import load_weights
from tiekd.training.settings import Recipe

ROOT = Path(__file__).parents[3]
NETWORKS = ROOT / "model_configs" / "_base_" / "networks"
RESNET50 = {
    "encoder": {"name": "resnet", "depth": 50},
    "decoder": {"name": "densedepth", "widths": [128, 256, 512, 1024, 2048], "extra_ups": 1},
}
RESNET18 = {
    "encoder": {"name": "resnet", "depth": 18},
    "decoder": {"name": "densedepth", "widths": [128, 128, 256, 256, 512], "extra_ups": 1},
}
RANGE = {"min_depth": 0.001, "max_depth": 80.0}
NYU_HEAD = {"name": "dpm", "num_bins": 49, "sigma": 1.0}
# The networks of the published code: recipes, or the nodes of one where there is none yet.
RECIPES = {
    "mobilev2_DPM_kitti": "mobilenet_v2_dpm_kitti.yaml",
    "mobilev2_DPM_nyu": {
        "_base_": str(NETWORKS / "mobilenet_v2_dpm_kitti.yaml"),
        "network": {"head": NYU_HEAD},
    },
    "mobilev2_baseKD_kitti": "mobilenet_v2_sigmoid_kitti.yaml",
    "resnet18_DPM_kitti": {
        "network": RANGE | RESNET18 | {"head": {"name": "dpm", "num_bins": 257}}
    },
    "resnet18_DPM_nyu": {"network": RANGE | RESNET18 | {"head": NYU_HEAD}},
    "resnet50_DPM_nyu": {"network": RANGE | RESNET50 | {"head": NYU_HEAD}},
    "resnet50_baseKD_nyu": {"network": RANGE | RESNET50 | {"head": {"name": "sigmoid"}}},
    "bts_r50_kitti": "bts_r50_kitti.yaml",
    "adabins_kitti": "adabins_kitti.yaml",
    "depthformer_swint_kitti": "depthformer_swint_kitti.yaml",
    "depthformer_swinl_kitti": "depthformer_swinl_kitti.yaml",
}
DEAD = {  # how many tensors of each nothing uses
    "mobilev2_DPM_kitti": 2,
    "mobilev2_DPM_nyu": 2,
    "mobilev2_baseKD_kitti": 2,
    "resnet18_DPM_kitti": 6,
    "resnet18_DPM_nyu": 6,
    "resnet50_DPM_nyu": 6,
    "resnet50_baseKD_nyu": 6,
    "bts_r50_kitti": 0,
}
WHOLE = ("mobilev2_DPM_kitti", "resnet18_DPM_kitti")  # filled by the rule to the last number


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with np.load(golden.GOLDEN / "networks" / "keys.npz") as archive:
        lines = str(archive[name]).splitlines()
    pairs = (line.rpartition(" ")[::2] for line in lines)
    return {key: tuple(int(n) for n in shape.split("x") if n) for key, shape in pairs}


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Returns every entry of a published checkpoint by the rule.

    Of big ones only the first number is made, over the whole shape.
    """
    if name in WHOLE:
        return {key: golden.fill(key, shape) for key, shape in shapes(name).items()}
    return {
        key: golden.fill(key, (1,) * len(shape)).expand(shape)
        for key, shape in shapes(name).items()
    }


def run(capsys, *arguments) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines on stderr of bin/import_weights.py."""
    program, before = str(ROOT / "bin" / "import_weights.py"), sys.argv
    sys.argv = [program, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(program, run_name="__main__")
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err.splitlines()


@pytest.fixture
def recipe_of(tmp_path):
    def path(name: str) -> Path:
        recipe = RECIPES[name]
        if isinstance(recipe, str):
            return NETWORKS / recipe
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
        return tmp_path / f"{name}.yaml"

    return path


@pytest.mark.parametrize("name", RECIPES)
def test_import_weights_round_trip(name, recipe_of, tmp_path, capsys):
    """Every published network imports with nothing missing and exports back bit-identical."""
    recipe, state = recipe_of(name), state_of(name)
    torch.save(
        {"meta": {"epoch": 24}, "state_dict": state, "optimizer": {}}, tmp_path / "theirs.pth"
    )
    code, out, errors = run(capsys, tmp_path / "theirs.pth", recipe, "--out", tmp_path / "ours.pth")
    assert code == 0, (out, errors)
    assert errors == [], (out, errors)
    lines = out.splitlines()
    assert "missing: 0" in lines
    assert "unexpected: 0" in lines
    assert "of another shape: 0" in lines
    dead = [line.strip() for line in lines if line.startswith("  ")]
    assert len(dead) == DEAD.get(name, len(dead))
    assert all(key in state for key in dead)

    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    node = load_recipe(recipe)["network"]
    assert ours["network"] == node
    with torch.device("meta"):
        own = build_network(node).state_dict()
    assert {key: t.shape for key, t in ours["state_dict"].items()} == {
        key: t.shape for key, t in own.items()
    }
    assert f"matched: {len(own)}" in lines
    assert len(own) == len(state) - len(dead)

    code, out, errors = run(
        capsys, tmp_path / "ours.pth", recipe, "--out", tmp_path / "back.pth", "--to-published"
    )
    assert code == 0
    assert errors == []
    assert "missing: 0" in out
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"] == {}
    assert back["state_dict"].keys() == state.keys() - set(dead)
    for key, tensor in back["state_dict"].items():
        assert tensor.dtype == state[key].dtype, key
        assert torch.equal(tensor, state[key]), key


SMALL = RANGE | {
    "encoder": {"name": "mobilenet_v2", "width": 0.25},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8], "extra_ups": 1, "extra_width": 8},
    "head": {"name": "sigmoid"},
}


@pytest.fixture
def small(tmp_path):
    """A folder with recipe.yaml, and the published state dict of its network."""
    (tmp_path / "recipe.yaml").write_text(json.dumps({"network": SMALL}))
    torch.manual_seed(0)
    network = build_network(SMALL)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand_like(tensor) if tensor.is_floating_point() else tensor)
    return to_published(network.state_dict())


def refused(capsys, folder, state, *options) -> str:
    """Returns the one line of a refused import, which leaves no file.

    `out` keeps what was printed before.
    """
    torch.save(state, folder / "theirs.pth")
    arguments = [
        folder / "theirs.pth",
        folder / "recipe.yaml",
        "--out",
        folder / "out" / "ours.pth",
        *options,
    ]
    code, refused.out, errors = run(capsys, *arguments)
    assert code == 2, errors
    assert len(errors) == 1, errors
    assert not (folder / "out").exists(), errors
    return errors[0]


def test_import_weights_lists_mismatches(small, tmp_path, capsys):
    """Missing, unexpected and misshapen tensors are listed, and no file is written."""
    state = dict(
        small,
        **{"decode_head.other.weight": torch.zeros(1), "backbone.layer9.0.weight": torch.zeros(1)},
    )
    del state["decode_head.conv_depth.bias"]
    state["backbone.conv1.bn.weight"] = torch.zeros(3)
    line = refused(capsys, tmp_path, state)
    assert line == (
        f"CheckpointError: {tmp_path}/theirs.pth: doesn't fit the network of "
        f"{tmp_path}/recipe.yaml: 1 missing (head.conv.bias), 2 unexpected "
        "(encoder.layer9.0.weight, decode_head.other.weight), 1 of another shape "
        "(encoder.conv1.bn.weight (got [3], wanted [8])); nothing is written; give the recipe of "
        "this network, or its overrides by --set"
    )
    assert "missing: 1\n  head.conv.bias\n" in refused.out
    assert "unexpected: 2\n  encoder.layer9.0.weight\n  decode_head.other.weight\n" in refused.out
    assert "of another shape: 1\n  encoder.conv1.bn.weight (got [3], wanted [8])\n" in refused.out


def test_import_weights_names_dead_parameters(small, tmp_path, capsys):
    """Parameters that the published network never uses are listed as unused, not as unexpected."""
    state = small | {
        "decode_head.conv_out.0.weight": torch.zeros(256, 8, 1, 1),
        "backbone.fc.weight": torch.zeros(2),
    }
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "theirs.pth")
    code, out, _ = run(
        capsys, tmp_path / "theirs.pth", tmp_path / "recipe.yaml", "--out", tmp_path / "ours.pth"
    )
    assert code == 0
    assert "unexpected: 0" in out
    listed = "  backbone.fc.weight\n  decode_head.conv_out.0.weight\n"
    assert f"unused by the published network, left out: 2\n{listed}" in out


def test_import_weights_recipe_head_decides(tmp_path, capsys):
    """The recipe's head decides which of two published output layers is unused.

    Two heads of the same sizes: a sigmoid head carries 256 bins unused. Sizes alone would take
    one for the other.
    """
    recipe = {"network": SMALL | {"head": {"name": "dpm", "num_bins": 256}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    state = to_published(build_network(recipe["network"]).state_dict())
    torch.save(state | {"decode_head.conv_depth.bias": torch.zeros(1)}, tmp_path / "theirs.pth")
    code, out, _ = run(
        capsys, tmp_path / "theirs.pth", tmp_path / "recipe.yaml", "--out", tmp_path / "ours.pth"
    )
    assert code == 0
    assert "left out: 1\n  decode_head.conv_depth.bias" in out


def test_import_weights_without_batch_counters(small, tmp_path, capsys):
    """A file without num_batches_tracked entries imports with nothing missing."""
    state = {
        key: tensor for key, tensor in small.items() if not key.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "theirs.pth")
    code, out, _ = run(
        capsys, tmp_path / "theirs.pth", tmp_path / "recipe.yaml", "--out", tmp_path / "ours.pth"
    )
    assert code == 0
    assert "missing: 0" in out
    assert f"matched: {len(state)}" in out


def test_import_weights_keeps_existing_file(small, tmp_path, capsys):
    """An existing output file is replaced only with --overwrite."""
    torch.save(small, tmp_path / "theirs.pth")
    (tmp_path / "ours.pth").write_text("mine")
    arguments = [tmp_path / "theirs.pth", tmp_path / "recipe.yaml", "--out", tmp_path / "ours.pth"]
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert (tmp_path / "ours.pth").read_text() == "mine"
    assert errors == [
        f"CheckpointError: {tmp_path}/ours.pth: exists; give another --out, "
        "or --overwrite to replace it"
    ]
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    load_into(build_network(SMALL), read_weights(tmp_path / "ours.pth"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ours.pth",
        "recipe.yaml",
        "theirs.pth",
    ]


class RunsCode:
    def __reduce__(self):
        return print, ("this ran",)


def test_import_weights_rejects_other_files(small, tmp_path, capsys):
    """Pickled code, unknown layouts and recipes without a network are rejected."""
    assert "holds more than tensors" in refused(
        capsys, tmp_path, {"state_dict": small, "meta": RunsCode()}
    )
    assert "this ran" not in refused.out
    ours = {key: torch.zeros(1) for key in ("encoder.conv1.weight", "head.weight")}
    assert "not a published checkpoint" in refused(
        capsys, tmp_path, {"decode_head.a": torch.zeros(1)}
    )
    assert "missing" in refused(capsys, tmp_path, ours, "--to-published")
    (tmp_path / "recipe.yaml").write_text("log: {interval: 1}")
    assert "describes no network" in refused(capsys, tmp_path, small)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_import_weights_accepts_numpy_scalar_meta(core, small, tmp_path, capsys):
    """A NumPy scalar in the metadata doesn't prevent the import, whatever NumPy wrote it.

    The meta data that mmcv saves with the best checkpoint. The pickled name of the constructor
    depends on numpy's version.
    """
    state = {"meta": {"hook_msgs": {"best_score": np.float64(0.0586)}}, "state_dict": small}
    torch.save(state, tmp_path / "theirs.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "theirs.pth").read_bytes()
    names = (b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n")
    assert any(name in data for name in names)
    for name in names:
        data = data.replace(name, f"cnumpy.{core}.multiarray\nscalar\n".encode())
    (tmp_path / "theirs.pth").write_bytes(data)
    code, _, errors = run(
        capsys, tmp_path / "theirs.pth", tmp_path / "recipe.yaml", "--out", tmp_path / "ours.pth"
    )
    assert code == 0, errors


@pytest.mark.parametrize("layout", ["bare", "state_dict", "module"])
def test_load_checkpoint_accepts_published_layouts(layout, small, tmp_path):
    """A student and a teacher load published files in all three layouts."""
    state = {f"module.{key}": t for key, t in small.items()} if layout == "module" else small
    torch.save(
        state if layout == "bare" else {"meta": {}, "state_dict": state}, tmp_path / "theirs.pth"
    )
    network = build_network(SMALL)
    notes = load_weights(network, Recipe({"load": {"checkpoint": str(tmp_path / "theirs.pth")}}))
    assert notes == [f"Loaded {len(small)} tensors from {tmp_path}/theirs.pth"]
    teacher = build_teacher(
        {"network": SMALL, "checkpoint": str(tmp_path / "theirs.pth")}, torch.device("cpu")
    )
    for loaded in (network, teacher.network):
        back = to_published(loaded.state_dict())
        assert back.keys() == small.keys()
        assert all(torch.equal(back[key], small[key]) for key in small)
