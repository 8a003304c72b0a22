"""bin/export.py from outside.

A process without this project runs every student family's file on real images.
"""

import os
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from support import exported_student, fitted, programs, recipes

from tiekd.config.recipe import load_recipe
from tiekd.inference.export.trial_images import batches
from tiekd.inference.export.verification import Reference
from tiekd.inference.student import Student
from tiekd.models.build import build_network

EXPORT = programs.ROOT / "bin" / "export.py"
STUDENTS = programs.ROOT / "model_configs" / "students"
FAMILIES = [
    "tiekd_light_bts_kitti",
    "tiekd_lite0_kitti",
    "tiekd_lite2_nyu",
    "tiekd_mobilenet_v2_adabins_kitti",
    "tiekd_mobilenet_v2_adabins_nyu",
    "tiekd_resnet18_adabins_kitti",
    "tiekd_resnet50_adabins_kitti",
    "reskd_mse_mobilenet_v2_adabins_kitti",
    "baseline_resnet18_kitti",
    "baseline_resnet50_nyu",
]
# A light student's parts, as small as they can be.
LITE = {
    "encoder": {"name": "efficientnet_lite", "taps": [0]},
    "decoder": {"name": "separable", "widths": [8]},
    "head": {"name": "dpm", "num_bins": 33, "sigma": 2.0, "upsampling": "convex"},
    "min_depth": 0.5,
    "max_depth": 80.0,
}
SIZES = {"fixed": (160, 320), "wide": (96, 416), "odd": (141, 309), "open": (128, 224)}
P999_M, MAX_M = 1e-3, 1e-2


def export(recipe: Path, checkpoint: Path, out: Path, *options) -> programs.Result:
    """On real frames where there are some, else on what the program renders."""
    real = os.environ.get("TIEKD_REAL_DATA")
    root = Path(real) / load_recipe(recipe)["data"]["name"] if real else out.parent
    command = [sys.executable, EXPORT, recipe, checkpoint, "--out", out, *options]
    return programs.finish([*command, "--set", f"data.root={root}"], cwd=out.parent)


def differences(path: Path, network, sizes) -> None:
    """Compares a file with the network on images that it wasn't tried on."""
    session = onnxruntime.InferenceSession(path)
    reference = Reference(Student(network, "cpu"), False)
    for size in sizes:
        for image in batches(fitted.images(), size):
            wanted = reference(image)[0]
            error = (
                (torch.from_numpy(session.run(["depth"], {"image": image.numpy()})[0]) - wanted)
                .abs()
                .flatten()
            )
            assert wanted.max() > 10 * wanted.min(), "depth spans ten times"
            worst = error.max().item()
            p999 = error.kthvalue(round(0.999 * len(error))).values.item()
            assert p999 < P999_M, f"{path.stem} at {size}: p99.9 {p999} m, max {worst} m"
            assert worst < MAX_M, f"{path.stem} at {size}: p99.9 {p999} m, max {worst} m"
            programs.REPORTS.append(
                f"{path.stem} {size}: depth to {wanted.max():.0f} m, p99.9 {p999:.1e}, "
                f"max {worst:.1e}"
            )


def test_export_recipe_takes_best_weights(tmp_path, ground):
    """Without a checkpoint `export.py` takes the best weights of the recipe's work dir."""
    recipe = recipes.write_recipe(tmp_path / "tiny.yaml", recipes.recipe(ground))
    work_dir = tmp_path / "work_dirs" / "tiny"
    work_dir.mkdir(parents=True)
    network = fitted.checkpoint(work_dir / "best_abs_rel.pth", recipes.STUDENT)
    out = tmp_path / "new" / "tiny.onnx"
    command = [sys.executable, EXPORT, recipe, "--out", out, "--dynamic"]
    result = programs.finish(command, cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert "tiny: work_dirs/tiny/best_abs_rel.pth" in result.stdout
    assert f"Tried on: 2 of {ground / 'scenes'} (val)" in result.stdout
    assert "1 x 64x128, depth " in result.stdout
    assert "2 x 49x97, depth " in result.stdout
    assert "(allowed 0.001 and 0.01)" in result.stdout
    assert " ms from the file, " in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"written: {out} (")
    assert [path.name for path in out.parent.iterdir()] == ["tiny.onnx"]
    differences(out, network, [(64, 128), (75, 131)])

    before = programs.files_of(out.parent)
    for options, line in (
        ([], "exists; give another one, or --overwrite to replace it"),
        (["--overwrite", "--size", "8x8"], "--size 8x8: too small for this network; give at least"),
        (["--overwrite", "--format", "weights"], "ends with .pth"),
        (["--overwrite", "--set", "network.head.num_bins=34"], "don't fit"),
    ):
        refused = programs.finish([*command[:5], *options], cwd=tmp_path)
        assert refused.code == 2, refused.stderr
        assert line in refused.stderr, refused.stderr
        assert len(refused.our_lines()) == 1, refused.stderr
        assert programs.files_of(out.parent) == before


def test_export_learned_upsampling_to_onnx(tmp_path):
    """A light student's dynamic ONNX file gives its unblended depth and its confidence."""
    torch.manual_seed(0)
    network, path = build_network(LITE).eval(), tmp_path / "student.onnx"
    torch.nn.init.normal_(network.head.weight)
    torch.nn.init.normal_(network.head.upsampling.logits.weight)
    options = {"dynamic": True, "readout": "local", "confidence": True}
    exported_student.write(path, network, LITE, (32, 48), **options)
    session = onnxruntime.InferenceSession(path)
    image = exported_student.random_image(33, 21, seed=4, batch=2)
    depth, confidence, sigma = map(torch.from_numpy, session.run(None, {"image": image.numpy()}))
    wanted = Student(network, "cpu", "local").predict(image, with_confidence=True)
    assert wanted.depth.max() > wanted.depth.min() + 1
    assert ((depth - wanted.depth).abs() < P999_M).float().mean() > 0.98
    assert (confidence - wanted.confidence).abs().max() < 1e-3
    assert (sigma - wanted.sigma).abs().max() < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_export_onnx_equals_torch_per_family(tmp_path, family):
    """The ONNX file of every student family gives the depth of the network in torch."""
    recipe, checkpoint = STUDENTS / f"{family}.yaml", tmp_path / "student.pth"
    network = fitted.checkpoint(
        checkpoint, load_recipe(recipe)["network"], iterations=150 if "light" in family else 40
    )
    for kind, size in SIZES.items():
        out = tmp_path / f"{family}_{kind}.onnx"
        options = ["--dynamic"] if kind == "open" else []
        result = export(recipe, checkpoint, out, "--size", "x".join(map(str, size)), *options)
        assert result.code == 0, result.stderr
        differences(
            out, network, [size, *([SIZES["fixed"], SIZES["odd"]] if kind == "open" else [])]
        )
        out.unlink()
