"""A student that was trained a little on rendered scenes.

Its local readout leaves fewer points in mid-air.
"""

import pytest
import torch
from support import programs, recipes

from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.datasets.scenes import FIRST_HELD_OUT_INDEX, render
from tiekd.evaluation.edge_metric import mid_air
from tiekd.inference.student import Student
from tiekd.models.build import build_network

NETWORK = recipes.STUDENT | {
    "encoder": recipes.ENCODER | {"taps": [1, 2, 4, 6]},
    "decoder": {
        "name": "densedepth",
        "widths": [16, 24, 32, 48],
        "extra_ups": 1,
        "extra_width": 16,
    },
    "head": {"name": "dpm", "num_bins": 49, "target": "gaussian", "sigma": 1.0},
}
ITERATIONS, BATCH = 100, 4


def scenes(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, W) uint8 and their dense depth (B, 1, H, W)."""
    rendered = [render(0, first + index, 64, 128) for index in range(count)]
    images = torch.stack(
        [torch.from_numpy(scene.image.copy()).permute(2, 0, 1) for scene in rendered]
    )
    return images, torch.stack([torch.from_numpy(scene.depth)[None] for scene in rendered])


@pytest.mark.long
def test_local_readout_leaves_fewer_mid_air_points():
    """On held-out scenes the local and mode readouts leave fewer mid-air points than the mean."""
    torch.manual_seed(0)
    images, depths = scenes(0, 40)
    network, table = build_network(NETWORK).train(), colour_table().expand(BATCH, -1, -1)
    optimizer = torch.optim.AdamW(network.parameters())
    for iteration in range(ITERATIONS):
        optimizer.param_groups[0]["lr"] = (
            3e-3 * min(1, (iteration + 1) / 20) * (1 - iteration / ITERATIONS)
        )
        picked = torch.randint(0, len(images), (BATCH,))
        divergence = network(look_up(images[picked], table), depths[picked]).divergence
        optimizer.zero_grad()
        divergence[depths[picked] > 0].mean().backward()
        optimizer.step()
    held_out, truth = scenes(FIRST_HELD_OUT_INDEX, 8)
    found = {
        name: mid_air(Student(network, "cpu", name)(held_out)[:, None], truth)
        for name in ("mean", "mode", "local")
    }
    shares = ", ".join(f"{name} {share:.3f}" for name, (share, _) in found.items())
    programs.REPORTS.append(f"points in mid-air at the edges of 8 held-out scenes: {shares}")
    assert found["mean"].pixels > 5000
    assert found["local"].share < 0.9 * found["mean"].share
    assert found["mode"].share < 0.9 * found["mean"].share
