"""The released student is rebuilt by one command, bit for bit, and predicts; here a tiny one."""

import json
import sys

import numpy as np
from PIL import Image
from support import programs

MODULE = [sys.executable, "-m", "tiekd.tools.rebuild_student", "--threads", "1"]


def test_rebuild_gives_the_same_weights_again_and_they_predict(tmp_path):
    """Two trainings have the same digest, and the stored fp16 weights predict an image."""
    tiny = ["train.iterations=2", "evaluation.interval=2", "train.batch_size=2", "data.workers=0"]
    tiny += [f"data.root={tmp_path}/scenes", "data.num_train=4", "data.num_val=1"]
    tiny += ["data.height=64", "data.width=96", "data.augment.crop=[32, 64]"]
    tiny += ["network.encoder.pretrained=null"]  # packaged weights may be absent
    made = {}
    for name, option in (("work", []), ("again", ["--check"])):
        command = [*MODULE, "--work-dir", tmp_path / name, "--out", tmp_path / "s.pth", *option]
        made[name] = programs.finish(
            [*map(str, command), "--set", *tiny],
            cwd=tmp_path,
            recorder=False,
            PYTHONPATH=str(programs.ROOT),
        )
        assert made[name].code == 0, made[name].stderr[-3000:]
    record = json.loads((tmp_path / "s.json").read_text())
    assert made["again"].stdout.splitlines()[-1] == f"Equal bit for bit: {record['digest']}"
    assert record["bytes"] < 7_000_000
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "street.png")
    words = ["baseline_lite0_scenes", tmp_path / "s.pth", tmp_path / "street.png"]
    result = programs.finish(
        [programs.ROOT / "bin" / "predict.py", *words, "--out", tmp_path / "out"], cwd=tmp_path
    )
    assert result.code == 0, result.stderr[-3000:]
    assert Image.open(tmp_path / "out" / "depth" / "street.png").size == (64, 48)
