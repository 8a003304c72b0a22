"""200 iterations in half precision on a GPU follow those in fp32.

The loss, as a mean over 20 iterations, is within 2 %.

Single iterations are noisier than that, for rounding grows; and a first loss scale that is too
large skips a few steps.
"""

import pytest
import torch
from support import programs, recipes

from tiekd.data.datasets.scenes import write_kitti_layout

ITERATIONS, WINDOW = 200, 20
HALF = {"fp16": 0.02, "fp16_zero1": 0.02, "bf16_autocast": 0.03}  # bf16 has three bits less

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module")
def folder(ground, tmp_path_factory):
    """One run for each engine config, in one process."""
    folder = tmp_path_factory.mktemp("half_on_gpu")
    write_kitti_layout(folder / "scenes", 0, 144, 192, 16, 1)
    jobs = []
    for name in ["fp32", *HALF]:
        recipe = recipes.recipe(ground, batch_size=8, iterations=ITERATIONS)
        recipe["network"] = recipes.STUDENT | {
            "encoder": recipes.ENCODER | {"width": 0.5, "taps": [1, 2, 4, 6]},
            "decoder": {
                "name": "densedepth",
                "widths": [32, 48, 64, 96],
                "extra_ups": 2,
                "extra_width": 32,
            },
            "head": {"name": "dpm", "num_bins": 257, "sigma": 0.8},
        }
        recipe["losses"] |= {"structure": {"name": "ssim", "weight": 1.0}}
        recipe["data"] |= {
            "root": str(folder / "scenes"),
            "height": 144,
            "width": 192,
            "num_val": 1,
        }
        recipe["data"]["augment"] = {"crop": [128, 160]}
        recipe["optimizer"] |= {"lr": 5e-4}
        recipe["checkpoint"] = {"interval": ITERATIONS, "by": "iteration"}
        recipe["tensorboard"] = {"image_interval": 0}
        jobs.append(
            {"name": name, "recipe": recipe, "engine": str(programs.DS_CONFIGS / f"{name}.json")}
        )
    programs.many(jobs, folder, 1)
    return folder


def smoothed(losses: list[float]) -> list[float]:
    assert len(losses) == ITERATIONS
    return [sum(losses[i : i + WINDOW]) / WINDOW for i in range(0, ITERATIONS, WINDOW)]


def test_gpu_fp32_loss_falls(folder):
    """The smoothed fp32 loss falls by more than 10 % on a GPU."""
    curve = smoothed(programs.losses(folder / "fp32"))
    assert curve[-1] < 0.9 * curve[0]


@pytest.mark.parametrize("name", HALF)
def test_gpu_half_precision_follows_fp32(folder, name, capsys):
    """Losses in half precision stay within 2 to 3 % of those in fp32 on a GPU."""
    full, half = (smoothed(programs.losses(folder / which)) for which in ("fp32", name))
    ratios = [a / b - 1 for a, b in zip(half, full, strict=True)]
    with capsys.disabled():
        print(
            f"\n{name} against fp32, loss per {WINDOW} iterations: "
            f"{', '.join(f'{100 * r:+.2f} %' for r in ratios)}"
        )
    assert max(map(abs, ratios)) <= HALF[name]
