"""bin/dist_train.sh asks nvidia-smi for devices, and refuses in one line what it can't start."""

import os
import subprocess

import pytest
from support.programs import ROOT

DIST_TRAIN = ROOT / "bin" / "dist_train.sh"


@pytest.mark.parametrize(
    ("words", "port", "told"),
    [
        ([], "29500", "LaunchError: bin/dist_train.sh needs RECIPE and GPUS, for example"),
        (
            ["r.yaml", "1"],
            "70000",
            "LaunchError: PORT: got '70000'; it must be a whole number from 1 to 65535",
        ),
        (
            ["r.yaml", "1"],
            "29500",
            "LaunchError: CUDA_VISIBLE_DEVICES=GPU-9: GPU-9 is none of this machine's GPUs",
        ),
    ],
)
def test_dist_train_rejects_bad_arguments_with_2(words, port, told, tmp_path):
    """The script exits with 2 and one line for wrong arguments, PORT or devices."""
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1232f937-d72c)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    said = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "GPU-9",
        "PORT": port,
    }
    command = ["sh", DIST_TRAIN, *words]
    result = subprocess.run(
        command, env=os.environ | said, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(told), result.stderr
