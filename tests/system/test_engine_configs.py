"""One loss curve for every way of running a step on a CPU, and of starting a program.

`curve.json` holds the losses of 20 iterations of runs.recipe in one process with
ds_configs/fp32.json. It is remade by `TIEKD_REMAKE_CURVE=1 python -m pytest
tests/system/test_engine_configs.py`, and a change of it needs a reason.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from support import programs, recipes

from tiekd.training import schedules

CURVE = Path(__file__).with_name("curve.json")
ON_A_CPU = sorted(
    path.stem for path in programs.DS_CONFIGS.glob("*.json") if not path.stem.startswith("fp16")
)
FP16 = sorted(path.stem for path in programs.DS_CONFIGS.glob("fp16*.json"))
# bf16 weights and activations have 8 bits; the first losses differ by rounding, the later ones by
# what it led to.
TOLERANCE = {"bf16_autocast": 0.02, "bf16_autocast_zero2": 0.02, "bf16_zero2": 0.03}
# In the end fp32's rounding, too, decides what a ReLU lets through, and is seen from there on.
SAME_STEPS = 10
# Its decoder's first convolution adds channels and is taken into the second.
WIDER = {**recipes.STUDENT, "decoder": {**recipes.STUDENT["decoder"], "widths": [8, 24]}}
WIDER_CONFIGS = ("fp32", "zero3_sharded")


def curve() -> list[float]:
    return json.loads(CURVE.read_text())["loss"]


def fall(losses: list[float]) -> float:
    return (sum(losses[:4]) - sum(losses[-4:])) / 4


@pytest.fixture(scope="module")
def results(ground, tmp_path_factory) -> Path:
    """The work dirs of runs named <engine config>_<ranks>.

    For fp16 the check of the CPU accelerator is patched away.
    """
    folder = tmp_path_factory.mktemp("engine_configs")
    for ranks in (1, 2):
        jobs = [job(name, ground, ranks) for name in ON_A_CPU]
        # fp16 at two ranks only: a CPU computes it slowly.
        jobs += [
            fp16_job(name, ground, folder, power)
            for name in FP16
            for power in (19, 8)
            if ranks == 2
        ]
        jobs += [wider_job(name, ground) for name in WIDER_CONFIGS if ranks == 2]
        programs.many(jobs, folder, ranks)
    if os.environ.get("TIEKD_REMAKE_CURVE") == "1":
        CURVE.write_text(json.dumps({"loss": programs.losses(folder / "fp32_1")}, indent=1) + "\n")
    return folder


def job(name: str, ground: Path, ranks: int) -> dict:
    """Returns the run of an engine config, with one save and, on two ranks, one set of pictures."""
    recipe = recipes.recipe(ground)
    recipe["checkpoint"]["interval"] = 20
    recipe["tensorboard"]["image_interval"] = 20 if ranks == 2 else 0
    return {
        "name": f"{name}_{ranks}",
        "recipe": recipe,
        "engine": str(programs.DS_CONFIGS / f"{name}.json"),
    }


def wider_job(name: str, ground: Path) -> dict:
    made = job(name, ground, 2)
    return made | {"name": f"wider_{name}_2", "recipe": made["recipe"] | {"network": WIDER}}


def fp16_job(name: str, ground: Path, folder: Path, power: int) -> dict:
    """Writes the stored config with another first scale.

    2^19 is sure to overflow a few times, 2^8 not to.
    """
    config = json.loads((programs.DS_CONFIGS / f"{name}.json").read_text())
    config["fp16"] |= {"initial_scale_power": power, "hysteresis": 1}
    path = folder / f"{name}_{power}.json"
    path.write_text(json.dumps(config))
    name = name if power == 19 else f"{name}_calm"
    return job(name, ground, 2) | {"engine": str(path), "fp16_on_cpu": True}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "name", [name for name in ON_A_CPU if "accumulate" not in name]
)  # batch statistics of a half
def test_engine_config_gives_stored_curve(results, name, ranks):
    """Every CPU engine config without accumulation gives the stored curve on one and two ranks."""
    losses = programs.losses(results / f"{name}_{ranks}")
    assert losses == pytest.approx(curve(), rel=TOLERANCE.get(name, 1e-3))
    assert losses[:SAME_STEPS] == pytest.approx(curve()[:SAME_STEPS], rel=TOLERANCE.get(name, 1e-5))


def test_fused_convolutions_are_sharded(results):
    """Fused convolutions are sharded by ZeRO-3 and train with the losses of unsharded ones."""
    whole, sharded = (programs.losses(results / f"wider_{name}_2") for name in WIDER_CONFIGS)
    assert sharded[:SAME_STEPS] == pytest.approx(whole[:SAME_STEPS], rel=1e-5)
    assert programs.recorded(results / "wider_zero3_sharded_2")[-1]["empty"] > 50
    assert fall(sharded) > 0.05 * sharded[0]


def test_stored_curve_falls():
    """The stored loss curve falls by more than 5 % of its first loss."""
    assert fall(curve()) > 0.05 * curve()[0]


def test_zero3_empties_parameters(results):
    """Under ZeRO-3 more than 50 parameters of a rank are empty; under ZeRO-2 none is."""
    names = ("zero3_sharded_2", "fp32_zero2_2")
    sharded, whole = (programs.recorded(results / name)[-1]["empty"] for name in names)
    assert sharded > 50
    assert whole == 0


@pytest.mark.parametrize("name", FP16)
def test_fp16_overflows_are_skipped_and_logged(results, name):
    """Runs in fp16 skip and log their first overflows, and then learn as in fp32."""
    rows = programs.recorded(results / f"{name}_2")
    skipped = rows[-1]["skipped"]
    assert [row["skipped"] for row in rows[:3]] == [1, 2, 3]
    assert skipped <= 8
    losses = [row["loss"] for row in rows]
    assert losses[0] == pytest.approx(curve()[0], rel=1e-3)
    told = [
        line
        for line in programs.log_text(results / f"{name}_2").splitlines()
        if " - INFO - skipped " in line
    ]
    assert len(told) == skipped
    assert all(
        "skipped 1 steps: loss or gradient was not finite; the weights stayed as they were" in t
        for t in told
    )
    assert fall(losses) > 0.4 * fall(curve())
    norms = [row["grad_norm"] for row in programs.json_log(results / f"{name}_2")]
    assert norms[4] == pytest.approx(
        programs.json_log(results / "fp32_2")[4]["grad_norm"], rel=0.25
    )


@pytest.mark.parametrize("name", FP16)
def test_fp16_without_overflow_gives_curve(results, name):
    """Runs in fp16 without overflows give the stored loss curve."""
    rows = programs.recorded(results / f"{name}_calm_2")
    assert rows[-1]["skipped"] == 0
    assert [row["loss"] for row in rows] == pytest.approx(curve(), rel=0.02)


@pytest.mark.parametrize("name", ON_A_CPU + FP16)
def test_log_lines_have_form_and_scheduled_lr(results, name):
    """Every log line has the documented form and the learning rate of the schedule."""
    lines = [
        line for line in programs.log_text(results / f"{name}_2").splitlines() if "\tlr: " in line
    ]
    assert len(lines) == 20
    for line in lines:
        assert programs.LOG_LINE.match(line), line
        assert programs.LOG_LINE_END.search(line) or name in FP16, line
        assert (", loss_scale: " in line) == (name in FP16)
    assert programs.LOG_LINE_END.search(lines[-1])
    one_cycle = recipes.recipe(Path())["schedule"]
    schedule = schedules.build(
        one_cycle, base_lr=0.001, base_momentum=0.95, total_iterations=20, iterations_per_epoch=4
    )
    rows = programs.recorded(results / f"{name}_2")
    assert [row["lr"][0] for row in rows] == [schedule.lr(i) for i in range(20)]
    assert [line.split("\tlr: ")[1].split(",")[0] for line in lines] == [
        f"{schedule.lr(i):.3e}" for i in range(20)
    ]


@pytest.mark.parametrize("name", ON_A_CPU + FP16)
def test_teacher_unchanged_and_not_in_checkpoint(results, name):
    """Training leaves the teacher unchanged and out of the engine's checkpoint."""
    before, after = json.loads((results / f"{name}_2" / "finished.json").read_text())
    assert before
    assert before == after
    files = list(
        (results / f"{name}_2" / "checkpoints" / "iter_20").glob("*mp_rank_*_model_states.pt")
    )
    assert files
    for path in files:
        module = torch.load(path, weights_only=False)["module"]
        student = programs.student(results / f"{name}_2")
        assert set(module) <= set(student), "nothing but the student is in the engine's checkpoint"
        assert module["head.weight"].shape[0] in (33, 0)
