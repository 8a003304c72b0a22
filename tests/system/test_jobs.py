"""Ways to start a run: python, deepspeed, sh and bash.

Two jobs on one machine have their own ports and devices.
"""

import json
import sys
from pathlib import Path

import pytest
from support import programs as runs
from support import recipes

DIST_TRAIN = runs.ROOT / "bin" / "dist_train.sh"


@pytest.fixture
def curve() -> list[float]:
    return json.loads(Path(__file__).with_name("curve.json").read_text())["loss"]


def in_recipe(tmp_path: Path, ground: Path, name: str, **hook) -> list:
    """The recipe of the curve, and its options."""
    recipe = recipes.recipe(ground)
    recipe["hooks"] = [recipes.RECORDER | hook]
    path = recipes.write_recipe(tmp_path / f"{name}.yaml", recipe)
    return [path, "--work-dir", tmp_path / name]


def test_dist_train_gives_stored_curve(ground, tmp_path, curve):
    """`dist_train.sh` gives the stored loss curve."""
    recipe, *options = in_recipe(tmp_path, ground, "sh")
    result = runs.finish(["sh", DIST_TRAIN, recipe, 2, *options], PORT=str(runs.free_port()))
    assert result.code == 0, result.stderr[-3000:]
    assert runs.losses(tmp_path / "sh") == pytest.approx(curve, rel=1e-3)


def test_taken_port_refuses_third_job(ground, tmp_path, curve):
    """Two jobs run at once, and a third on a taken port is refused with one line."""
    port = runs.free_port()
    train, wait = runs.ROOT / "bin" / "train.py", {"wait_for": str(tmp_path / "third_has_ended")}
    with (
        runs.Program(
            [*runs.deepspeed(2, port), train, *in_recipe(tmp_path, ground, "first", **wait)]
        ) as first,
        runs.Program(["python", train, *in_recipe(tmp_path, ground, "second")]) as second,
    ):
        first.wait_until(lambda: (tmp_path / "first" / "recorded.jsonl").is_file())
        result = runs.finish(
            [*runs.deepspeed(2, port), train, *in_recipe(tmp_path, ground, "third")]
        )
        assert result.code == 2, result.stderr[-3000:]
        (line,) = result.our_lines()
        assert line.startswith(f"LaunchError: port {port} is taken")
        assert "--master_port" in line
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "third").exists()
        (tmp_path / "third_has_ended").touch()
        assert first.result().code == 0
        assert second.result().code == 0
    assert runs.losses(tmp_path / "first") == pytest.approx(curve, rel=1e-3)
    assert runs.losses(tmp_path / "second") == pytest.approx(curve, rel=1e-3)


def test_unknown_master_is_named(ground, tmp_path):
    """A rank whose MASTER_ADDR no machine has ends with one line once it has waited."""
    # A label of more than 63 letters is no name of a machine, so no name server is asked.
    unknown = f"{64 * 'a'}.invalid"
    ranks = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_SIZE": "1"}
    result = runs.finish(
        ["python", runs.ROOT / "bin" / "train.py", *in_recipe(tmp_path, ground, "alone")]
        + ["--timeout", "0.05"],
        MASTER_ADDR=unknown,
        MASTER_PORT=str(runs.free_port()),
        **ranks,
    )
    assert result.code == 2, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert line.startswith(f"LaunchError: MASTER_ADDR={unknown}: no machine of that name")


def test_dist_train_keeps_visible_devices(tmp_path):
    """`dist_train.sh` gives each rank the visible devices and the port that it was called with.

    So are the arguments, one of which has a space. One job is started under sh, the other under
    bash. A stub of a machine with eight slots. It has the real launcher, and a copy of bin/ whose
    train.py prints its devices and arguments.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "dist_train.sh").write_text(DIST_TRAIN.read_text())
    source = "tiekd/distributed/visible_devices.py"
    (tmp_path / source).parent.mkdir(parents=True)
    (tmp_path / source).write_text((runs.ROOT / source).read_text())
    (folder / "train.py").write_text(
        "import os, pathlib, sys\n"
        "names = ('CUDA_VISIBLE_DEVICES', 'MASTER_PORT', 'WORLD_SIZE')\n"
        "told = ' '.join([*(os.environ[name] for name in names), *sys.argv[3:]])\n"
        "pathlib.Path(sys.argv[2], os.environ['RANK']).write_text(told)\n"
    )
    devices = {"0,1,2,3": "29500", "4,5,6,7": "29501"}
    programs = []
    for shell, (visible, port) in zip(("sh", "bash"), devices.items(), strict=True):
        (tmp_path / port).mkdir()
        command = [shell, folder / "dist_train.sh", tmp_path / port, 4, "--seed", "a 1"]
        programs.append(
            runs.Program(command, CUDA_VISIBLE_DEVICES=visible, PORT=port, LOCAL_SIZE="8")
        )
    for program in programs:
        with program:
            result = program.result()
            assert result.code == 0, result.stderr[-3000:]
    for visible, port in devices.items():
        told = [(tmp_path / port / str(rank)).read_text() for rank in range(4)]
        assert told == [f"{visible} {port} 4 --seed a 1"] * 4


def test_dist_train_refuses_wrong_gpu_count():
    """A `GPUS` that disagrees with `CUDA_VISIBLE_DEVICES` is refused."""
    result = runs.finish(["sh", DIST_TRAIN, "recipe.yaml", 3], CUDA_VISIBLE_DEVICES="4,5")
    assert result.code == 2
    (line,) = result.our_lines()
    assert line == "LaunchError: GPUS is 3, but CUDA_VISIBLE_DEVICES=4,5 lists 2; make them agree"


def test_fp16_unsupported_device_is_refused(ground, tmp_path):
    """An fp16 config on a device without fp16 is refused with one line."""
    recipe, *options = in_recipe(tmp_path, ground, "fp16")
    options += ["--deepspeed_config", runs.DS_CONFIGS / "fp16.json"]
    # Some CPUs can compute in fp16, so this one is made to say that it can't.
    program = tmp_path / "no_fp16.py"
    program.write_text(
        "import runpy, sys\nfrom deepspeed.accelerator import get_accelerator\n"
        "get_accelerator().is_fp16_supported = lambda: False\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = runs.finish(
        [sys.executable, program, runs.ROOT / "bin" / "train.py", recipe, *options]
    )
    assert result.code == 2, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert line.startswith(
        "LaunchError: fp16 is not supported on this device (cpu); use ds_configs/fp32.json"
    )
    assert not (tmp_path / "fp16").exists()
