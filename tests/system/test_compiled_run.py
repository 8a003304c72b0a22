"""A run whose student is compiled.

It gives the stored curve, checkpoints that any run resumes from, and evaluations.
"""

import json

import pytest
from support import programs, recipes

CURVE = programs.HERE.parent / "system" / "curve.json"
COMPILING_S = 1500  # a minute of one core, that others may be using


@pytest.mark.long
def test_compiled_run_follows_curve_and_resumes(ground, tmp_path):
    """A compiled run follows the stored curve and is resumed by an uncompiled one.

    12 iterations compiled, with an evaluation, then 8 without, from the checkpoint.
    """
    recipe = recipes.recipe(ground, validate=True)
    recipe["evaluation"] |= {"interval": 10, "by": "iteration"}
    recipe["checkpoint"]["interval"] = 12
    recipe["hooks"].append({"name": "support.parts.stop_at", "iteration": 12})
    config = json.loads((programs.DS_CONFIGS / "fp32.json").read_text())
    (tmp_path / "compiled.json").write_text(json.dumps(config | {"tiekd": {"compile": True}}))
    path = recipes.write_recipe(tmp_path / "recipe.yaml", recipe)
    command = [
        programs.sys.executable,
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        tmp_path / "work",
    ]
    result = programs.finish(
        [*command, "--deepspeed_config", tmp_path / "compiled.json"], COMPILING_S
    )
    assert result.code == 75, result.stderr[-3000:]
    assert (tmp_path / "work" / "best_abs_rel.pth").is_file()
    command = [programs.sys.executable, programs.ROOT / "bin" / "resume", tmp_path / "work"]
    result = programs.finish([*command, "--deepspeed_config", programs.DS_CONFIGS / "fp32.json"])
    assert result.code == 0, result.stderr[-3000:]
    losses, curve = programs.losses(tmp_path / "work"), json.loads(CURVE.read_text())["loss"]
    assert losses[:5] == pytest.approx(curve[:5], rel=2e-4)
    assert losses == pytest.approx(curve, rel=1e-2), "another rounding, which grows"
    assert not [key for key in programs.student(tmp_path / "work") if "_orig_mod" in key]
