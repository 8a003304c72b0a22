"""The golden numbers themselves.

The rules give the published inputs, and no stored case lies idle.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import golden

TESTS = Path(__file__).parents[1]
SOURCE = "".join(path.read_text() for path in sorted(TESTS.rglob("*.py")))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            golden.fill("backbone.conv1.conv.weight", (32, 3, 3, 3), gain=1.4),
            [-0.15152466, 0.32529038, -0.17407207, 0.11260286],
        ),
        (golden.fill("backbone.conv1.bn.weight", (32,)), [0.81284451, 1.05768740, 0.83813024]),
        (golden.fill("backbone.conv1.bn.running_var", (32,)), [1.17359734, 1.13463998, 1.10276890]),
        (golden.fill("backbone.conv1.bn.bias", (32,)), [-0.06866177, 0.06282111, -0.24545754]),
        (golden.image("model:mobilev2_DPM_kitti:img", (2, 3, 64, 96)), [-0.33086383, 0.19928752]),
        (
            golden.depth("loss:TIE_KD_nyu49:kd_gt", (2, 1, 24, 40), 1e-3, 10.0),
            [2.83274102, 4.11098146],
        ),
        (golden.randn("head:DPM_mobile_nyu49:feat0", (2, 24, 16, 24)), [-1.60018075, 0.05554437]),
        (golden.rand("extra:msda:ref", (2, 7, 2, 2)), [0.13135134, 0.20108365]),
    ],
    ids=["weight", "scale", "variance", "bias", "image", "depth", "normal", "uniform"],
)
def test_golden_rules_give_published_inputs(values, expected):
    """The rules for weights, images and depths give the published inputs."""
    torch.testing.assert_close(
        values.flatten()[: len(expected)], torch.tensor(expected), rtol=1e-6, atol=1e-8
    )


def test_golden_every_stored_loss_is_used():
    """Each of the 33 stored losses is named in the tests' source."""
    cases = [path.stem for path in (golden.GOLDEN / "losses").glob("*.npz")]
    assert len(cases) == 33
    assert [
        case for case in cases if f'"{case}"' not in SOURCE and f"losses/{case}.npz" not in SOURCE
    ] == []


def test_golden_readme_counts_stored_cases():
    """The README's counts equal the cases that are stored."""
    text = (golden.GOLDEN / "README.md").read_text()
    folders = {
        name: int(count)
        for name, count in re.findall(r"^\| `(\w+)/` \| (\d+) ", text, flags=re.MULTILINE)
    }
    networks, logs = golden.load_json("networks/cases.json"), golden.load_json("logs/manifest.json")
    curves = {key.split("__")[0] for key in golden.load_arrays("schedules/curves.npz")}
    assert folders["losses"] == 33
    assert folders["heads"] == len(golden.load_json("heads/cases.json"))
    assert folders["networks"] == len(networks["cases"]) + len(networks["trajectories"])
    assert folders["schedules"] == len(curves)
    assert folders["logs"] == len(logs["sessions"]) + len(logs["direct_eta"])
    stored = {path.name for path in golden.GOLDEN.iterdir() if path.is_dir()}
    assert folders.keys() == stored


def test_golden_files_hold_numbers_only():
    """Each .npz file loads without pickle and holds numbers or text."""
    for path in golden.GOLDEN.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[key].dtype.kind in "fiubU" for key in archive.files), path
