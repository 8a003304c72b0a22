"""An exported file needs nothing of this project, and exporting tells nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.exported_student import (
    DPM,
    ODD,
    evaluated,
    fitted_network,
    random_image,
    write,
)
from torch import nn

import tiekd

STRANGER = """
import sys
import torch
image = torch.load(sys.argv[2])
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    depth = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
else:
    depth = torch.export.load(sys.argv[1]).module()(image)[0]
assert not [name for name in sys.modules if name.startswith("tiekd")]
torch.save(depth.detach(), sys.argv[3])
"""


@pytest.fixture(scope="module")
def dpm() -> nn.Module:
    return fitted_network(DPM)


def as_stranger(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Returns the file's output in a process that can't import this project."""
    script, given, found = (
        path.with_name(name) for name in ("stranger.py", "image.pt", "depth.pt")
    )
    script.write_text(STRANGER)
    torch.save(image, given)
    subprocess.run([sys.executable, "-I", script, path, given, found], check=True, cwd=path.parent)
    return torch.load(found)


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
def test_export_runs_without_tiekd(tmp_path, dpm, name):
    """Exported files give the same depth in a process that can't import tiekd."""
    path = tmp_path / name
    write(path, dpm, dynamic=True)
    image = random_image(*ODD, seed=5)
    assert (as_stranger(path, image) - evaluated(dpm, image)).abs().max() < 1e-3
    assert str(Path(tiekd.__file__).parent).encode() not in path.read_bytes()


def test_export_leaves_no_telemetry(tmp_path):
    """Importing ONNX Runtime through the exporter leaves no telemetry file in the home folder.

    ONNX Runtime would leave a number for this machine in its user's folder, and send it.
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("ORT_DISABLE_TELEMETRY", "CI")
    }
    code = "from tiekd.inference.export import onnx_format; import onnxruntime"
    subprocess.run(
        [sys.executable, "-c", code], env=environment | {"HOME": str(tmp_path)}, check=True
    )
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
