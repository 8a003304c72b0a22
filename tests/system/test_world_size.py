"""The numbers of a run don't depend on how many ranks share its batch, nor on accumulation.

Frames turn by up to 20 degrees, so every image has another number of valid pixels; the teacher is
an online network.
"""

from pathlib import Path

import pytest
import torch
from support import programs, recipes

FP32, ACCUMULATE2 = programs.DS_CONFIGS / "fp32.json", programs.DS_CONFIGS / "fp32_accumulate2.json"


def job(name: str, ground: Path, engine: Path = FP32, encoder: str | None = None, **train) -> dict:
    recipe = recipes.recipe(ground, **train)
    if encoder:
        recipe["network"] = {
            **recipe["network"],
            "encoder": {"name": f"support.parts.{encoder}_encoder"},
        }
    return {"name": name, "recipe": recipe, "engine": str(engine)}


@pytest.fixture(scope="module")
def results(ground, tmp_path_factory) -> Path:
    """The work dirs of runs named <ranks>x<images>[x<accumulation>].

    `plain` ones are without norms, `smooth` ones with norms and without kinks.
    """
    folder = tmp_path_factory.mktemp("world_size")
    one = [
        job("1x4", ground),
        job("plain_1x4", ground, encoder="plain"),
        job("smooth_1x4x2", ground, ACCUMULATE2, "smooth", batch_size=8),
    ]
    two = [
        job("2x2", ground),
        job("plain_2x1x2", ground, ACCUMULATE2, "plain"),
        job("2x1x2", ground, ACCUMULATE2),
        job("smooth_2x2x2", ground, ACCUMULATE2, "smooth", batch_size=8),
    ]
    programs.many(one, folder, ranks=1)
    programs.many(two, folder, ranks=2)
    return folder


def assert_same(first: Path, second: Path, atol: float = 1e-5) -> None:
    assert len(programs.losses(first)) == 20
    assert programs.losses(first) == pytest.approx(programs.losses(second), rel=2e-6)
    for name, tensor in programs.student(first).items():
        torch.testing.assert_close(
            tensor,
            programs.student(second)[name],
            rtol=1e-4,
            atol=atol,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def test_two_ranks_with_sync_norms_equal_one(results):
    """Two ranks with norms over both have the losses of one rank."""
    one, two = (programs.losses(results / name) for name in ("1x4", "2x2"))
    assert one[:10] == pytest.approx(two[:10], rel=2e-6)
    # Sooner or later rounding takes an activation to the other side of a kink, which is a step in
    # the gradient: the two go on 1e-4 apart. Without norms, or without kinks (below), they agree to
    # the last iteration.
    assert one == pytest.approx(two, rel=2e-3)


def test_accumulation_without_norms_equals_one_batch(results):
    """Accumulation on two ranks without norms equals one large batch on one rank."""
    assert_same(results / "plain_1x4", results / "plain_2x1x2")


def test_accumulation_with_norms_independent_of_ranks(results):
    """Accumulation with norms gives the same run on one rank and on two."""
    assert_same(results / "smooth_1x4x2", results / "smooth_2x2x2")


def test_micro_batch_norms_differ_from_batch_norms(results):
    """Norms over micro-batches change the losses, but by less than 5 %."""
    # That is why accumulation needs no norms above; and the comparison can see a difference of
    # statistics.
    losses = programs.losses(results / "2x1x2")
    assert losses != pytest.approx(programs.losses(results / "2x2"), rel=2e-6)
    assert losses == pytest.approx(programs.losses(results / "2x2"), rel=0.05)


@pytest.mark.long
def test_eight_ranks_equal_two(ground, tmp_path):
    """Eight ranks have the losses and weights of two."""
    kinds = ("plain", "smooth", None)
    for ranks in (8, 2):
        programs.many(
            [job(f"{kind}_of_{ranks}", ground, FP32, kind, batch_size=16) for kind in kinds],
            tmp_path,
            ranks,
        )
    assert_same(tmp_path / "plain_of_8", tmp_path / "plain_of_2")
    # Sums over 8 parts are rounded otherwise than over 2; some weights whose gradients nearly
    # cancel feel it.
    assert_same(tmp_path / "smooth_of_8", tmp_path / "smooth_of_2", atol=5e-5)
    eight, two = programs.losses(tmp_path / "None_of_8"), programs.losses(tmp_path / "None_of_2")
    # Norms over 2x4 pixels and ReLU6: once rounding has carried one input over a kink, the runs
    # diverge.
    assert eight[:3] == pytest.approx(two[:3], rel=2e-6)
    assert eight == pytest.approx(two, rel=1e-2)
